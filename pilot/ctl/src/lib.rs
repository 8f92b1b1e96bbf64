//! `biremectl`: the user's command line, and the mesh on one machine.
//!
//! [`args`] (what the user says) → one file for each command: [`local`] (the mesh on one machine), [`proxy_status`],
//! [`proxy_config`], [`analyze`], [`kube_inject`], [`version`]; and for a Kubernetes cluster [`manifest`], [`profile`],
//! [`verify_install`], [`upgrade`], [`uninstall`]. Tables, JSON and YAML come from the same rows ([`table`]).

pub mod analyze;
pub mod args;
pub mod kube_inject;
pub mod local;
pub mod manifest;
pub mod profile;
pub mod proxy_config;
pub mod proxy_status;
pub mod table;
pub mod uninstall;
pub mod upgrade;
pub mod verify_install;
pub mod version;

pub use args::run;
