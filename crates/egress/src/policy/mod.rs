//! What may leave, decided without I/O.
