//! Sidecars and Telemetry objects: one without a selector for a namespace, and at most one with a selector for a pod.

use super::super::{
    Code, Context, Kind, Object,
    context::{selector_text, selects},
    message::Messages,
    object::{NAMESPACE, POD, SIDECAR, TELEMETRY, items, text, texts},
};
use serde_json::Value;
use std::collections::BTreeMap;

/// What differs between the two.
struct Scoped {
    kind: Kind,
    selector: fn(&Value) -> &Value,
    path: &'static str,
    conflict: Code,
    without_selector: Code,
}

pub(super) fn check_sidecars(context: &Context, messages: &mut Messages) {
    let scoped = Scoped {
        kind: SIDECAR,
        selector: |spec| &spec["workloadSelector"]["labels"],
        path: "spec.workloadSelector",
        conflict: Code::ConflictingSidecarWorkloadSelectors,
        without_selector: Code::MultipleSidecarsWithoutWorkloadSelectors,
    };
    check(&scoped, context, messages);
    check_ambient(context, messages);
}

pub(super) fn check_telemetries(context: &Context, messages: &mut Messages) {
    let scoped = Scoped {
        kind: TELEMETRY,
        selector: |spec| &spec["selector"]["matchLabels"],
        path: "spec.selector",
        conflict: Code::ConflictingTelemetryWorkloadSelectors,
        without_selector: Code::MultipleTelemetriesWithoutWorkloadSelectors,
    };
    check(&scoped, context, messages);
}

fn check(scoped: &Scoped, context: &Context, messages: &mut Messages) {
    let mut without: BTreeMap<&str, Vec<&Object>> = BTreeMap::new();
    let mut by_pod: BTreeMap<String, Vec<&Object>> = BTreeMap::new();
    for object in context.of(scoped.kind) {
        let selector = texts((scoped.selector)(object.spec()));
        if selector.is_empty() {
            let has_target = ["targetRef", "targetRefs"]
                .iter()
                .any(|field| !object.spec()[*field].is_null());
            if !has_target {
                without.entry(&object.namespace).or_default().push(object);
            }
            continue;
        }
        let mut pods = context
            .pods(&selector)
            .filter(|pod| pod.namespace == object.namespace)
            .peekable();
        if pods.peek().is_none() {
            let text = format!(
                "Referenced selector not found: {:?}",
                selector_text(&selector)
            );
            messages.add(Code::ReferencedResourceNotFound, object, scoped.path, text);
        }
        for pod in pods.filter(|pod| !is_ambient_pod(pod)) {
            by_pod.entry(pod.full_name()).or_default().push(object);
        }
    }
    for (namespace, objects) in without.iter().filter(|(_, objects)| objects.len() > 1) {
        for object in objects {
            let text = format!(
                "{} have no selector, in namespace {namespace}",
                names(objects)
            );
            messages.add(scoped.without_selector, object, "metadata.name", text);
        }
    }
    for (pod, objects) in by_pod.iter().filter(|(_, objects)| objects.len() > 1) {
        for object in objects {
            let text = format!("{} select the same pod {pod}", names(objects));
            messages.add(scoped.conflict, object, "metadata.name", text);
        }
    }
}

fn names(objects: &[&Object]) -> String {
    let names: Vec<&str> = objects.iter().map(|object| object.name.as_str()).collect();
    names.join(", ")
}

/// A workload in ambient mode has no sidecar to configure.
fn check_ambient(context: &Context, messages: &mut Messages) {
    for sidecar in context.of(SIDECAR) {
        let selector = texts(&sidecar.spec()["workloadSelector"]["labels"]);
        let reason = if selector.is_empty() {
            context
                .find(NAMESPACE, "", &sidecar.namespace)
                .filter(|namespace| is_ambient_namespace(namespace))
                .map(|_| "its namespace is in ambient mode")
        } else {
            context
                .of(POD)
                .find(|pod| {
                    pod.namespace == sidecar.namespace
                        && is_ambient_pod(pod)
                        && selects(&selector, &pod.labels)
                })
                .map(|_| "the workload that it selects is in ambient mode")
        };
        if let Some(reason) = reason {
            let text = format!("The Sidecar has no effect: {reason}");
            messages.add(Code::IneffectivePolicy, sidecar, "metadata.name", text);
        }
    }
}

fn is_ambient_pod(pod: &Object) -> bool {
    pod.annotations
        .get("ambient.istio.io/redirection")
        .map(String::as_str)
        == Some("enabled")
}

fn is_ambient_namespace(namespace: &Object) -> bool {
    let label = |key: &str| namespace.labels.get(key).map_or("", String::as_str);
    label("istio-injection") != "enabled"
        && label("istio.io/rev").is_empty()
        && label("istio.io/dataplane-mode") == "ambient"
}

/// Access logging that names no provider needs a default one.
pub(super) fn check_providers(context: &Context, messages: &mut Messages) {
    let defaults = &context.mesh_config()["defaultProviders"]["accessLogging"];
    if items(defaults).next().is_some() {
        return;
    }
    for telemetry in context.of(TELEMETRY) {
        for (index, logging) in items(&telemetry.spec()["accessLogging"]).enumerate() {
            let is_off = logging["disabled"] == true;
            let has_provider = items(&logging["providers"]).any(|p| !text(&p["name"]).is_empty());
            if !is_off && !has_provider {
                let path = format!("spec.accessLogging[{index}]");
                let text = "Access logging names no provider, and the mesh has no default one";
                messages.add(Code::InvalidTelemetryProvider, telemetry, &path, text);
            }
        }
    }
}
