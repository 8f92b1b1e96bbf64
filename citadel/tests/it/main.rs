//! Citadel as its peers see it: the services in process, and the real binary killed and started again.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod attacks;
mod binary;
mod csr_service;
mod kubernetes;
mod memory;
mod service;
mod trust;
