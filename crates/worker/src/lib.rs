//! The environment worker: claims sessions from a control plane's work queue, gives each its own sandbox, runs its tool
//! calls there, and posts the results back.
//!
//! [`Options`] → [`Worker::new`] → [`Worker::run`]. The worker is a remote client of any control plane that speaks the
//! Managed Agents API, the hosted one and `palisade server` alike. It only connects outwards; in [`Mode::Webhook`] it
//! listens as well, where it is told to.
//!
//! Architecture invariant: the environment key, the sessions token and every other credential stay in this process. A
//! sandbox is described by directories, limits and a scrubbed environment, and nothing else crosses into it.

mod answer;
mod client;
mod egress;
mod hands;
mod item;
mod journal;
mod lease;
mod ledger;
mod link;
mod observe;
mod options;
mod pace;
pub mod perimeter;
mod session;
mod skills;
mod sse;
mod ssh;
mod webhook;
mod wire;
mod worker;
mod workspace;

pub use client::ClientError;
pub use egress::{
    Credentials, CredentialsError, Described, Egress, EgressOptions, IdentitiesError, IdentityConfig, OpenError,
    TokenConfig, egress_trail,
};
pub use observe::{Observation, Observer};
pub use options::{Before, Checkpoints, Mode, Options};
pub use pace::Pace;
pub use palisade_api::Secret;
pub use webhook::WebhookError;
pub use worker::{Error, Summary, Worker};
pub use workspace::checkpoints_in_use;
