//! Destination rules: is the server's certificate verified, does somebody serve the host, do the subsets select pods.

use super::super::{
    Code, Context, Object,
    context::selects,
    message::Messages,
    object::{DESTINATION_RULE, NODE, POD, WORKLOAD_ENTRY, items, text, texts},
};
use serde_json::Value;
use std::collections::BTreeMap;

/// Labels that a pod's endpoint has of its node.
const TOPOLOGY: [&str; 3] = [
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.istio.io/subzone",
];

pub(super) fn check_verification(context: &Context, messages: &mut Messages) {
    for rule in context.of(DESTINATION_RULE) {
        let spec = rule.spec();
        let policy = &spec["trafficPolicy"];
        let (host, has_selector) = (text(&spec["host"]), !spec["workloadSelector"].is_null());
        if is_unverified(&policy["tls"], has_selector) {
            let text = format!(
                "TLS mode {} to {host} without caCertificates does not verify the server's certificate",
                text(&policy["tls"]["mode"])
            );
            let code = Code::NoServerCertificateVerificationDestinationLevel;
            messages.add(code, rule, "spec.trafficPolicy.tls.mode", text);
        }
        for (index, port) in items(&policy["portLevelSettings"]).enumerate() {
            if is_unverified(&port["tls"], has_selector) {
                let text = format!(
                    "TLS mode {} to port {} of {host} without caCertificates does not verify the server's certificate",
                    text(&port["tls"]["mode"]),
                    port["port"]["number"]
                );
                let path = format!("spec.trafficPolicy.portLevelSettings[{index}].tls.mode");
                let code = Code::NoServerCertificateVerificationPortLevel;
                messages.add(code, rule, &path, text);
            }
        }
    }
}

/// A secret may hold the authorities too; it is read for rules with a workload selector (and for gateways) only.
fn is_unverified(tls: &Value, has_selector: bool) -> bool {
    let has_secret = has_selector && !text(&tls["credentialName"]).is_empty();
    matches!(text(&tls["mode"]), "SIMPLE" | "MUTUAL")
        && text(&tls["caCertificates"]).is_empty()
        && !has_secret
}

pub(super) fn check_subsets(context: &Context, messages: &mut Messages) {
    let workloads = workload_labels(context);
    for rule in context.of(DESTINATION_RULE) {
        let spec = rule.spec();
        let host = text(&spec["host"]);
        let Some(served) = context.host(&rule.namespace, &spec["exportTo"], host) else {
            let text = format!("Nobody serves the host {host:?}");
            messages.add(Code::UnknownDestinationRuleHost, rule, "spec.host", text);
            continue;
        };
        for (index, subset) in items(&spec["subsets"]).enumerate() {
            let mut selector = served.selector.clone();
            selector.extend(texts(&subset["labels"]));
            let mut labels = workloads.iter().chain(&served.endpoints);
            if !labels.any(|labels| selects(&selector, labels)) {
                let text = format!(
                    "Subset {:?} of {host} selects no pod",
                    text(&subset["name"])
                );
                let path = format!("spec.subsets[{index}].labels");
                messages.add(Code::DestinationRuleSubsetNotSelectPods, rule, &path, text);
            }
        }
    }
}

/// The labels that endpoints have: of pods with their nodes' topology, and of workload entries.
fn workload_labels(context: &Context) -> Vec<BTreeMap<String, String>> {
    let of_pod = |pod: &Object| {
        let mut labels = pod.labels.clone();
        let node = text(&pod.spec()["nodeName"]);
        if let Some(found) = context.find(NODE, "", node) {
            for key in TOPOLOGY {
                if let Some(value) = found.labels.get(key) {
                    labels.insert(key.to_owned(), value.clone());
                }
            }
            labels.insert("kubernetes.io/hostname".to_owned(), node.to_owned());
        }
        labels
    };
    let entries = context
        .of(WORKLOAD_ENTRY)
        .map(|entry| texts(&entry.spec()["labels"]));
    context.of(POD).map(of_pod).chain(entries).collect()
}
