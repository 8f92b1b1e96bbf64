//! Mixer: attributes in, policy decisions (Check) and telemetry (Report) out. One binary, deployed twice.
//!
//! [`server`] (gRPC, load shedding) → [`attributes`] (read in place) → [`routing`] (rules of the request's namespace, their
//! conditions in [`lang`]) → [`template`] (instances) → [`handler`]s ([`adapter`]) → [`dispatch`] combines what they say.
//!
//! Configuration comes the other way: [`store`] (MCP, files) → [`config`] (a snapshot; what is wrong is left out and reported)
//! → [`runtime`] (handlers, routing table, swapped whole). [`debug`] shows it, [`metrics`] counts, [`bootstrap`] puts all
//! together; [`seldom`] keeps logs short. [`eval_command`] runs the language alone, [`client_command`] calls a server, both with [`attribute_args`].

mod adapter;
pub mod args;
pub mod attribute_args;
mod attributes;
pub mod bootstrap;
pub mod client_command;
mod config;
mod debug;
mod dispatch;
pub mod eval_command;
mod handler;
mod lang;
pub mod load_shed;
mod metrics;
mod pods;
pub mod probe;
pub mod program;
mod routing;
mod runtime;
mod seldom;
mod server;
mod store;
mod template;
