//! The broker: placeholders out, credentials in.
