//! Puts an [`Injection`] into a pod, and takes an earlier one out first.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::annotations::{self, InvalidAnnotation, REWRITE_PROBES, STATUS};
use crate::config::Settings;
use crate::metrics_merge;
use crate::probe_rewrite;
use crate::template::{Injection, RenderError};

/// The container that the template calls the proxy.
pub const PROXY_CONTAINER: &str = "istio-proxy";
/// Group of the proxy, which must be able to read the token.
const PROXY_GROUP: u32 = 1337;
/// How often the kubelet asks a native sidecar whether it is up, before it starts it anew.
const STARTUP_ATTEMPTS: u32 = 600;
/// Tells clients that this pod takes mutual TLS.
const TLS_MODE: &str = "security.istio.io/tlsMode";
/// The lists of a pod that an injection adds to.
const LISTS: &[&str] = &[
    "initContainers",
    "containers",
    "volumes",
    "imagePullSecrets",
];

/// What owns a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// Name of the Deployment (or the like), or of the pod itself.
    pub name: String,
    /// `kubernetes://apis/apps/v1/namespaces/NS/deployments/NAME`.
    pub owner: String,
    /// Namespace.
    pub namespace: String,
}

/// Why a pod cannot be injected.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// The pod asks for something that cannot be meant.
    #[error(transparent)]
    Annotation(#[from] InvalidAnnotation),
    /// The template fails on this pod.
    #[error(transparent)]
    Template(#[from] RenderError),
    /// The object is no pod.
    #[error("it is no pod: it has no spec.containers")]
    NoPod,
}

/// The pod with the proxy in it.
///
/// # Errors
/// When the pod or the template does not allow it.
pub fn inject(settings: &Settings, pod: &Value, workload: &Workload) -> Result<Value, InjectError> {
    if !pod["spec"]["containers"].is_array() {
        return Err(InjectError::NoPod);
    }
    let mut pod = pod.clone();
    remove_earlier(&mut pod);
    for unknown in annotations::check(&pod["metadata"]["annotations"])? {
        tracing::warn!(
            annotation = unknown,
            workload = workload.name,
            "unknown annotation"
        );
    }
    let mut injection = settings.template.render(settings, &pod, workload)?;
    let wish = pod["metadata"]["annotations"][REWRITE_PROBES].as_str();
    if wish.map_or(injection.rewrite_app_http_probe, |wish| wish == "true") {
        probe_rewrite::rewrite(&mut pod, &mut injection);
    }
    metrics_merge::merge(settings, &mut pod, &mut injection);
    if injection.native_sidecar {
        make_native(&mut injection);
    }
    let mut redirect = std::mem::take(&mut injection.redirect_annotations);
    redirect.retain(|key, _| pod["metadata"]["annotations"][key].is_null());
    let mut status = status(settings, &injection);
    if !redirect.is_empty() {
        status["annotations"] = redirect.keys().cloned().collect();
    }
    add(&mut pod, injection);
    let metadata = object(&mut pod, "metadata");
    let annotations = object_in(metadata, "annotations");
    annotations.insert(STATUS.to_owned(), Value::String(status.to_string()));
    annotations.extend(redirect.into_iter().map(|(key, value)| (key, json!(value))));
    for (key, value) in &settings.inject.injected_annotations {
        annotations
            .entry(key.clone())
            .or_insert_with(|| json!(value));
    }
    object_in(metadata, "labels")
        .entry(TLS_MODE)
        .or_insert_with(|| json!("istio"));
    Ok(pod)
}

/// What owns `pod`: its controller, where a ReplicaSet stands for the Deployment that made it.
#[must_use]
pub fn workload_of(pod: &Value, namespace: &str) -> Workload {
    let metadata = &pod["metadata"];
    let owners = metadata["ownerReferences"].as_array();
    let controller =
        owners.and_then(|owners| owners.iter().find(|owner| owner["controller"] == true));
    let (api_version, kind, name) = match controller {
        Some(owner) => {
            let (kind, name) = (text(&owner["kind"]), text(&owner["name"]));
            let hash = metadata["labels"]["pod-template-hash"].as_str();
            match hash.and_then(|hash| name.strip_suffix(&format!("-{hash}"))) {
                Some(deployment) if kind == "ReplicaSet" => {
                    ("apps/v1", "deployment".to_owned(), deployment.to_owned())
                }
                _ => (
                    owner["apiVersion"].as_str().unwrap_or("v1"),
                    kind.to_ascii_lowercase(),
                    name,
                ),
            }
        }
        None => ("v1", "pod".to_owned(), own_name(metadata)),
    };
    let owner = format!("kubernetes://apis/{api_version}/namespaces/{namespace}/{kind}s/{name}");
    Workload {
        name,
        owner,
        namespace: namespace.to_owned(),
    }
}

fn own_name(metadata: &Value) -> String {
    let generated = || {
        text(&metadata["generateName"])
            .trim_end_matches('-')
            .to_owned()
    };
    metadata["name"]
        .as_str()
        .map_or_else(generated, str::to_owned)
}

/// Makes the containers init containers that stay. What waits for them to be up is the kubelet.
fn make_native(injection: &mut Injection) {
    for mut container in std::mem::take(&mut injection.containers) {
        container["restartPolicy"] = json!("Always");
        if container["startupProbe"].is_null() && container["readinessProbe"].is_object() {
            container["startupProbe"] = container["readinessProbe"].clone();
            container["startupProbe"]["failureThreshold"] = json!(STARTUP_ATTEMPTS);
        }
        injection.init_containers.push(container);
    }
}

/// Takes out what an earlier injection added, by its own record of it.
fn remove_earlier(pod: &mut Value) {
    let record = pod["metadata"]["annotations"][STATUS]
        .as_str()
        .unwrap_or_default();
    let Ok(record) = serde_json::from_str::<Value>(record) else {
        return;
    };
    probe_rewrite::restore(pod);
    metrics_merge::restore(pod);
    for list in LISTS {
        let added = &record[*list];
        let items = pod["spec"].get_mut(*list).and_then(Value::as_array_mut);
        if let (Some(added), Some(items)) = (added.as_array(), items) {
            items.retain(|item| !added.contains(&item["name"]));
        }
    }
    if let Some(annotations) = pod["metadata"]["annotations"].as_object_mut() {
        let added = record["annotations"].as_array().into_iter().flatten();
        for key in added.filter_map(Value::as_str).chain([STATUS]) {
            annotations.remove(key);
        }
    }
    let labels = pod["metadata"].get_mut("labels");
    if let Some(labels) = labels.and_then(Value::as_object_mut)
        && labels.get(TLS_MODE).is_some_and(|mode| mode == "istio")
    {
        labels.remove(TLS_MODE);
    }
}

fn status(settings: &Settings, injection: &Injection) -> Value {
    let names = |items: &[Value]| {
        items
            .iter()
            .map(|item| item["name"].clone())
            .collect::<Vec<_>>()
    };
    json!({
        "version": settings.version,
        "initContainers": names(&injection.init_containers),
        "containers": names(&injection.containers),
        "volumes": names(&injection.volumes),
        "imagePullSecrets": names(&injection.image_pull_secrets),
    })
}

fn add(pod: &mut Value, injection: Injection) {
    let spec = object(pod, "spec");
    let comes_first = |list: &str| match list {
        "initContainers" => injection.native_sidecar,
        "containers" => injection.hold_application_until_proxy_starts,
        _ => false,
    };
    let first: Vec<bool> = LISTS.iter().map(|list| comes_first(list)).collect();
    let additions = [
        injection.init_containers,
        injection.containers,
        injection.volumes,
        injection.image_pull_secrets,
    ];
    for ((list, added), is_first) in LISTS.iter().zip(additions).zip(first) {
        if added.is_empty() {
            continue;
        }
        match spec.entry(*list).or_insert_with(|| json!([])) {
            Value::Array(items) if is_first => drop(items.splice(0..0, added)),
            Value::Array(items) => items.extend(added),
            other => *other = Value::Array(added),
        }
    }
    if let Some(dns) = injection.dns_config {
        spec.entry("dnsConfig").or_insert(dns);
    }
    // The token's volume is root's; the proxy reads it through its group.
    object_in(spec, "securityContext")
        .entry("fsGroup")
        .or_insert_with(|| json!(PROXY_GROUP));
}

/// The object below `key`, made if it is not there.
pub(crate) fn object<'a>(value: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    if !value.is_object() {
        *value = json!({});
    }
    match value {
        Value::Object(map) => object_in(map, key),
        _ => unreachable!("it was made an object above"),
    }
}

/// The same of a map.
pub(crate) fn object_in<'a>(
    map: &'a mut Map<String, Value>,
    key: &str,
) -> &'a mut Map<String, Value> {
    let entry = map.entry(key).or_insert_with(|| json!({}));
    if !entry.is_object() {
        *entry = json!({});
    }
    match entry {
        Value::Object(map) => map,
        _ => unreachable!("it was made an object above"),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
