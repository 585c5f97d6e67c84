//! What a push asks for.
