//! Fakes of everything a Palisade process talks to, for tests only.

pub mod control_plane;
pub mod messages_server;
pub mod secrets;
pub mod storage;
