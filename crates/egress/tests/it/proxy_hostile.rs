//! What is not allowed does not go through, and is told and kept.
