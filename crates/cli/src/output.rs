//! What people and programs read: results on standard output, everything else on standard error.

use std::borrow::Cow;
use std::fmt;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::ValueEnum;
use serde_json::{Value, json};

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON object per line.
    Json,
}

/// Where results go, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    format: Format,
    color: bool,
}

pub(crate) const BOLD: Style = Style::new().bold();
pub(crate) const DIM: Style = Style::new().dimmed();
pub(crate) const RED: Style = AnsiColor::Red.on_default();
pub(crate) const GREEN: Style = AnsiColor::Green.on_default();
pub(crate) const YELLOW: Style = AnsiColor::Yellow.on_default();
pub(crate) const CYAN: Style = AnsiColor::Cyan.on_default();

/// Whether colours may be written to this stream: never when NO_COLOR is set to anything (https://no-color.org).
fn colorful(terminal: bool) -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    terminal && !refused && !dumb
}

impl Output {
    pub(crate) fn new(format: Format) -> Output {
        Output { format, color: format == Format::Text && colorful(std::io::stdout().is_terminal()) }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// `text` in this style, where colours are wanted.
    pub(crate) fn paint(&self, style: Style, text: impl fmt::Display) -> String {
        paint(self.color, style, text)
    }

    /// A line for people; nothing in JSON mode.
    pub(crate) fn line(&self, text: impl fmt::Display) {
        if !self.is_json() {
            self.raw(&format!("{text}\n"));
        }
    }

    /// A piece of a line for people, shown at once.
    pub(crate) fn piece(&self, text: impl fmt::Display) {
        if !self.is_json() {
            self.raw(&text.to_string());
        }
    }

    /// An object for programs; nothing in text mode.
    pub(crate) fn object(&self, value: &Value) {
        if self.is_json() {
            self.raw(&format!("{value}\n"));
        }
    }

    /// An object for programs, or its line for people.
    pub(crate) fn either(&self, value: &Value, text: impl fmt::Display) {
        self.object(value);
        self.line(text);
    }

    /// A table for people, with its columns as wide as they need to be. Nothing is cut off: names and ids are for copying.
    pub(crate) fn table(&self, head: &[&str], rows: &[Vec<String>]) {
        let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let line = |cells: &[String]| {
            let mut text = String::new();
            for (place, (cell, width)) in cells.iter().zip(&widths).enumerate() {
                let last = place + 1 == widths.len();
                text.push_str(cell);
                if !last {
                    let pad = width.saturating_sub(cell.chars().count()) + 2;
                    text.extend(std::iter::repeat_n(' ', pad));
                }
            }
            text.truncate(text.trim_end().len());
            text
        };
        let head: Vec<String> = head.iter().map(|cell| cell.to_uppercase()).collect();
        self.line(self.paint(DIM, line(&head)));
        for row in rows {
            self.line(line(row));
        }
    }

    fn raw(&self, text: &str) {
        // `print!` panics when the reader of a pipe has gone; a vanished reader is no failure of ours.
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

/// Text that does nothing to a terminal but show itself. What comes from models, tools and files may hold sequences that
/// move the cursor, change titles or turn the direction of writing; whoever reads it must see what is there.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| {
        (c.is_control() && c != '\n' && c != '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(harmful) {
        return Cow::Borrowed(text);
    }
    // A carriage return before a line feed is only another line end.
    Cow::Owned(text.replace("\r\n", "\n").replace(harmful, "\u{fffd}"))
}

fn paint(color: bool, style: Style, text: impl fmt::Display) -> String {
    if color { format!("{style}{text}{style:#}") } else { text.to_string() }
}

/// A note for people on standard error: progress, warnings. Not part of the result.
#[expect(clippy::print_stderr, reason = "this is where notes are written")]
pub(crate) fn note(text: impl fmt::Display) {
    eprintln!("{text}");
}

/// Why a command did not do what it was asked: what failed, why, and what to do about it.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What failed, as a sentence without its end.
    what: String,
    /// Why.
    why: Option<String>,
    /// What to do.
    fix: Option<String>,
    /// The process's exit code.
    code: u8,
    /// The API's error, as it came, for programs.
    api: Option<Value>,
}

/// The result of a command.
pub(crate) type Outcome<T = ExitCode> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(what: impl Into<String>) -> Failure {
        Failure { what: what.into(), why: None, fix: None, code: 1, api: None }
    }

    #[must_use]
    pub(crate) fn why(self, why: impl fmt::Display) -> Failure {
        Failure { why: Some(why.to_string()), ..self }
    }

    #[must_use]
    pub(crate) fn fix(self, fix: impl Into<String>) -> Failure {
        Failure { fix: Some(fix.into()), ..self }
    }

    /// Whether the API did not know the key.
    pub(crate) fn is_unauthorized(&self) -> bool {
        self.api.as_ref().is_some_and(|api| api["error"]["type"] == "authentication_error")
    }

    #[must_use]
    pub(crate) fn code(self, code: u8) -> Failure {
        Failure { code, ..self }
    }

    #[must_use]
    pub(crate) fn api(self, error: Value) -> Failure {
        Failure { api: Some(error), ..self }
    }

    /// Whether the server has answered, rather than not been reached.
    pub(crate) fn is_answer(&self) -> bool {
        self.api.is_some()
    }

    /// Says it without failing.
    pub(crate) fn report_as_warning(&self) {
        let why = self.why.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
        note(format!("warning: {}{why}", self.what));
    }

    /// Writes it to standard error and gives the exit code.
    #[expect(clippy::print_stderr, reason = "this is where failures are written")]
    pub(crate) fn report(&self, format: Format) -> ExitCode {
        match format {
            Format::Json => {
                let error = json!({"what": self.what, "why": self.why, "fix": self.fix, "api": self.api});
                eprintln!("{}", json!({"type": "failure", "error": error}));
            }
            Format::Text => {
                let color = colorful(std::io::stderr().is_terminal());
                let bold_red = RED.bold();
                eprintln!("{} {}", paint(color, bold_red, "error:"), self.what);
                if let Some(why) = &self.why {
                    eprintln!("  {} {why}", paint(color, DIM, "why:"));
                }
                if let Some(fix) = &self.fix {
                    eprintln!("  {} {fix}", paint(color, DIM, "fix:"));
                }
            }
        }
        ExitCode::from(self.code)
    }
}

/// Adds what failed to an error of a library.
pub(crate) trait Context<T> {
    /// The failure: `what`, with the error as its reason.
    fn context(self, what: impl Into<String>) -> Outcome<T>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, what: impl Into<String>) -> Outcome<T> {
        self.map_err(|why| Failure::new(what).why(why))
    }
}
