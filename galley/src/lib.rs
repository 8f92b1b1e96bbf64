//! Galley: the mesh's configuration, from files to those who act on it.
//!
//! [`source`] (YAML files → checked objects) → [`event`] → [`processor`] (what is in force, what is rejected) →
//! [`transform`] (objects → collections) → [`snapshot`] (immutable, kept over restarts) → [`server`] (MCP).
//! Beside it [`validation`]: the same checks as a library, a command and an admission webhook; [`analysis`]: mistakes that
//! no object shows alone; [`crds`]: the kinds' definitions for an API server; [`debug`] shows all of it.
//!
//! A new kind is a row in `proto::kind` (or [`schema`]); a new way to make a collection is a file in [`transform`];
//! another place to read from is a file in [`source`].

pub mod analysis;
pub mod args;
pub mod bootstrap;
pub mod crds;
pub mod debug;
pub mod event;
pub mod ingress_status;
pub mod metrics;
pub mod probe;
pub mod processor;
pub mod program;
pub mod schema;
pub mod server;
pub mod snapshot;
pub mod source;
pub mod transform;
pub mod validation;
