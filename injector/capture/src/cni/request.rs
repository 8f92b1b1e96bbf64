//! What the runtime asks of the plugin: its environment, and the configuration on standard input.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use crate::cni::answer::{CniError, VERSIONS};

/// The environment that a runtime calls a plugin with.
#[derive(Clone, Debug, Default, Args)]
pub struct Environment {
    /// What to do.
    #[arg(long = "cni-command", env = "CNI_COMMAND", hide = true)]
    pub command: Option<String>,
    /// For which container.
    #[arg(
        long = "cni-containerid",
        env = "CNI_CONTAINERID",
        hide = true,
        default_value = ""
    )]
    pub container: String,
    /// Its network namespace, a file.
    #[arg(long = "cni-netns", env = "CNI_NETNS", hide = true, default_value = "")]
    pub network_namespace: String,
    /// `K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;…`.
    #[arg(long = "cni-args", env = "CNI_ARGS", hide = true, default_value = "")]
    pub arguments: String,
}

impl Environment {
    /// The network namespace, where the runtime names one.
    #[must_use]
    pub fn network_namespace(&self) -> Option<PathBuf> {
        (!self.network_namespace.is_empty()).then(|| PathBuf::from(&self.network_namespace))
    }

    /// The pod's namespace and name, where it is a pod.
    #[must_use]
    pub fn pod(&self) -> Option<(&str, &str)> {
        let pairs: BTreeMap<&str, &str> = self
            .arguments
            .split(';')
            .filter_map(|pair| pair.split_once('='))
            .collect();
        let text = |key| pairs.get(key).copied().filter(|text| !text.is_empty());
        Some((text("K8S_POD_NAMESPACE")?, text("K8S_POD_NAME")?))
    }
}

/// The plugin's part of the network's configuration, with what the runtime adds. Keys of others are none of our business.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkConfig {
    /// Version of the specification.
    #[serde(default)]
    pub cni_version: String,
    /// What the plugin before has done.
    #[serde(default)]
    pub prev_result: Option<Value>,
    /// How much is said on standard error: `error`, `warn`, `info` or `debug`.
    #[serde(default, rename = "log_level")]
    pub log_level: Option<String>,
    /// Where the pods are known.
    #[serde(default)]
    pub kubernetes: Kubernetes,
}

/// Where the pods are known, and which are none of ours.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Kubernetes {
    /// A kubeconfig file that may read pods.
    #[serde(default)]
    pub kubeconfig: PathBuf,
    /// Namespaces whose pods are left alone without asking.
    #[serde(default)]
    pub exclude_namespaces: Vec<String>,
    /// How to intercept: `iptables`.
    #[serde(default)]
    pub intercept_type: Option<String>,
}

impl NetworkConfig {
    /// Reads the configuration.
    ///
    /// # Errors
    /// When it is no JSON, of a version that is not ours, or asks for something that we do not have.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let config: NetworkConfig =
            serde_json::from_str(text).map_err(|error| CniError::Decode(error.to_string()))?;
        if !VERSIONS.contains(&config.cni_version.as_str()) {
            return Err(CniError::Version(config.cni_version));
        }
        match config.kubernetes.intercept_type.as_deref() {
            None | Some("" | "iptables") => Ok(config),
            Some(other) => Err(CniError::Config(format!(
                "kubernetes.intercept_type {other:?}; wanted iptables"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_told_by_the_runtimes_arguments() {
        for (arguments, want) in [
            (
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=7",
                Some(("shop", "web-0")),
            ),
            ("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop", None),
            ("K8S_POD_NAMESPACE=;K8S_POD_NAME=web-0", None),
            ("", None),
        ] {
            let environment = Environment {
                arguments: arguments.to_owned(),
                ..Environment::default()
            };
            assert_eq!(environment.pod(), want, "{arguments}");
        }
    }

    #[test]
    fn a_configuration_that_cannot_be_meant_has_the_specifications_code() {
        for (text, code) in [
            ("{", 6),
            (r#"{"cniVersion": 1}"#, 6),
            (r#"{"cniVersion": "0.2.0"}"#, 1),
            (
                r#"{"cniVersion": "1.0.0", "kubernetes": {"intercept_type": "ebpf"}}"#,
                7,
            ),
        ] {
            let error = NetworkConfig::parse(text).unwrap_err();
            assert_eq!(error.code(), code, "{text}: {error}");
        }
        let good = r#"{"cniVersion": "0.3.1", "name": "k8s", "type": "istio-cni", "kubernetes": {"cni_bin_dir": "/x"}}"#;
        assert!(NetworkConfig::parse(good).is_ok());
    }
}
