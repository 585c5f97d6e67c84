//! When a reply applies.

use regex::Regex;
use serde::Deserialize;

use super::schema::ScriptError;
use super::view::{ResultView, View};

/// A condition as it is written. All that is named must hold.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConditionText {
    last_result: Option<ResultText>,
    any_result: Option<ResultText>,
    any_result_contains: Option<String>,
    last_user_contains: Option<String>,
    last_user_matches: Option<String>,
    user_contains: Option<String>,
    user_matches: Option<String>,
    system_contains: Option<String>,
    ends_with: Option<EndsWith>,
    tool_offered: Option<String>,
    not: Option<Box<ConditionText>>,
    any: Option<Vec<ConditionText>>,
}

/// What a result must be like. All that is named must hold of the same result.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResultText {
    tool: Option<String>,
    contains: Option<String>,
    matches: Option<String>,
    is_error: Option<bool>,
}

/// What the latest message holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum EndsWith {
    User,
    Results,
}

/// A condition that can be asked.
#[derive(Debug)]
pub(super) struct Condition(Vec<Test>);

#[derive(Debug)]
enum Test {
    LastResult(ResultTest),
    AnyResult(ResultTest),
    LastUser(Pattern),
    User(Pattern),
    System(Pattern),
    EndsWith(EndsWith),
    Offered(String),
    Not(Condition),
    Any(Vec<Condition>),
}

#[derive(Debug)]
struct ResultTest {
    tool: Option<String>,
    patterns: Vec<Pattern>,
    is_error: Option<bool>,
}

#[derive(Debug)]
enum Pattern {
    Contains(String),
    Matches(Regex),
}

impl Pattern {
    fn regex(text: &str, at: &str) -> Result<Pattern, ScriptError> {
        let compiled = Regex::new(text).map_err(|why| {
            let why = why.to_string();
            let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ");
            ScriptError::at(at, format!("{text:?} is not a regular expression: {why}"))
        });
        compiled.map(Pattern::Matches)
    }

    fn holds(&self, text: &str) -> bool {
        match self {
            Pattern::Contains(part) => text.contains(part.as_str()),
            Pattern::Matches(regex) => regex.is_match(text),
        }
    }
}

impl ConditionText {
    /// Reads the condition; `at` is its place in the script.
    pub(super) fn read(self, at: &str) -> Result<Condition, ScriptError> {
        let mut tests = Vec::new();
        let under = |field: &str| format!("{at}.{field}");
        if let Some(result) = self.last_result {
            tests.push(Test::LastResult(result.read(&under("last_result"))?));
        }
        if let Some(result) = self.any_result {
            tests.push(Test::AnyResult(result.read(&under("any_result"))?));
        }
        if let Some(part) = self.any_result_contains {
            let patterns = vec![Pattern::Contains(part)];
            tests.push(Test::AnyResult(ResultTest { tool: None, patterns, is_error: None }));
        }
        tests.extend(self.last_user_contains.map(|part| Test::LastUser(Pattern::Contains(part))));
        if let Some(text) = self.last_user_matches {
            tests.push(Test::LastUser(Pattern::regex(&text, &under("last_user_matches"))?));
        }
        tests.extend(self.user_contains.map(|part| Test::User(Pattern::Contains(part))));
        if let Some(text) = self.user_matches {
            tests.push(Test::User(Pattern::regex(&text, &under("user_matches"))?));
        }
        tests.extend(self.system_contains.map(|part| Test::System(Pattern::Contains(part))));
        tests.extend(self.ends_with.map(Test::EndsWith));
        tests.extend(self.tool_offered.map(Test::Offered));
        if let Some(not) = self.not {
            tests.push(Test::Not(not.read(&under("not"))?));
        }
        if let Some(any) = self.any {
            let read = any.into_iter().enumerate();
            let read = read.map(|(number, condition)| condition.read(&under(&format!("any[{number}]"))));
            tests.push(Test::Any(read.collect::<Result<_, _>>()?));
        }
        if tests.is_empty() {
            return Err(ScriptError::at(at, "the condition is empty: name what must hold, or leave `if` out"));
        }
        Ok(Condition(tests))
    }
}

impl ResultText {
    fn read(self, at: &str) -> Result<ResultTest, ScriptError> {
        let mut patterns: Vec<Pattern> = self.contains.into_iter().map(Pattern::Contains).collect();
        if let Some(text) = self.matches {
            patterns.push(Pattern::regex(&text, &format!("{at}.matches"))?);
        }
        Ok(ResultTest { tool: self.tool, patterns, is_error: self.is_error })
    }
}

impl ResultTest {
    fn holds(&self, result: &ResultView<'_>) -> bool {
        self.tool.as_ref().is_none_or(|tool| tool == result.tool)
            && self.is_error.is_none_or(|is_error| is_error == result.is_error)
            && self.patterns.iter().all(|pattern| pattern.holds(&result.text))
    }
}

impl Condition {
    /// Whether it holds of this conversation.
    pub(super) fn holds(&self, view: &View<'_>) -> bool {
        self.0.iter().all(|test| match test {
            Test::LastResult(test) => view.results[view.last_results..].iter().any(|result| test.holds(result)),
            Test::AnyResult(test) => view.results.iter().any(|result| test.holds(result)),
            Test::LastUser(pattern) => pattern.holds(view.last_user()),
            Test::User(pattern) => view.users.iter().any(|text| pattern.holds(text)),
            Test::System(pattern) => pattern.holds(view.system),
            Test::EndsWith(what) => (*what == EndsWith::Results) == view.ends_with_results,
            Test::Offered(tool) => view.tools.contains(&tool.as_str()),
            Test::Not(condition) => !condition.holds(view),
            Test::Any(conditions) => conditions.iter().any(|condition| condition.holds(view)),
        })
    }
}
