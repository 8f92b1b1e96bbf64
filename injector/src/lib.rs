//! The sidecar injector: adds the proxy to pods.
//!
//! Flow: [`webhook`] (a pod in an `AdmissionReview`) or [`kube_inject`] (manifests in a file) → [`policy`] (whether) →
//! [`annotations`] (the pod's own wishes, checked) → [`template`] (what: containers and volumes, from a template that is
//! data) → [`pod`] (into the pod) with [`probe_rewrite`] (health checks through the agent) and [`metrics_merge`] (the
//! application's metrics, too) → a JSON patch.
//!
//! [`proxy_configs`] are what resources say of proxies. [`registration`] tells the API server whom to trust at the webhook. [`config`] holds what a running injector reads from files: policy and template, values, mesh configuration. The template
//! that ships is `default/config.yaml`; change what lands in a pod there, not in code.

pub mod annotations;
pub mod args;
pub mod bootstrap;
pub mod config;
pub mod kube_inject;
pub mod metrics_merge;
pub mod pod;
pub mod policy;
pub mod probe_rewrite;
pub mod program;
pub mod proxy_configs;
pub mod registration;
pub mod template;
pub mod webhook;
