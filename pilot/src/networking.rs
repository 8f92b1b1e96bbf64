//! The generators: what a proxy is told, as pure functions of the proxy and the push context.
//!
//! [`View`] gathers what all generators of one proxy need; [`cluster`], [`endpoint`], [`listener`] and [`route`] build the four
//! types of resources, always sorted, so that equal inputs give equal bytes.

pub mod access_log;
pub mod bootstrap;
pub mod cluster;
pub mod endpoint;
mod envoy_filter;
pub mod extension;
pub mod listener;
pub mod name_table;
pub mod plugin;
mod provider;
pub mod route;
pub mod secret;
pub mod tls;
mod tracing;
mod view;
mod wire;

pub use view::{Instance, View};
