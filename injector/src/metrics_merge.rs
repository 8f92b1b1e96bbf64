//! The application's metrics through the agent, together with the proxy's: Prometheus has no certificate, and one page a pod is
//! all that `prometheus.io` annotations can name. A pod that has them is given others that lead to the agent, which is told where
//! the application's are.

use serde_json::{Map, Value, json};

use crate::annotations::MERGE_METRICS;
use crate::config::Settings;
use crate::pod::{PROXY_CONTAINER, object, object_in};
use crate::probe_rewrite::{add_variable, status_port, variables};
use crate::template::Injection;

/// Environment variable of the proxy's container: the pod's own annotations.
const ORIGINAL: &str = "ISTIO_PROMETHEUS_ANNOTATIONS";
const SCRAPE: &str = "prometheus.io/scrape";
const PORT: &str = "prometheus.io/port";
const PATH: &str = "prometheus.io/path";
const PAGE: &str = "/stats/prometheus";

/// Leads Prometheus to the agent where `pod` asks to be scraped, and tells the proxy of `injection` where the application's
/// metrics are.
pub fn merge(settings: &Settings, pod: &mut Value, injection: &mut Injection) {
    let annotations = &pod["metadata"]["annotations"];
    let is_wanted = annotations[SCRAPE] == "true"
        && annotations[MERGE_METRICS] != "false"
        && settings.mesh["enablePrometheusMerge"] != false;
    if !is_wanted {
        return;
    }
    let mut containers = injection.containers.iter_mut();
    let Some(proxy) = containers.find(|container| container["name"] == PROXY_CONTAINER) else {
        return;
    };
    let Some(port) = status_port(proxy) else {
        return;
    };
    let port = port.to_string();
    // The user has led it there already.
    if annotations[PORT] == port.as_str() {
        return;
    }
    let mut original = Map::new();
    for (name, key) in [("scrape", SCRAPE), ("path", PATH), ("port", PORT)] {
        if let Some(value) = annotations[key].as_str() {
            original.insert(name.to_owned(), json!(value));
        }
    }
    add_variable(proxy, ORIGINAL, &Value::Object(original).to_string());
    let annotations = object_in(object(pod, "metadata"), "annotations");
    annotations.insert(PORT.to_owned(), json!(port));
    annotations.insert(PATH.to_owned(), json!(PAGE));
}

/// Gives the pod its own annotations back, from what the proxy of an earlier injection was told about them.
pub fn restore(pod: &mut Value) {
    let original = variables(pod, ORIGINAL).last();
    let Some(Ok(Value::Object(original))) = original.map(|text| serde_json::from_str(&text)) else {
        return;
    };
    let annotations = object_in(object(pod, "metadata"), "annotations");
    for (name, key) in [("path", PATH), ("port", PORT)] {
        match original.get(name) {
            Some(value) => annotations.insert(key.to_owned(), value.clone()),
            None => annotations.remove(key),
        };
    }
}
