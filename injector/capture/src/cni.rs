//! The CNI plugin: has a pod's traffic intercepted by the node, so that the pod needs no privilege for it.
//!
//! The container runtime calls `istio-cni` for every pod, after the plugins that made its network: [`request`] (what it asks) →
//! [`pod`] (whether and what, of the pod as the API server knows it) → [`plugin`] (the rules, inside the pod's network
//! namespace) → [`answer`]. Beside it, run by the DaemonSet on every node: [`installer`] (puts the plugin onto the node, into
//! the [`conflist`] that is there, and takes it out again) and [`repair`] (pods that started before the plugin was there).

pub mod answer;
pub mod conflist;
pub mod installer;
pub mod plugin;
pub mod pod;
pub mod repair;
pub mod request;
