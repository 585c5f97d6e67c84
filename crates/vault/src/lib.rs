//! Where secrets come from.
