//! Which workloads a policy is attached to: those that its selector selects, or those of the Gateways that it names.
//!
//! `targetRefs` name Gateways of Kubernetes, or services behind waypoints. A sidecar or a gateway of Istio's own kind is none
//! of them, so a policy with `targetRefs` leaves it alone, as in Istio.

use std::collections::BTreeMap;

use proto::istio::r#type::v1beta1::{PolicyTargetReference, WorkloadSelector};

use crate::config::Config;
use crate::model::Proxy;

/// The label of the workloads that serve a Gateway of Kubernetes.
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// Their kind.
const GATEWAY: (&str, &str) = ("gateway.networking.k8s.io", "Gateway");

/// A policy for some workloads.
pub(super) trait Attached {
    /// The labels of its workloads.
    fn selector(&self) -> Option<&WorkloadSelector>;
    /// What it is attached to: the old field for one, and that for several.
    fn targets(&self) -> (Option<&PolicyTargetReference>, &[PolicyTargetReference]);
}

macro_rules! attached {
    ($($kind:ty),*) => { $(
        impl Attached for $kind {
            fn selector(&self) -> Option<&WorkloadSelector> {
                self.selector.as_ref()
            }

            fn targets(&self) -> (Option<&PolicyTargetReference>, &[PolicyTargetReference]) {
                (self.target_ref.as_ref(), &self.target_refs)
            }
        }
    )* };
}

attached!(
    proto::istio::security::v1beta1::AuthorizationPolicy,
    proto::istio::security::v1beta1::RequestAuthentication,
    proto::istio::telemetry::v1alpha1::Telemetry,
    proto::istio::extensions::v1alpha1::WasmPlugin
);

/// The labels of a selector that selects something in particular.
pub(super) fn labels(selector: Option<&WorkloadSelector>) -> Option<&BTreeMap<String, String>> {
    selector
        .map(|selector| &selector.match_labels)
        .filter(|labels| !labels.is_empty())
}

/// True when the policy names what it is attached to.
pub(super) fn has_targets(policy: &impl Attached) -> bool {
    let (one, several) = policy.targets();
    one.is_some() || !several.is_empty()
}

/// True when the policy is for every workload of its namespace.
pub(super) fn is_general(policy: &impl Attached) -> bool {
    labels(policy.selector()).is_none() && !has_targets(policy)
}

/// True when `policy` is for `proxy`'s workload, provided that its namespace is.
pub(super) fn is_for(proxy: &Proxy, policy: &Config<impl Attached>) -> bool {
    let spec = &policy.spec;
    if !has_targets(spec) {
        return labels(spec.selector()).is_none_or(|labels| proxy.is_selected_by(labels));
    }
    let (one, several) = spec.targets();
    // The old field counts only where there is no list.
    let mut targets = several.iter().chain(one.filter(|_| several.is_empty()));
    policy.meta.namespace == proxy.namespace && targets.any(|target| is_gateway_of(proxy, target))
}

/// True when `target` is the Gateway that `proxy` serves.
pub(super) fn is_gateway_of(proxy: &Proxy, target: &PolicyTargetReference) -> bool {
    let is_same_namespace = target.namespace.is_empty() || target.namespace == proxy.namespace;
    is_same_namespace
        && (target.group.as_str(), target.kind.as_str()) == GATEWAY
        && proxy.labels.get(GATEWAY_NAME) == Some(&target.name)
}
