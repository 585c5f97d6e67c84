//! The built command, as its users see it.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod heavy;
