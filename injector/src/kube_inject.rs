//! Injection into manifests in a file: every document that holds pods gets the proxy, the rest is passed through.

use serde_json::Value;

use crate::config::Settings;
use crate::pod::{self, InjectError, PROXY_CONTAINER, Workload};
use crate::policy;

/// Why a manifest cannot be injected.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not YAML.
    #[error("{file}:{error}")]
    Yaml {
        /// The file.
        file: String,
        /// Line and problem.
        error: proto::yaml::YamlError,
    },
    /// A pod in it cannot be injected.
    #[error("{file}:{line}: {kind} {name}: {error}")]
    Inject {
        /// The file.
        file: String,
        /// Line of the document.
        line: usize,
        /// The object's kind.
        kind: String,
        /// Its name.
        name: String,
        /// Why.
        error: Box<InjectError>,
    },
    /// The result cannot be written.
    #[error("write YAML: {0}")]
    Write(String),
}

/// The manifests of `text` with the proxy in every pod, as YAML. Policy and selectors do not count here: whoever runs it
/// asks for it. Pods on the host's network and pods that have a proxy already are left alone; what is left alone keeps its
/// text to the letter.
///
/// # Errors
/// The first document that is not YAML, or whose pod cannot be injected.
pub fn inject_text(settings: &Settings, file: &str, text: &str) -> Result<String, ManifestError> {
    let mut output = String::new();
    for (lines_before, part) in parts(text) {
        // Line numbers are those of the whole file.
        let placed = format!("{}{part}", "\n".repeat(lines_before));
        let Some(document) = proto::yaml::parse_documents(&placed).into_iter().next() else {
            continue;
        };
        let document = document.map_err(|error| ManifestError::Yaml {
            file: file.to_owned(),
            error,
        })?;
        let mut object = document.value.clone();
        let injected = inject_object(settings, &mut object);
        injected.map_err(|error| ManifestError::Inject {
            file: file.to_owned(),
            line: document.line,
            kind: object["kind"].as_str().unwrap_or("object").to_owned(),
            name: object["metadata"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            error: Box::new(error),
        })?;
        if !output.is_empty() {
            output.push_str("---\n");
        }
        if object == document.value {
            output.push_str(part.trim_end());
            output.push('\n');
            continue;
        }
        let yaml = proto::yaml::to_string(&object)
            .map_err(|error| ManifestError::Write(error.to_string()))?;
        output.push_str(&yaml);
    }
    Ok(output)
}

/// The text between `---` lines, each with the number of lines before it.
fn parts(text: &str) -> Vec<(usize, &str)> {
    let (mut parts, mut start, mut first_line, mut offset) = (Vec::new(), 0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        offset += line.len();
        if line.trim_end() == "---" {
            parts.push((first_line, &text[start..offset - line.len()]));
            (start, first_line) = (offset, number + 1);
        }
    }
    parts.push((first_line, &text[start..]));
    parts
}

/// Injects every pod in one object, whatever kind of object holds it.
///
/// # Errors
/// When a pod cannot be injected.
pub fn inject_object(settings: &Settings, object: &mut Value) -> Result<(), InjectError> {
    let template = match object["kind"].as_str().unwrap_or_default() {
        "List" => {
            for item in object["items"].as_array_mut().into_iter().flatten() {
                inject_object(settings, item)?;
            }
            return Ok(());
        }
        "Pod" => "",
        "Deployment"
        | "DaemonSet"
        | "ReplicaSet"
        | "StatefulSet"
        | "Job"
        | "ReplicationController"
        | "DeploymentConfig" => "/spec/template",
        "CronJob" => "/spec/jobTemplate/spec/template",
        _ => return Ok(()),
    };
    let workload = workload(object);
    let Some(pod) = object.pointer_mut(template) else {
        return Ok(());
    };
    if policy::uses_host_network(pod) || has_proxy(pod) {
        return Ok(());
    }
    *pod = pod::inject(settings, pod, &workload)?;
    Ok(())
}

fn workload(object: &Value) -> Workload {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let name = text(&object["metadata"]["name"]).unwrap_or_default();
    let namespace = text(&object["metadata"]["namespace"]).unwrap_or_else(|| "default".to_owned());
    let api_version = text(&object["apiVersion"]).unwrap_or_else(|| "v1".to_owned());
    let kind = text(&object["kind"])
        .unwrap_or_default()
        .to_ascii_lowercase();
    let owner = format!("kubernetes://apis/{api_version}/namespaces/{namespace}/{kind}s/{name}");
    Workload {
        name,
        owner,
        namespace,
    }
}

fn has_proxy(pod: &Value) -> bool {
    ["containers", "initContainers"].into_iter().any(|list| {
        let mut containers = pod["spec"][list].as_array().into_iter().flatten();
        containers.any(|container| container["name"] == PROXY_CONTAINER)
    })
}
