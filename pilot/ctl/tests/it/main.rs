//! `biremectl` as a process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod commands;
mod local;
