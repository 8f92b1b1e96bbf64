//! Interception: sends a pod's traffic through its proxy.
//!
//! [`options`] (who is intercepted) → [`rules`] (the rules, pure) → [`program`] (into the kernel, through
//! `iptables-restore`, or `nft` where there is none). Two programs do it: `istio-iptables`, which a pod's init container runs with the flags and the
//! environment of Istio's, and `istio-cni`, which the node runs for a pod before anything of it runs (`cni`, a feature).
//! [`validation`] tries whether it worked.
//!
//! The rules are those of Istio 1.4: outbound TCP goes to the proxy's port 15001, inbound TCP to 15006; what the proxy
//! itself sends (uid 1337) and what stays on loopback is left alone. To change what is intercepted, change [`rules`]; its
//! tests compare whole tables.

#[cfg(feature = "cni")]
pub mod cni;
pub mod options;
pub mod program;
pub mod rules;
pub mod validation;
