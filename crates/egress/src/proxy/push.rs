//! Pushes: their commands are read before any byte goes out.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Response;
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::body::Answer;
use super::evidence::Asked;
use super::fault::Fault;
use super::requests::Told;
use super::session::Shared;
use crate::git::{self, Commands, Parser, Progress, PushRules, Refused};
use crate::policy::{Reason, Refusal, RuleName};

/// Why a push does not go out.
pub(super) enum PushError {
    /// A rule does not allow one of its commands. Git is told in its own words.
    Refused(Commands, Refused),
    /// It is no push that can be read.
    Unreadable(String),
}

/// Reads the commands of a push and checks them. Gives back what was read, to be sent first. The parser bounds how much that is.
pub(super) async fn check(
    rules: &PushRules,
    parts: &Parts,
    body: &mut Incoming,
    limit: Duration,
) -> Result<Bytes, PushError> {
    if parts.headers.get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        return Err(PushError::Unreadable("the push is compressed, so its commands cannot be read".to_owned()));
    }
    let mut parser = Parser::new();
    let mut read = BytesMut::new();
    loop {
        let frame = tokio::time::timeout(limit, body.frame()).await;
        let frame =
            frame.map_err(|_| PushError::Unreadable("the commands of the push did not come in time".to_owned()))?;
        let commands = match frame {
            None => parser.finish().map_err(|error| PushError::Unreadable(error.to_string()))?,
            Some(Err(error)) => return Err(PushError::Unreadable(format!("the push was broken off: {error}"))),
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { continue };
                read.extend_from_slice(&data);
                match parser.push(&data).map_err(|error| PushError::Unreadable(error.to_string()))? {
                    Progress::More => continue,
                    Progress::Done(commands) => commands,
                }
            }
        };
        return match rules.check_push(&commands) {
            Ok(()) => Ok(read.freeze()),
            Err(refused) => Err(PushError::Refused(commands, refused)),
        };
    }
}

impl PushError {
    /// Keeps the refusal, and says what is answered.
    pub(super) async fn keep(self, shared: &Arc<Shared>, asked: Asked, rule: &RuleName) -> Told {
        let (message, told) = match &self {
            PushError::Refused(commands, refused) => (refused.message.clone(), Some(git::refusal(commands, refused))),
            PushError::Unreadable(message) => (message.clone(), None),
        };
        let refusal = Refusal::new(Reason::PushRefused, Some(rule.clone()), message);
        let fault = shared.refuse(asked, refusal.into()).await;
        // An answer that git can read has status 200; if the trail does not answer, it is told that.
        match told.filter(|_| fault.code == Reason::PushRefused.code()) {
            Some(report) => Told::Push(answer(report, &fault)),
            None => Told::Fault(fault),
        }
    }
}

fn answer(report: Vec<u8>, fault: &Fault) -> Response<Answer> {
    let mut response = Response::new(Answer::whole(report.into()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(git::REFUSAL_CONTENT_TYPE));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(super::fault::REASON, HeaderValue::from_static(fault.code));
    response
}
