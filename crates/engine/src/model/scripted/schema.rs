//! How a script is written.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::condition::{Condition, ConditionText};
use crate::model::{ModelErrorKind, StopReason, TokenUsage};

/// A script for the [`super::Scripted`] client, in YAML or JSON.
///
/// ```yaml
/// name: survey                 # for the log
/// per_turn: false              # true: each of the user's messages starts at the first step again
/// context_window: 200000       # tokens
/// rules:                       # looked at first, in order
///   - if: {last_user_contains: ping, ends_with: user}
///     reply: [{text: pong}]
/// steps:                       # the n-th request of the conversation gets the n-th step
///   - reply:
///       - thinking: Where am I?
///       - text: I will look around.
///       - tool: {name: bash, input: {command: ls}}
///   - when:                    # alternatives; the first one that holds
///       - if: {last_result: {tool: bash, contains: Cargo.toml, is_error: false}}
///         reply: [{text: "A Rust project: {{last_result}}"}]
///       - reply: [{text: Something else.}]
/// otherwise: {reply: [{text: Done.}]}   # after the last step, and when no alternative holds
/// ```
///
/// Beside `reply` may stand: `stop` (a stop reason of the Messages API), `stop_details`, `usage`, `delay_ms` (before the
/// reply), `chunk` (characters per text delta), `chunk_delay_ms` (before each delta), and `error` with `times`, `message` and
/// `retry_after_ms`. With `times`, the failure is played so often in each conversation, then the reply.
///
/// Replies are counted by the conversation's assistant messages. Two replies with nothing in between, as after `pause_turn`,
/// are one such message; a compacted conversation begins anew.
#[derive(Debug)]
pub struct Script {
    name: String,
    pub(super) per_turn: bool,
    pub(super) context_window: Option<u32>,
    pub(super) rules: Vec<Branch>,
    /// The alternatives of each step.
    pub(super) steps: Vec<Vec<Branch>>,
    pub(super) otherwise: Option<Reply>,
}

/// Why a script cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// The file cannot be read.
    #[error("the script {} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not YAML or JSON, or a field is unknown or of the wrong type. The reason names field, line and column.
    #[error("the script cannot be understood: {reason}")]
    Syntax {
        /// Where and why.
        reason: String,
    },
    /// A field's value makes no sense.
    #[error("the script cannot be played: {field}: {reason}")]
    Field {
        /// The field's place, such as `steps[2].reply[0]`.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl ScriptError {
    pub(super) fn at(field: &str, reason: impl Into<String>) -> ScriptError {
        ScriptError::Field { field: field.to_owned(), reason: reason.into() }
    }
}

/// A reply and when it applies.
#[derive(Debug)]
pub(super) struct Branch {
    pub(super) condition: Option<Condition>,
    pub(super) reply: Reply,
}

/// What is said, and how.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) items: Vec<Item>,
    pub(super) stop: Option<StopReason>,
    pub(super) stop_details: Option<Value>,
    pub(super) usage: UsageText,
    pub(super) delay: Duration,
    pub(super) chunk: Option<usize>,
    pub(super) chunk_delay: Duration,
    pub(super) failure: Option<Failure>,
}

impl Reply {
    /// One text, and the end of the turn.
    pub(super) fn text(text: String) -> Reply {
        Reply { items: vec![Item::Text(text)], ..Reply::default() }
    }
}

/// A block of a reply.
#[derive(Debug)]
pub(super) enum Item {
    Text(String),
    Thinking(String),
    Tool { name: String, input: Value },
}

/// A failure that is played.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: ErrorName,
    pub(super) times: Option<u32>,
    pub(super) message: Option<String>,
    pub(super) retry_after: Option<Duration>,
}

/// Counts that are not estimated.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UsageText {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    #[serde(default)]
    cache_read_input_tokens: u64,
    #[serde(default)]
    cache_creation_input_tokens: u64,
    #[serde(default)]
    ephemeral_5m_input_tokens: u64,
    #[serde(default)]
    ephemeral_1h_input_tokens: u64,
}

impl UsageText {
    pub(super) fn or_estimate(self, input: u64, output: u64) -> TokenUsage {
        TokenUsage {
            input_tokens: self.input_tokens.unwrap_or(input),
            output_tokens: self.output_tokens.unwrap_or(output),
            cache_read_input_tokens: self.cache_read_input_tokens,
            cache_creation_input_tokens: self.cache_creation_input_tokens,
            ephemeral_5m: self.ephemeral_5m_input_tokens,
            ephemeral_1h: self.ephemeral_1h_input_tokens,
        }
    }
}

/// Failures by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ErrorName {
    Overloaded,
    RateLimited,
    Billing,
    RequestFailed,
    InvalidRequest,
    Authentication,
    ContextTooLong,
    /// The reply breaks off in its last block.
    Disconnect,
    /// The reply falls silent in its last block, and the watchdog ends it.
    Idle,
    /// The reply falls silent in its last block, and nothing ends it.
    Hang,
    /// The reply's last block is a call whose input is not JSON.
    MalformedToolInput,
}

impl ErrorName {
    pub(super) fn kind(self) -> ModelErrorKind {
        match self {
            ErrorName::Overloaded => ModelErrorKind::Overloaded,
            ErrorName::RateLimited => ModelErrorKind::RateLimited,
            ErrorName::Billing => ModelErrorKind::Billing,
            ErrorName::RequestFailed => ModelErrorKind::RequestFailed,
            ErrorName::InvalidRequest => ModelErrorKind::InvalidRequest,
            ErrorName::Authentication => ModelErrorKind::Authentication,
            ErrorName::ContextTooLong => ModelErrorKind::ContextTooLong,
            ErrorName::Disconnect => ModelErrorKind::Disconnected,
            ErrorName::Idle | ErrorName::Hang => ModelErrorKind::Idle,
            ErrorName::MalformedToolInput => ModelErrorKind::Malformed,
        }
    }

    /// Whether something of the reply is seen before the failure.
    pub(super) fn breaks_off(self) -> bool {
        matches!(self, ErrorName::Disconnect | ErrorName::Idle | ErrorName::Hang | ErrorName::MalformedToolInput)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ScriptText {
    name: Option<String>,
    #[serde(default)]
    per_turn: bool,
    context_window: Option<u32>,
    #[serde(default)]
    rules: Vec<Entry>,
    #[serde(default)]
    steps: Vec<Entry>,
    otherwise: Option<Entry>,
}

/// A rule, a step, an alternative or `otherwise`: one shape as it is written, checked for its place when it is read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(rename = "if")]
    condition: Option<ConditionText>,
    when: Option<Vec<Entry>>,
    reply: Option<Vec<ItemText>>,
    stop: Option<StopName>,
    stop_details: Option<Value>,
    usage: Option<UsageText>,
    delay_ms: Option<u64>,
    chunk: Option<usize>,
    chunk_delay_ms: Option<u64>,
    error: Option<ErrorName>,
    times: Option<u32>,
    message: Option<String>,
    retry_after_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ItemText {
    text: Option<String>,
    thinking: Option<String>,
    tool: Option<ToolText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ToolText {
    name: String,
    #[serde(default)]
    input: Map<String, Value>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StopName {
    EndTurn,
    ToolUse,
    PauseTurn,
    MaxTokens,
    StopSequence,
    Refusal,
    ModelContextWindowExceeded,
}

impl Script {
    /// Reads a script from a file.
    ///
    /// # Errors
    /// When the file cannot be read or does not hold a script.
    pub fn load(path: &Path) -> Result<Script, ScriptError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ScriptError::Unreadable { path: path.to_owned(), source })?;
        Script::parse(&text)
    }

    /// Reads a script. A text that begins with a brace is JSON, any other YAML.
    ///
    /// # Errors
    /// When it does not hold a script; the error names the field, and the line where there is one.
    pub fn parse(text: &str) -> Result<Script, ScriptError> {
        let script: ScriptText = if text.trim_start().starts_with('{') {
            let mut json = serde_json::Deserializer::from_str(text);
            let script = serde_path_to_error::deserialize(&mut json);
            let script = script.map_err(|why| ScriptError::Syntax { reason: why.to_string() })?;
            json.end().map_err(|why| ScriptError::Syntax { reason: why.to_string() })?;
            script
        } else {
            serde_yaml_ng::from_str(text).map_err(|why| ScriptError::Syntax { reason: why.to_string() })?
        };
        script.read()
    }

    /// Its name, for the log.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl ScriptText {
    fn read(self) -> Result<Script, ScriptError> {
        if self.rules.is_empty() && self.steps.is_empty() && self.otherwise.is_none() {
            return Err(ScriptError::at("steps", "there are neither rules nor steps, and no otherwise"));
        }
        let mut rules = Vec::new();
        for (number, rule) in self.rules.into_iter().enumerate() {
            let at = format!("rules[{number}]");
            if rule.condition.is_none() {
                return Err(ScriptError::at(&at, "a rule needs an `if`"));
            }
            rules.push(rule.branch(&at)?);
        }
        let mut steps = Vec::new();
        for (number, step) in self.steps.into_iter().enumerate() {
            steps.push(step.step(&format!("steps[{number}]"))?);
        }
        let otherwise = self.otherwise.map(|entry| entry.branch("otherwise")).transpose()?;
        if otherwise.as_ref().is_some_and(|branch| branch.condition.is_some()) {
            return Err(ScriptError::at("otherwise.if", "otherwise has no condition: write a rule instead"));
        }
        Ok(Script {
            name: self.name.unwrap_or_else(|| "script".to_owned()),
            per_turn: self.per_turn,
            context_window: self.context_window,
            rules,
            steps,
            otherwise: otherwise.map(|branch| branch.reply),
        })
    }
}

impl Entry {
    fn step(mut self, at: &str) -> Result<Vec<Branch>, ScriptError> {
        if self.condition.is_some() {
            return Err(ScriptError::at(at, "a step has no `if` of its own: put its alternatives under `when`"));
        }
        let Some(when) = self.when.take() else { return Ok(vec![self.branch(at)?]) };
        if self.says_something() {
            return Err(ScriptError::at(at, "with `when`, the reply and its options belong into the alternatives"));
        }
        let mut branches = Vec::new();
        let last = when.len().saturating_sub(1);
        for (number, entry) in when.into_iter().enumerate() {
            let at = format!("{at}.when[{number}]");
            if entry.condition.is_none() && number != last {
                return Err(ScriptError::at(&at, "only the last alternative may do without an `if`"));
            }
            branches.push(entry.branch(&at)?);
        }
        Ok(branches)
    }

    fn says_something(&self) -> bool {
        let Entry { condition: _, when: _, reply, stop, stop_details, usage, delay_ms, chunk, chunk_delay_ms, .. } =
            self;
        reply.is_some()
            || stop.is_some()
            || stop_details.is_some()
            || usage.is_some()
            || delay_ms.or(*chunk_delay_ms).or(self.retry_after_ms).is_some()
            || chunk.is_some()
            || self.error.is_some()
            || self.times.is_some()
            || self.message.is_some()
    }

    fn branch(self, at: &str) -> Result<Branch, ScriptError> {
        let bad = |field: &str, why: &str| Err(ScriptError::at(&format!("{at}.{field}"), why));
        if self.when.is_some() {
            return bad("when", "alternatives are for steps only");
        }
        let condition = self.condition.map(|condition| condition.read(&format!("{at}.if"))).transpose()?;
        let mut items = Vec::new();
        for (number, item) in self.reply.iter().flatten().enumerate() {
            items.push(item.read(&format!("{at}.reply[{number}]"))?);
        }
        let millis = |ms: Option<u64>| Duration::from_millis(ms.unwrap_or(0));
        let failure = match self.error {
            Some(error) => {
                if self.times == Some(0) {
                    return bad("times", "a failure is played at least once");
                }
                if self.times.is_some() && self.reply.is_none() {
                    return bad("times", "with `times` there must be a `reply` for when the failures are over");
                }
                let retry_after = self.retry_after_ms.map(Duration::from_millis);
                Some(Failure { error, times: self.times, message: self.message, retry_after })
            }
            None if self.times.is_some() || self.message.is_some() || self.retry_after_ms.is_some() => {
                return bad("error", "`times`, `message` and `retry_after_ms` need an `error`");
            }
            None if self.reply.is_none() => return bad("reply", "there is neither a `reply` nor an `error`"),
            None => None,
        };
        if self.chunk == Some(0) {
            return bad("chunk", "a delta has at least one character");
        }
        let stop = self.stop.map(|name| match name {
            StopName::EndTurn => StopReason::EndTurn,
            StopName::ToolUse => StopReason::ToolUse,
            StopName::PauseTurn => StopReason::PauseTurn,
            StopName::MaxTokens => StopReason::MaxTokens,
            StopName::StopSequence => StopReason::StopSequence,
            StopName::Refusal => StopReason::Refusal,
            StopName::ModelContextWindowExceeded => StopReason::ContextWindowExceeded,
        });
        let reply = Reply {
            items,
            stop,
            stop_details: self.stop_details,
            usage: self.usage.unwrap_or_default(),
            delay: millis(self.delay_ms),
            chunk: self.chunk,
            chunk_delay: millis(self.chunk_delay_ms),
            failure,
        };
        Ok(Branch { condition, reply })
    }
}

impl ItemText {
    fn read(&self, at: &str) -> Result<Item, ScriptError> {
        match (&self.text, &self.thinking, &self.tool) {
            (Some(text), None, None) => Ok(Item::Text(text.clone())),
            (None, Some(text), None) => Ok(Item::Thinking(text.clone())),
            (None, None, Some(tool)) => {
                Ok(Item::Tool { name: tool.name.clone(), input: Value::Object(tool.input.clone()) })
            }
            _ => Err(ScriptError::at(at, "an item is exactly one of `text`, `thinking` and `tool`")),
        }
    }
}
