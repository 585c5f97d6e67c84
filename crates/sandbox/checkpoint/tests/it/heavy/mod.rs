//! Tests that need the machine to themselves.
