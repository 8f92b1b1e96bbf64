//! Injection: do namespaces say what they want, did their pods get it, and is it what they would get now.

use super::super::{
    Code, Context, Object,
    context::{
        CONTROL_PLANE, PROXY_CONTAINER, is_system_namespace, label_selector_selects, proxy_image,
    },
    message::Messages,
    object::{CONFIG_MAP, DEPLOYMENT, MUTATING_WEBHOOK, NAMESPACE, POD, items, text, texts},
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};

const INJECTION: &str = "istio-injection";
const REVISION: &str = "istio.io/rev";
const INJECT: &str = "sidecar.istio.io/inject";
const INJECTOR: &str = "istio-sidecar-injector";
/// The image that stands for the one of the injector.
const AUTO: &str = "auto";

pub(super) fn check(context: &Context, messages: &mut Messages) {
    let mut injected = BTreeSet::new();
    for namespace in context.of(NAMESPACE) {
        let name = namespace.name.as_str();
        if name != CONTROL_PLANE
            && !is_system_namespace(name)
            && is_injected(context, namespace, messages)
        {
            injected.insert(name);
        }
    }
    for pod in context.of(POD) {
        let said = pod
            .labels
            .get(INJECT)
            .or_else(|| pod.annotations.get(INJECT));
        let is_excused = said.is_some_and(|said| said.eq_ignore_ascii_case("false"))
            || pod.spec()["hostNetwork"] == true;
        if injected.contains(pod.namespace.as_str())
            && !is_excused
            && proxy_image(pod.spec()).is_none()
        {
            let text = format!(
                "Pod {} has no proxy; restart it to have it injected",
                pod.full_name()
            );
            messages.add(Code::PodMissingProxy, pod, "metadata.name", text);
        }
    }
}

/// Whether the namespace asks for injection; says so where it contradicts itself or says nothing.
fn is_injected(context: &Context, namespace: &Object, messages: &mut Messages) -> bool {
    let path = "metadata.name";
    let label = namespace.labels.get(INJECTION).map_or("", String::as_str);
    let revision = namespace.labels.get(REVISION);
    let mut contradictions: Vec<&str> = Vec::new();
    if !label.is_empty() {
        contradictions.push(INJECTION);
    }
    if revision.is_some() {
        contradictions.push(REVISION);
    }
    let mode = "istio.io/dataplane-mode";
    let is_ambient = namespace.labels.get(mode).map(String::as_str) == Some("ambient");
    if is_ambient {
        contradictions.push(mode);
    }
    if contradictions.len() > 1 {
        let text = format!(
            "The labels {} contradict each other",
            contradictions.join(", ")
        );
        messages.add(
            Code::NamespaceMultipleInjectionLabels,
            namespace,
            path,
            text,
        );
        return false;
    }
    if is_ambient {
        return false;
    }
    if label.is_empty() && revision.is_none() {
        if injects_by_default(context) {
            let text = "The namespace says nothing about injection, which is on by default";
            messages.add(
                Code::NamespaceInjectionEnabledByDefault,
                namespace,
                path,
                text,
            );
        } else {
            let text = format!(
                "The namespace is not enabled for injection: label it {INJECTION}=enabled, or {INJECTION}=disabled to say that it is meant"
            );
            messages.add(Code::NamespaceNotInjected, namespace, path, text);
        }
        return false;
    }
    revision.is_some() || label == "enabled"
}

/// The injector's values, by the name of its ConfigMap.
fn values(context: &Context) -> HashMap<&str, Value> {
    context
        .of(CONFIG_MAP)
        .filter(|map| map.name.starts_with(INJECTOR))
        .filter_map(|map| {
            let values = text(&map.value["data"]["values"]);
            Some((map.name.as_str(), serde_json::from_str(values).ok()?))
        })
        .collect()
}

fn injects_by_default(context: &Context) -> bool {
    values(context)
        .get(INJECTOR)
        .is_some_and(|values| values["sidecarInjectorWebhook"]["enableNamespacesByDefault"] == true)
}

pub(super) fn check_images(context: &Context, messages: &mut Messages) {
    let values = values(context);
    if values.is_empty() {
        return;
    }
    let mut mismatched: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for pod in context.of(POD) {
        if pod.annotations.contains_key("sidecar.istio.io/proxyImage") {
            continue;
        }
        let Some(namespace) = context.find(NAMESPACE, "", &pod.namespace) else {
            continue;
        };
        let injector = match namespace.labels.get(REVISION).map(String::as_str) {
            None if namespace.labels.get(INJECTION).map(String::as_str) != Some("enabled") => {
                continue;
            }
            None | Some("" | "default") => INJECTOR.to_owned(),
            Some(revision) => format!("{INJECTOR}-{revision}"),
        };
        let Some(wanted) = values.get(injector.as_str()).map(image) else {
            continue;
        };
        if proxy_image(pod.spec()).is_some_and(|image| image != wanted) {
            mismatched
                .entry(&pod.namespace)
                .or_default()
                .push(&pod.name);
        }
    }
    for (name, pods) in mismatched {
        if let Some(namespace) = context.find(NAMESPACE, "", name) {
            let text = format!(
                "Pods run another proxy than injection would give them now: {}",
                pods.join(", ")
            );
            let code = Code::PodsIstioProxyImageMismatchInNamespace;
            messages.add(code, namespace, "metadata.name", text);
        }
    }
}

fn image(values: &Value) -> String {
    let global = &values["global"];
    let image = text(&global["proxy"]["image"]);
    if image.contains('/') {
        return image.to_owned();
    }
    let tag = match &global["tag"] {
        Value::String(tag) => tag.clone(),
        other => other.to_string(),
    };
    format!("{}/{image}:{tag}", text(&global["hub"]))
}

pub(super) fn check_auto_images(context: &Context, messages: &mut Messages) {
    for pod in context.of(POD).filter(|pod| has_auto_image(pod.spec())) {
        let text = format!("Pod {} has the image `auto`: it was not injected", pod.name);
        messages.add(
            Code::ImageAutoWithoutInjectionError,
            pod,
            "spec.containers",
            text,
        );
    }
    let webhooks: Vec<&Value> = context
        .of(MUTATING_WEBHOOK)
        .flat_map(|configuration| items(&configuration.value["webhooks"]))
        .filter(|webhook| text(&webhook["name"]).ends_with("istio.io"))
        .collect();
    for deployment in context.of(DEPLOYMENT) {
        let template = &deployment.spec()["template"];
        if !has_auto_image(&template["spec"]) {
            continue;
        }
        let namespace = match deployment.namespace.as_str() {
            "" => "default",
            namespace => namespace,
        };
        let namespace = context.find(NAMESPACE, "", namespace);
        let of_namespace = namespace.map(|n| n.labels.clone()).unwrap_or_default();
        let labels = texts(&template["metadata"]["labels"]);
        let is_injected = webhooks.iter().any(|webhook| {
            label_selector_selects(&webhook["namespaceSelector"], &of_namespace)
                && label_selector_selects(&webhook["objectSelector"], &labels)
        });
        if !is_injected {
            let text = format!(
                "Deployment {} has the image `auto`, but no webhook injects its pods",
                deployment.name
            );
            let code = Code::ImageAutoWithoutInjectionWarning;
            messages.add(code, deployment, "spec.template.spec.containers", text);
        }
    }
}

fn has_auto_image(pod: &Value) -> bool {
    items(&pod["containers"])
        .any(|container| container["name"] == PROXY_CONTAINER && container["image"] == AUTO)
}
