//! The proxy: connections in, connections out.
