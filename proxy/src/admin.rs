//! The admin interface: Envoy's paths and formats, so that tools written for Envoy work.

mod server;

pub(crate) use server::{Admin, start};
