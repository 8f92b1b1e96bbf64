//! Interception in real network namespaces: which connection reaches whom, with the rules programmed by `istio-iptables` and by
//! the CNI plugin behind the reference plugins.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cni;
mod interception;
mod network;
mod tools;
