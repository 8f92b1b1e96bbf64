//! Pilot: discovery for the proxies of the mesh.
//!
//! [`config`] (MCP, files) → [`registry`] (services and endpoints) → [`model`] (the nouns) → [`push_context`] (everything,
//! frozen) → [`networking`] (pure generators) → [`xds`] (subscriptions, debounce, push, ACK/NACK, debug).
//!
//! [`jwks`] fetches keys that only Pilot can reach.
//!
//! [`bootstrap`] puts them together for the binary `pilot-discovery`; [`features`] holds what the environment may change.
//! To add a filter to listeners, start in `networking/plugin`; to follow a new resource kind, in `config/store` (its collection),
//! `push_context` (its index) and `xds/push` (which types a change of it touches).

pub mod args;
pub mod bootstrap;
pub mod config;
pub mod features;
pub mod jwks;
pub mod metrics;
pub mod model;
pub mod networking;
pub mod program;
pub mod push_context;
pub mod registry;
pub mod request;
pub mod xds;
