//! The injector from outside: manifests in, manifests out (golden files; `REFRESH_GOLDEN=1` rewrites them), and the webhook.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden;
mod kinds;
mod webhook;
