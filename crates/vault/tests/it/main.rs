//! Tests of the secret sources at its boundary.

mod identity;
