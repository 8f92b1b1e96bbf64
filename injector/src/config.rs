//! What a running injector reads from files: policy and template, values, mesh configuration. Files are checked when they
//! are read; after a change that does not fit, the last good settings stay in force.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use proto::istio::mesh::v1alpha1::{MeshConfig, ProxyConfig};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::annotations::PROXY_CONFIG;
use crate::proxy_configs::{Layers, Source};
use crate::template::{InvalidTemplate, Template};

/// Where the mesh's own resources are, if its configuration does not say.
const ROOT_NAMESPACE: &str = "istio-system";
const DEFAULT_CONFIG: &str = include_str!("../default/config.yaml");
const DEFAULT_VALUES: &str = include_str!("../default/values.yaml");

/// Where the files are; a missing path means the defaults that ship with the injector.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Policy and template.
    pub inject_config: Option<PathBuf>,
    /// Values for the template.
    pub inject_values: Option<PathBuf>,
    /// Mesh configuration.
    pub mesh_config: Option<PathBuf>,
    /// A folder with ProxyConfig resources.
    pub proxy_configs: Option<PathBuf>,
}

/// Everything that decides what injection does.
#[derive(Debug)]
pub struct Settings {
    /// Whether and what.
    pub inject: InjectConfig,
    /// The compiled template.
    pub template: Template,
    /// What the template sees as `values`.
    pub values: Value,
    /// What the template sees as `mesh`; its `defaultConfig` is `proxy`.
    pub mesh: Value,
    /// What resources say of proxies.
    pub proxy_configs: Source,
    /// Hash of all of it, written into every injected pod's status.
    pub version: String,
}

/// The file of `--injectConfig`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InjectConfig {
    /// Whether pods that say nothing are injected.
    pub policy: Policy,
    /// Pods that are injected although they say nothing and the policy is `disabled`.
    #[serde(default)]
    pub always_inject_selector: Vec<LabelSelector>,
    /// Pods that are not injected although they say nothing and the policy is `enabled`.
    #[serde(default)]
    pub never_inject_selector: Vec<LabelSelector>,
    /// Annotations that every injected pod gets.
    #[serde(default)]
    pub injected_annotations: BTreeMap<String, String>,
    /// What is added; see the default for what it sees.
    pub template: String,
}

/// Whether pods that say nothing are injected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// They are.
    Enabled,
    /// They are not.
    #[default]
    Disabled,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSettings {
    /// A file cannot be read.
    #[error("read {path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A file does not say what it should.
    #[error("{path}: {problem}")]
    Content {
        /// The file.
        path: String,
        /// Where and what.
        problem: String,
    },
    /// The template is broken.
    #[error("{path}: template: {source}")]
    Template {
        /// The file.
        path: String,
        /// Where and what.
        source: InvalidTemplate,
    },
}

impl Settings {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// The first file that cannot be used, with the line at fault.
    pub fn load(files: &Files) -> Result<Self, InvalidSettings> {
        let (config_name, config_text) = read_or(
            files.inject_config.as_deref(),
            "default config",
            DEFAULT_CONFIG,
        )?;
        let (values_name, values_text) = read_or(
            files.inject_values.as_deref(),
            "default values",
            DEFAULT_VALUES,
        )?;
        // Without one (Pilot's chart brings it) the defaults hold, until it appears.
        let mesh_config = files.mesh_config.as_deref().filter(|path| path.exists());
        let (mesh_name, mesh_text) = read_or(mesh_config, "default mesh configuration", "")?;
        let inject = parse_yaml(&config_name, &config_text)?;
        let inject: InjectConfig =
            serde_json::from_value(inject).map_err(|error| InvalidSettings::Content {
                path: config_name.clone(),
                problem: error.to_string(),
            })?;
        let template =
            Template::new(&inject.template).map_err(|source| InvalidSettings::Template {
                path: config_name.clone(),
                source,
            })?;
        let mut values = parse_yaml("default values", DEFAULT_VALUES)?;
        merge(&mut values, parse_yaml(&values_name, &values_text)?);
        let mesh = load_mesh(&mesh_name, &mesh_text)?;
        let digest = Sha256::digest(format!("{config_text}\n{values}\n{mesh}"));
        let version = digest
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Ok(Settings {
            inject,
            template,
            values,
            mesh,
            proxy_configs: files
                .proxy_configs
                .clone()
                .map_or(Source::None, Source::Folder),
            version,
        })
    }

    /// What the template sees as `proxy`: the mesh's `defaultConfig`, and over it what resources and the pod's annotation `own`
    /// say. And what the proxy's agent has to lay over the mesh's settings itself, as text.
    ///
    /// # Errors
    /// When the pod's settings are none.
    pub fn proxy(&self, own: &str, layers: &Layers) -> Result<(Value, String), InvalidSettings> {
        let checked: ProxyConfig =
            proto::yaml::from_str(own).map_err(|error| InvalidSettings::Content {
                path: format!("annotation {PROXY_CONFIG}"),
                problem: error.to_string(),
            })?;
        // Without fields that nobody has set.
        let annotated = proto::json::to_value(&checked).unwrap_or_default();
        let mut over = json!({});
        for layer in &layers.general {
            overlay(&mut over, layer);
        }
        overlay(&mut over, &annotated);
        layers
            .own
            .iter()
            .for_each(|layer| overlay(&mut over, layer));
        let mut proxy = self.mesh["defaultConfig"].clone();
        overlay(&mut proxy, &over);
        let text = if *layers == Layers::default() {
            own.to_owned()
        } else {
            over.to_string()
        };
        Ok((proxy, text))
    }

    /// What resources say of the proxy of `pod`.
    #[must_use]
    pub fn layers(&self, namespace: &str, pod: &Value) -> Layers {
        let root = self.mesh["rootNamespace"].as_str();
        let labels = &pod["metadata"]["labels"];
        let known = self.proxy_configs.load();
        known.layers(root.unwrap_or(ROOT_NAMESPACE), namespace, labels)
    }
}

/// Lays the settings `over` on those of a proxy: each replaces what was there, but of `proxyMetadata` each entry counts for itself.
fn overlay(proxy: &mut Value, over: &Value) {
    for (name, value) in over.as_object().into_iter().flatten() {
        if name == "proxyMetadata" {
            merge(&mut proxy[name], value.clone());
        } else {
            proxy[name] = value.clone();
        }
    }
}

fn load_mesh(name: &str, text: &str) -> Result<Value, InvalidSettings> {
    let content = |problem: String| InvalidSettings::Content {
        path: name.to_owned(),
        problem,
    };
    let checked: MeshConfig =
        proto::yaml::from_str(text).map_err(|error| content(error.to_string()))?;
    let mut mesh = default_mesh();
    merge(
        &mut mesh,
        proto::json::to_value(&checked).map_err(|error| content(error.to_string()))?,
    );
    Ok(mesh)
}

/// What of the mesh configuration the template may rely on.
fn default_mesh() -> Value {
    json!({
        "proxyListenPort": 15001,
        "proxyInboundListenPort": 15006,
        "trustDomain": "cluster.local",
        "defaultConfig": {
            "configPath": "/etc/istio/proxy",
            "drainDuration": "45s",
            "discoveryAddress": "istio-pilot.istio-system.svc:15010",
            "proxyAdminPort": 15000,
            "concurrency": 2,
            "interceptionMode": "REDIRECT",
        },
    })
}

fn read_or(
    path: Option<&Path>,
    name: &str,
    default: &str,
) -> Result<(String, String), InvalidSettings> {
    match path {
        None => Ok((name.to_owned(), default.to_owned())),
        Some(path) => fs::read_to_string(path)
            .map(|text| (path.display().to_string(), text))
            .map_err(|error| InvalidSettings::Read {
                path: path.to_owned(),
                error,
            }),
    }
}

fn parse_yaml(name: &str, text: &str) -> Result<Value, InvalidSettings> {
    let content = |problem: String| InvalidSettings::Content {
        path: name.to_owned(),
        problem,
    };
    match proto::yaml::parse_documents(text).into_iter().next() {
        None => Ok(Value::Null),
        Some(Ok(document)) => Ok(document.value),
        Some(Err(error)) => Err(content(error.to_string())),
    }
}

/// Lays `over` on `base`: mappings are merged, everything else replaced.
fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (_, Value::Null) => {}
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_defaults_are_sound() {
        let settings = Settings::load(&Files::default()).unwrap();
        assert_eq!(settings.inject.policy, Policy::Enabled);
        assert_eq!(
            settings.proxy("", &Layers::default()).unwrap().0["concurrency"],
            2
        );
    }

    #[test]
    fn a_pods_own_settings_are_laid_over_the_meshs() {
        let folder = tempfile::tempdir().unwrap();
        let mesh = folder.path().join("mesh");
        fs::write(&mesh, "defaultConfig: {proxyMetadata: {A: a, B: b}}\n").unwrap();
        let settings = Settings::load(&Files {
            mesh_config: Some(mesh),
            ..Files::default()
        });
        let settings = settings.unwrap();
        let own = "concurrency: 4\nproxyMetadata: {B: c}\n";
        let none = Layers::default();
        let (proxy, text) = settings.proxy(own, &none).unwrap();
        assert_eq!(text, own);
        assert_eq!(proxy["concurrency"], 4);
        assert_eq!(proxy["proxyMetadata"], json!({"A": "a", "B": "c"}));
        assert_eq!(proxy["proxyAdminPort"], 15000);
        let error = settings.proxy("concurency: 4\n", &none);
        let error = error.unwrap_err().to_string();
        assert!(
            error.starts_with("annotation proxy.istio.io/config: line 1: concurency"),
            "{error}"
        );
    }

    #[test]
    fn resources_go_below_and_above_a_pods_own_settings() {
        let settings = Settings::load(&Files::default()).unwrap();
        let layers = Layers {
            general: vec![json!({"concurrency": 1, "proxyMetadata": {"A": "mesh", "B": "mesh"}})],
            own: Some(json!({"proxyMetadata": {"C": "workload"}})),
        };
        let own = "statusPort: 1\nproxyMetadata: {B: pod, C: pod}\n";
        let (proxy, text) = settings.proxy(own, &layers).unwrap();
        let metadata = json!({"A": "mesh", "B": "pod", "C": "workload"});
        assert_eq!(
            (&proxy["concurrency"], &proxy["proxyMetadata"]),
            (&json!(1), &metadata)
        );
        let over = json!({"concurrency": 1, "statusPort": 1, "proxyMetadata": metadata});
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), over);
    }

    #[test]
    fn a_wrong_file_is_named_with_the_line() {
        let folder = tempfile::tempdir().unwrap();
        let mesh = folder.path().join("mesh");
        fs::write(&mesh, "trustDomain: x\nproxyListenPort: many\n").unwrap();
        let files = Files {
            mesh_config: Some(mesh),
            ..Files::default()
        };
        let error = Settings::load(&files).unwrap_err().to_string();
        assert!(error.contains("mesh: line 2: proxyListenPort"), "{error}");
    }
}
