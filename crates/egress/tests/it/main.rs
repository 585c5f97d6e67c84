//! Tests of the egress proxy at its boundary.
