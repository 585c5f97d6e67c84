//! The six tools.
