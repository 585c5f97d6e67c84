//! Tests that take long or much; the runner gives them a place of their own.

mod chaos;
