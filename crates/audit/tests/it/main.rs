//! Tests of the audit trail at its boundary.
