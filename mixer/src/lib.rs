//! Mixer: attributes in, policy decisions and telemetry out.

mod attributes;
pub mod eval_command;
pub mod lang;
