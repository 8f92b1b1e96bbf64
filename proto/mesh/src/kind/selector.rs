//! What a policy applies to: a selector of workloads, or references to objects.

use std::collections::BTreeMap;

use proto::istio::networking::v1alpha3 as networking;
use proto::istio::r#type::v1beta1::{PolicyTargetReference, WorkloadSelector};

use crate::finding::Report;

/// How many objects a policy may be attached to.
const MAX_TARGETS: usize = 16;

/// How many labels a selector may have.
const MAX_LABELS: usize = 4096;

/// Group and kind of what policies may be attached to.
const TARGETS: [(&str, &str); 5] = [
    ("", "Service"),
    ("core", "Service"),
    ("networking.istio.io", "ServiceEntry"),
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "GatewayClass"),
];

/// Checks `selector`, `targetRef` and `targetRefs` of a policy.
pub(super) fn check_target(
    selector: Option<&WorkloadSelector>,
    target_ref: Option<&PolicyTargetReference>,
    target_refs: &[PolicyTargetReference],
    report: &mut Report,
) {
    let given = [
        selector.is_some(),
        target_ref.is_some(),
        !target_refs.is_empty(),
    ];
    if given.into_iter().filter(|given| *given).count() > 1 {
        report.error("give either selector or targetRefs, not both");
    }
    check(selector, report);
    if let Some(target) = target_ref {
        report.at("targetRef", |report| check_reference(target, report));
    }
    if target_refs.len() > MAX_TARGETS {
        report.error_at(
            "targetRefs",
            format!("at most {MAX_TARGETS} objects can be named"),
        );
    }
    report.each("targetRefs", target_refs, check_reference_item);
}

fn check_reference_item(report: &mut Report, target: &PolicyTargetReference) {
    check_reference(target, report);
}

fn check_reference(target: &PolicyTargetReference, report: &mut Report) {
    if target.name.is_empty() {
        report.error_at("name", "the name is missing");
    }
    if !target.namespace.is_empty() {
        report.error_at(
            "namespace",
            "the namespace must be left out: a policy is attached to objects of its own namespace only",
        );
    }
    if !TARGETS.contains(&(target.group.as_str(), target.kind.as_str())) {
        report.error_at(
            "kind",
            format!(
                "a policy cannot be attached to {}/{}: name a Service, a networking.istio.io ServiceEntry, or a gateway.networking.k8s.io \
                 Gateway or GatewayClass",
                target.group, target.kind
            ),
        );
    }
}

/// Checks `selector`.
pub(super) fn check(selector: Option<&WorkloadSelector>, report: &mut Report) {
    if let Some(selector) = selector {
        report.at("selector", |report| check_match_labels(selector, report));
    }
}

/// Checks the selector that the check is in.
pub(super) fn check_match_labels(selector: &WorkloadSelector, report: &mut Report) {
    check_labels("matchLabels", &selector.match_labels, report);
}

/// Checks `workloadSelector` of the networking kinds.
pub(super) fn check_workload(selector: Option<&networking::WorkloadSelector>, report: &mut Report) {
    if let Some(selector) = selector {
        report.at("workloadSelector", |report| {
            check_labels("labels", &selector.labels, report);
        });
    }
}

fn check_labels(field: &str, labels: &BTreeMap<String, String>, report: &mut Report) {
    if labels.is_empty() {
        report.warning("the selector has no labels: it selects every workload of the namespace");
    }
    if labels.len() > MAX_LABELS {
        report.error(format!("a selector can have at most {MAX_LABELS} labels"));
    }
    report.entries(field, labels, |report, key, value| {
        if key.is_empty() {
            report.error(format!("the key of the value {value:?} is empty"));
        }
        if key.contains('*') || value.contains('*') {
            report.error(format!(
                "{key}={value} has a wildcard; labels are compared as they are"
            ));
        }
    });
}

/// Checks labels that will be put on something.
pub(super) fn check_assigned(field: &str, labels: &BTreeMap<String, String>, report: &mut Report) {
    report.entries(field, labels, |report, key, value| {
        for result in [
            crate::labels::check_key(key),
            crate::labels::check_value(value),
        ] {
            report.require(result);
        }
    });
}
