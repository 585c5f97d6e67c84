//! Which refs a push may change.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{Commands, RefUpdate};

/// Which refs a push may change. When a session has two policies, both must allow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushRules {
    sets: Vec<Arc<Set>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Set {
    push: Vec<RefPattern>,
    protected: Vec<RefPattern>,
    delete: bool,
    create: bool,
    options: bool,
}

/// A ref, or refs with stars: `*` stands for any text, slashes included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefPattern {
    written: Box<str>,
    pieces: Vec<Box<str>>,
}

/// Why something is not a pattern of refs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RefPatternError {
    /// `main`.
    #[error("it is no full name of a ref: write refs/heads/{0}")]
    Short(String),
    /// What no ref is called.
    #[error("no ref has such a name")]
    Malformed,
}

/// A push that is not allowed, as a whole, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// The refs that are the reason.
    pub refs: Vec<RefusedRef>,
    /// For the agent: what was refused, why, and what would help. One line.
    pub message: String,
}

/// A ref that may not be changed as asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedRef {
    /// The ref.
    pub name: String,
    /// Why: a few words, as git shows them behind the ref.
    pub why: &'static str,
}

impl PushRules {
    /// Rules that allow to create and update what matches `push` and not `protected`, and to delete none of it.
    pub fn new(push: Vec<RefPattern>, protected: Vec<RefPattern>) -> PushRules {
        PushRules { sets: vec![Arc::new(Set { push, protected, delete: false, create: true, options: false })] }
    }

    /// Whether refs may be deleted.
    pub fn with_delete(self, delete: bool) -> PushRules {
        self.with(|set| set.delete = delete)
    }

    /// Whether refs may be created.
    pub fn with_create(self, create: bool) -> PushRules {
        self.with(|set| set.create = create)
    }

    /// Whether options may be sent along (`git push -o`): servers merge, deploy and skip checks on them.
    pub fn with_options(self, options: bool) -> PushRules {
        self.with(|set| set.options = options)
    }

    fn with(mut self, change: impl Fn(&mut Set)) -> PushRules {
        self.sets.iter_mut().for_each(|set| change(Arc::make_mut(set)));
        self
    }

    /// Both hold.
    pub(crate) fn and(&self, other: &PushRules) -> PushRules {
        PushRules { sets: self.sets.iter().chain(&other.sets).cloned().collect() }
    }

    /// Whether any push may be allowed.
    pub fn allows_some(&self) -> bool {
        self.sets.iter().all(|set| !set.push.is_empty())
    }

    /// Checks all commands of a push, and the options that are sent along. One that is not allowed refuses all.
    pub fn check_push(&self, commands: &Commands) -> Result<(), Refused> {
        if commands.push_options() && !self.sets.iter().all(|set| set.options) {
            let refs =
                commands.updates.iter().map(|update| RefusedRef { name: update.name.clone(), why: OPTIONS }).collect();
            let message =
                "this push was refused by the egress policy: it carries push options, which the rule does not allow. \
                           Push without -o; the same push again is refused again"
                    .to_owned();
            return Err(Refused { refs, message });
        }
        self.check(&commands.updates)
    }

    /// Checks commands. One that is not allowed refuses all.
    pub fn check(&self, updates: &[RefUpdate]) -> Result<(), Refused> {
        let refs: Vec<RefusedRef> = updates
            .iter()
            .filter_map(|update| {
                let why = self.sets.iter().find_map(|set| set.refuses(update))?;
                Some(RefusedRef { name: update.name.clone(), why })
            })
            .collect();
        if refs.is_empty() {
            return Ok(());
        }
        let mut message = String::from("this push was refused by the egress policy: ");
        for (number, refused) in refs.iter().take(5).enumerate() {
            let comma = if number > 0 { ", " } else { "" };
            message.push_str(&format!("{comma}{} ({})", printable(&refused.name), refused.why));
        }
        if refs.len() > 5 {
            message.push_str(&format!(" and {} more", refs.len() - 5));
        }
        message.push_str(". ");
        message.push_str(&self.allowed());
        message.push_str(". Nothing was pushed; the same push again is refused again");
        Err(Refused { refs, message })
    }

    /// What may be pushed, in words.
    pub fn allowed(&self) -> String {
        let mut words = Vec::new();
        for set in &self.sets {
            if set.push.is_empty() {
                return "No ref may be pushed".to_owned();
            }
            let list =
                |patterns: &[RefPattern]| patterns.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let except =
                if set.protected.is_empty() { String::new() } else { format!(" except {}", list(&set.protected)) };
            words.push(format!("{}{except}", list(&set.push)));
        }
        format!("What may be pushed is {}", words.join(", and of that only "))
    }
}

const PROTECTED: &str = "protected by the egress policy";
const NOT_ALLOWED: &str = "not allowed by the egress policy";
const DELETE: &str = "deleting is not allowed by the egress policy";
const CREATE: &str = "creating is not allowed by the egress policy";
const OPTIONS: &str = "push options are not allowed by the egress policy";

impl Set {
    fn refuses(&self, update: &RefUpdate) -> Option<&'static str> {
        // Some servers keep refs in files whose names they do not tell apart by case.
        if self.protected.iter().any(|pattern| pattern.matches(&update.name) || pattern.matches_any_case(&update.name))
        {
            Some(PROTECTED)
        } else if !self.push.iter().any(|pattern| pattern.matches(&update.name)) {
            Some(NOT_ALLOWED)
        } else if update.is_delete() && !self.delete {
            Some(DELETE)
        } else if update.is_create() && !self.create {
            Some(CREATE)
        } else {
            None
        }
    }
}

impl RefPattern {
    /// Whether the ref is meant.
    pub fn matches(&self, name: &str) -> bool {
        crate::policy::star(&self.pieces, name)
    }

    fn matches_any_case(&self, name: &str) -> bool {
        let pieces: Vec<Box<str>> = self.pieces.iter().map(|piece| piece.to_lowercase().into()).collect();
        crate::policy::star(&pieces, &name.to_lowercase())
    }
}

impl FromStr for RefPattern {
    type Err = RefPatternError;

    fn from_str(text: &str) -> Result<RefPattern, RefPatternError> {
        if !text.starts_with("refs/") && text != "*" {
            return Err(RefPatternError::Short(text.to_owned()));
        }
        if text.len() > 512 || text.contains("**") || !is_ref(&text.replace('*', "x")) && text != "*" {
            return Err(RefPatternError::Malformed);
        }
        Ok(RefPattern { written: text.into(), pieces: text.split('*').map(Box::from).collect() })
    }
}

impl fmt::Display for RefPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

/// Whether it may be the name of a ref (git-check-ref-format(1)).
pub(super) fn is_ref(name: &str) -> bool {
    name.contains('/')
        && !name.ends_with('.')
        && !name.contains("..")
        && !name.contains("@{")
        && !name.chars().any(|c| c.is_control() || matches!(c, ' ' | '~' | '^' | ':' | '?' | '*' | '[' | '\\'))
        && name.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock"))
}

/// For messages: what a terminal would obey is left out.
pub(super) fn printable(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { '?' } else { c }).collect()
}
