//! The agent as the pod sees it: certificates from a pretended Citadel, and the real binary beside a pretended proxy.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod binary;
mod citadel;
mod envoy;
mod health;
mod mounted;
mod patches;
mod pilot;
mod rotation;
