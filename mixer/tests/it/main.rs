//! Mixer over its real contracts: gRPC calls, configuration from files and over MCP, metrics scraped, the real process.

mod check;
mod mcp;
mod process;
mod report;
mod server;
