//! `biremectl` as a process.

mod commands;
mod local;
