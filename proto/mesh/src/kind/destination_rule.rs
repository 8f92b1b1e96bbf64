//! Rules of DestinationRule: policies of a host, and its subsets.

use std::collections::HashSet;

use proto::istio::networking::v1alpha3::DestinationRule;

use crate::finding::Report;
use crate::host;
use crate::kind::{destination, export_to, selector, traffic_policy};
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(spec: &DestinationRule, meta: &Metadata, report: &mut Report) {
    report.require_at("host", host::check(&spec.host));
    traffic_policy::check(spec.traffic_policy.as_ref(), report);
    let mut names = HashSet::new();
    report.each("subsets", &spec.subsets, |report, subset| {
        report.require_at("name", destination::check_subset_name(&subset.name));
        if !names.insert(subset.name.clone()) {
            report.error_at("name", format!("there are two subsets {:?}", subset.name));
        }
        selector::check_assigned("labels", &subset.labels, report);
        traffic_policy::check(subset.traffic_policy.as_ref(), report);
    });
    export_to::check(&spec.export_to, meta, false, report);
    if let Some(workloads) = &spec.workload_selector {
        check_is_private(spec, meta, report);
        report.at("workloadSelector", |report| {
            selector::check_match_labels(workloads, report);
        });
    }
}

/// A rule for some client workloads works in its own namespace only.
fn check_is_private(spec: &DestinationRule, meta: &Metadata, report: &mut Report) {
    let is_own = |entry: &String| entry == "." || *entry == meta.namespace;
    let is_private = match spec.export_to.as_slice() {
        [] => true,
        [entry] => is_own(entry),
        _ => false,
    };
    if !is_private {
        report.error_at(
            "exportTo",
            "with workloadSelector the rule cannot be exported: give `.` or leave exportTo out",
        );
    }
}
