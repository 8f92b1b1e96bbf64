//! Pilot as its clients see it: what is generated (golden), and what streams are sent.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod access;
mod ads;
mod bootstrap;
mod case;
mod credentials;
mod debounce;
mod envoy;
mod golden;
mod grpc;
mod handover;
mod incremental;
mod kubernetes;
mod mesh;
mod registration;
mod registries;
mod slow;
