//! The nouns of the mesh, pure: no IO, no clock, no state. Every component speaks of configuration in these words.
//!
//! wire message → [`kind`] (its rules) → [`resource::Checked`] → the rest of a component.
//!
//! - [`kind`]: the rules of every kind, one file each, and one table from [`proto::kind::Kind`] to them.
//! - [`resource`]: metadata, and the proof that a message was checked; [`finding`]: what a check found, with field paths.
//! - [`host`], [`labels`], [`port`], [`protocol`], [`visibility`], [`locality`]: the small words of configuration.
//! - [`re2`]: regular expressions as configuration writes them; [`json_struct`]: `google.protobuf.Struct` as JSON.
//! - [`spiffe`], [`node`]: names of workloads and of proxies; [`jwt`]: tokens, and the keys that verify them.
//! - [`mesh_config`]: the settings of the whole mesh with their defaults.
//! - `kubernetes` (a feature): Kubernetes services as service entries.
//! - [`attribute`]: what Mixer and the proxy tell each other about a request.
//!
//! To add a kind: its message in `proto/protos`, a row in [`proto::kind::KINDS`], a file in `kind/`, a row in `kind.rs`.

pub mod attribute;
pub mod finding;
pub mod host;
pub mod json_struct;
pub mod jwt;
pub mod kind;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod labels;
pub mod locality;
pub mod mesh_config;
pub mod node;
pub mod port;
pub mod protocol;
pub mod re2;
pub mod resource;
pub mod spiffe;
pub mod visibility;

pub use finding::{Finding, Findings, Severity, Topic};
pub use resource::{Checked, Invalid, Metadata, Warnings};
