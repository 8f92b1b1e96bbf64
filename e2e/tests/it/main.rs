//! End-to-end tests: the mesh as its users see it, through the real processes. Those that need network namespaces are
//! ignored by default and run by name in `e2e/test.sh`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod graph;
