//! Interception: sends a pod's traffic through its proxy.
//!
//! [`options`] (who is intercepted) → [`rules`] (the rules, pure) → [`program`] (into the kernel, through
//! `iptables-restore`). `istio-iptables` is the small binary that a pod's init container runs; it takes the flags and the
//! environment of Istio's.
//!
//! The rules are those of Istio 1.4: outbound TCP goes to the proxy's port 15001, inbound TCP to 15006; what the proxy
//! itself sends (uid 1337) and what stays on loopback is left alone. To change what is intercepted, change [`rules`]; its
//! tests compare whole tables.

pub mod options;
pub mod program;
pub mod rules;
