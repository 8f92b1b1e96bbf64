//! Mixer over its real contracts: gRPC calls, configuration from files and over MCP, metrics scraped, the real process.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod adapters;
mod check;
mod collectors;
mod exactness;
mod foreign;
mod generators;
mod mcp;
mod otlp;
mod outputs;
mod process;
mod report;
mod secured;
mod server;
mod templates;
mod transport;
