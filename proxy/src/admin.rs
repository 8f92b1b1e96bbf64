//! The admin interface: Envoy's paths and formats, so that tools written for Envoy work.
//!
//! `server` takes requests and finds the handler in one table; each handler makes its answer from a snapshot.

mod certs;
mod clusters;
mod config_dump;
mod control;
mod listeners;
mod server;
mod stats;

pub(crate) use control::resident_bytes;
pub(crate) use server::{Admin, start};
