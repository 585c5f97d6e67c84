//! The resolver: synthetic addresses for names that are allowed.
