//! The process in the pod: `pilot-agent`.
//!
//! Flow: [`args`], [`features`] → [`settings`] and [`node`] → [`bootstrap`] → token → [`citadel_client`] (CSR) →
//! [`rotation`] (certificates) and [`trust`] (roots, revocations), or [`mounted`] (both, from files), fill the [`secret_cache`] →
//! [`sds`] serves it to the proxy over a Unix socket. [`agent`] starts them all, then the proxy: `in_process`, or another program under the [`supervisor`]. Beside them [`status`] (probes), [`dns`] (names), [`mod@drain`], [`request`].
//!
//! - What the proxy is told at its start: `bootstrap/`.
//! - Another source of secrets: fill [`secret_cache`].

pub mod admin;
pub mod agent;
pub mod args;
pub mod bootstrap;
pub mod citadel_client;
pub mod credentials;
pub mod discovery;
pub mod dns;
pub mod drain;
pub mod features;
pub mod health;
mod in_process;
pub mod mounted;
pub mod node;
pub mod offload;
pub mod program;
pub mod request;
pub mod rotation;
pub mod sds;
pub mod secret;
pub mod secret_cache;
pub mod settings;
pub mod status;
pub mod supervisor;
pub mod trust;
pub mod wait;
