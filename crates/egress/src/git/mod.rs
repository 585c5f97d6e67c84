//! What a push asks for.
//!
//! `git push` over HTTPS posts a list of commands, each `old new ref`, and a pack behind it. The list is read before any byte of
//! the request goes out, and the whole push is refused if a rule does not allow one of its commands: what the user sees is what
//! git shows for a hook that declines.

mod parse;
mod report;
mod rules;

pub use parse::{Commands, GitError, Parser, Progress, RefUpdate, parse_push};
pub use report::{REFUSAL_CONTENT_TYPE, refusal};
pub use rules::{PushRules, RefPattern, RefPatternError, Refused, RefusedRef};

/// The content type of a push.
pub const PUSH_CONTENT_TYPE: &str = "application/x-git-receive-pack-request";

/// What a request asks of a git server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    /// The beginning of a clone or fetch: `GET …/info/refs?service=git-upload-pack`.
    FetchRefs,
    /// A clone or fetch: `POST …/git-upload-pack`.
    Fetch,
    /// The beginning of a push: `GET …/info/refs?service=git-receive-pack`.
    PushRefs,
    /// A push: `POST …/git-receive-pack`.
    Push,
}

/// What a path, with its query, asks of a git server, whatever the method. Encodings and case do not hide it, and neither do
/// slashes at the end: it is better to take something else for a push than the other way round.
pub fn service(path: &str) -> Option<Service> {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let plain;
    let path = if path.contains('%') {
        plain = decoded(path);
        plain.as_str()
    } else {
        path
    };
    let last = path.trim_end_matches(['/', '\\']);
    let last = last.rsplit(['/', '\\']).next().unwrap_or(last);
    let last = last.split(';').next().unwrap_or(last);
    if last.eq_ignore_ascii_case("git-receive-pack") {
        Some(Service::Push)
    } else if last.eq_ignore_ascii_case("git-upload-pack") {
        Some(Service::Fetch)
    } else if last.eq_ignore_ascii_case("refs") {
        refs(query)
    } else {
        None
    }
}

/// The service for which refs are listed. If it is written twice, a push is meant if either says so.
fn refs(query: &str) -> Option<Service> {
    let mut found = None;
    for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        if decoded(key) == "service" {
            match decoded(value).as_str() {
                "git-receive-pack" => return Some(Service::PushRefs),
                "git-upload-pack" => found = Some(Service::FetchRefs),
                _ => {}
            }
        }
    }
    found
}

/// Decoded and in lower case. What does not decode stays.
fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().to_ascii_lowercase()
}
