//! The broker: placeholders out, credentials in.
//!
//! A session's sandbox holds placeholders. On a request to a host that a credential names, its placeholder is replaced by the
//! value; anywhere else a placeholder is refused. Answers are searched for the values that were put in.
//!
//! For each intercepted request: [`Broker::inject`] before the trail's entry, then the body by [`BodyPlan`], then
//! [`Broker::answer`] with the head of the answer, then its body by [`AnswerPlan`]. An error after the head has gone means that
//! the connection to the upstream is cut: what came last was not forwarded.
//!
//! What it cannot do: a body that the client compressed is not looked into (a placeholder in it arrives as that, and is of no use
//! to anyone). An upstream that keeps what it is sent can give a value back in a way that is not looked for, or bit by bit in
//! answers that each hold less than the value: places other than headers are therefore off unless somebody enables them. Values
//! are wiped from the broker's own memory; what was handed to the HTTP stack is freed as that does.

mod answer;
mod certificate;
mod credential;
mod decode;
mod forms;
mod github_app;
mod guard;
mod inject;
mod misuse;
mod pieces;
mod placeholder;
mod redact;
mod replace;
mod scan;
mod sigv4;
mod table;

use std::fmt;
use std::sync::Arc;

pub use answer::{AnswerPlan, Expected, Scan, Seal};
pub use certificate::ClientCertificate;
pub use credential::{Credential, Exchange, HostPattern, Hosts, Kind, Places};
pub use decode::{Coding, Decoder};
pub use github_app::{Fetch, FetchError, GitHubApp};
pub use inject::Injection;
pub use misuse::{BrokerError, Misuse};
pub use placeholder::{Mint, Shape};
pub use redact::Redactor;
pub use replace::{BodyPlan, Replacer, Whole};

use crate::Authority;
use redact::Known;
use table::Table;

/// The scheme of an intercepted request, as the broker needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// Over TLS.
    Https,
    /// In the clear.
    Http,
}

/// The broker of one session.
pub struct Broker {
    session: String,
    table: Arc<Table>,
    known: Arc<Known>,
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("session", &self.session).finish_non_exhaustive()
    }
}

impl Broker {
    /// Makes the placeholders of a session. Shapes that depend on values ([`Shape::AsValue`]) are opaque: see
    /// [`Broker::prepare`].
    pub fn new(mint: &Mint, session: &str, credentials: Vec<Credential>) -> Result<Broker, BrokerError> {
        let table = Arc::new(Table::new(mint.clone(), credentials)?);
        Ok(Broker { session: session.to_owned(), table, known: Arc::new(Known::default()) })
    }

    /// As [`Broker::new`], after a look at the public prefixes of values. A value that cannot be had now gives an opaque shape.
    pub async fn prepare(mint: &Mint, session: &str, mut credentials: Vec<Credential>) -> Result<Broker, BrokerError> {
        for credential in &mut credentials {
            if credential.kind == Kind::Token(Shape::AsValue)
                && let Ok(value) = credential.value.value().await
            {
                credential.kind = Kind::Token(Shape::of(&value));
            }
        }
        Broker::new(mint, session, credentials)
    }

    /// The session's environment: variables and their placeholders.
    pub fn environment(&self) -> Vec<(String, String)> {
        self.table.environment()
    }

    /// Whether a credential, or a token that it is exchanged for, may be put in there, so that the connection must be intercepted.
    pub fn names(&self, authority: &Authority) -> bool {
        self.hosts().any(|hosts| hosts.matches(authority))
    }

    /// Where its credentials may go, and the tokens that they are exchanged for.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = &Hosts> {
        self.table.credentials().iter().flat_map(|credential| {
            let exchanged = credential.exchange.as_ref().and_then(|exchange| exchange.hosts.as_ref());
            std::iter::once(&credential.hosts).chain(exchanged)
        })
    }

    /// What takes values out of a stream. Values that are put in later are known to it, too.
    pub fn redactor(&self) -> Redactor {
        Redactor::new(Arc::clone(&self.known))
    }
}
