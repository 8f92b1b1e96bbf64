//! The data plane: an Envoy-shaped proxy, configured by Envoy v3 messages only.
//!
//! Flow: `bootstrap` → `xds` → `config` (checked, immutable) → `listener` (accept, `listener_filter`) → `filter_chain` →
//! `transport` (raw, TLS) → `network` filters → `http` (connection manager, filters) → `router` → `upstream` (cluster, load
//! balancer, pool). Beside them `stats`, `access_log`, `admin`, `drain`.
//!
//! # Who runs what
//! The main runtime (that of [`run()`]'s caller) holds the control side: xDS streams, DNS, health checks, admin. Each worker is a
//! thread with a single-threaded runtime (`worker`), its own accept sockets and pools. They meet in immutable values behind
//! atomic pointers (`upstream::ClusterManager`, `config::RouteSlot`, a listener's configuration) and in relaxed counters.
//!
//! # The seams
//! - A network filter is a row of `network::FACTORIES`: it checks its message once (`FactoryContext` gives it statistics,
//!   clusters, routes by name, access logs) and becomes a [`network::Filter`]: either passing (`NetworkFilter`, asked once a
//!   connection) or terminal (`TerminalFilter`, takes the `listener::Connection` over).
//! - Upstream: `worker.clusters.get(name)` → `cluster.choose_host(&LoadBalancerContext)` →
//!   `worker.pools.http(..)`/`tcp(..)` → `HttpConnection::send(request)`. A connection that could not be had never eats the request.
//! - Statistics: `stat_group!` + `Scope::group`, or `Scope::counter(name)`.
//! - What was refused is an `invalid::Invalid`: path and problem, which becomes the NACK's detail.

mod access_log;
mod admin;
mod args;
mod bootstrap;
mod config;
mod drain;
mod filter_chain;
mod filter_state;
#[cfg(test)]
mod fuzz;
mod gather;
mod http;
mod invalid;
mod listener;
mod listener_filter;
mod matcher;
mod memory;
mod mixer_client;
mod network;
mod overload;
pub mod program;
mod rbac;
mod router;
mod run;
mod runtime;
mod server;
mod stats;
mod stream_info;
mod table;
mod tracing;
mod transport;
mod upstream;
mod wire;
mod worker;
mod xds;

pub use args::{Args, BootstrapSource, Mode, Options};
pub use bootstrap::{compile, precompiled};
pub use run::run;
