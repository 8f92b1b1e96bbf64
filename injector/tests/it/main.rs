//! The injector from outside: manifests in, manifests out (golden files; `REFRESH_GOLDEN=1` rewrites them), and the webhook.

mod golden;
mod webhook;
