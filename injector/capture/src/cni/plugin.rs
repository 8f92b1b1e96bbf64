//! The plugin itself: one call, one answer. Chained after the plugins that made the pod's network; it changes nothing of
//! their result.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use nix::sched::{CloneFlags, setns};
use proto_component::args::LogArgs;
use proto_component::backoff::Backoff;
use proto_component::kubernetes::KubeArgs;
use proto_component::logging;
use serde_json::Value;

use crate::cni::answer::{self, CniError};
use crate::cni::pod::{self, Decision};
use crate::cni::request::{Environment, Kubernetes, NetworkConfig};
use crate::options::Options;
use crate::program;

/// A configuration is a few kilobytes.
const LARGEST_CONFIG: u64 = 1 << 20;
/// How long the API server may take. The runtime itself gives up after two minutes, and asks again.
const PATIENCE: Duration = Duration::from_secs(30);

/// Does what the runtime asks, answers on `output`, and says on standard error what it decided.
pub fn run(environment: &Environment, input: &mut dyn Read, output: &mut dyn Write) -> ExitCode {
    let mut text = String::new();
    let read = match environment.command {
        Some(_) => input.take(LARGEST_CONFIG).read_to_string(&mut text),
        // Somebody at a terminal: there is nothing to read.
        None => Ok(0),
    };
    start_logging(&text);
    let answer = match read {
        Ok(_) => serve(environment, &text),
        Err(error) => Err(CniError::Io(format!("read the configuration: {error}"))),
    };
    let (answer, code) = match answer {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(error) => {
            tracing::error!(container = environment.container, %error, "refused");
            (Some(error.to_json(&version_of(&text))), ExitCode::FAILURE)
        }
    };
    // Nobody is left to tell if standard output is closed.
    let _ = answer.map_or(Ok(()), |answer| writeln!(output, "{answer}"));
    code
}

/// On standard error, from which the runtime takes its own log; standard output is the answer's.
fn start_logging(text: &str) {
    let config = NetworkConfig::parse(text).ok();
    let level = config.and_then(|config| config.log_level);
    let log = LogArgs {
        output_level: format!("default:{}", level.as_deref().unwrap_or("warn")),
        target: vec!["stderr".to_owned()],
        ..LogArgs::default()
    };
    // A plugin that cannot write its log does its work all the same.
    let _ = logging::init("istio-cni", &log);
}

/// The version that the configuration names, as far as it can be read.
fn version_of(text: &str) -> String {
    let config: Value = serde_json::from_str(text).unwrap_or_default();
    config["cniVersion"].as_str().unwrap_or("1.0.0").to_owned()
}

/// Answers one call.
///
/// # Errors
/// As the specification has them.
pub fn serve(environment: &Environment, text: &str) -> Result<Option<Value>, CniError> {
    let command = environment.command.as_deref().unwrap_or_default();
    if command == "VERSION" {
        return Ok(Some(answer::versions(&version_of(text))));
    }
    if command.is_empty() {
        return Err(CniError::Environment(
            "CNI_COMMAND is not set: this is called by a container runtime, or with install or repair".to_owned(),
        ));
    }
    let config = NetworkConfig::parse(text)?;
    match command {
        "ADD" => {
            if let Some(options) = options(environment, &config)? {
                enter(environment)?;
                program::apply(&options).map_err(|error| CniError::Rules(error.to_string()))?;
            }
            Ok(Some(answer::result(
                &config.cni_version,
                config.prev_result,
            )))
        }
        "CHECK" => {
            if let Some(options) = options(environment, &config)? {
                enter(environment)?;
                program::check(&options).map_err(|error| CniError::Rules(error.to_string()))?;
            }
            Ok(None)
        }
        // The rules go with the namespace; this is for a runtime that keeps it. What cannot be removed is no reason to keep
        // the pod from being removed.
        "DEL" => {
            if enter(environment).is_ok()
                && let Err(error) = program::clean()
            {
                tracing::warn!(container = environment.container, %error, "rules are left behind");
            }
            Ok(None)
        }
        // Nothing of ours is outside the pods' namespaces.
        "GC" => Ok(None),
        "STATUS" => status(&config.kubernetes.kubeconfig).map(|()| None),
        other => Err(CniError::Environment(format!(
            "CNI_COMMAND {other:?}; wanted ADD, DEL, CHECK, VERSION, GC or STATUS"
        ))),
    }
}

fn status(kubeconfig: &Path) -> Result<(), CniError> {
    File::open(kubeconfig)
        .map(drop)
        .map_err(|error| CniError::NotAvailable(format!("{}: {error}", kubeconfig.display())))
}

/// What to intercept of the pod that the runtime names; none where it is left alone.
fn options(environment: &Environment, config: &NetworkConfig) -> Result<Option<Options>, CniError> {
    let Some((namespace, name)) = environment.pod() else {
        tracing::debug!(container = environment.container, "no pod");
        return Ok(None);
    };
    let excluded = &config.kubernetes.exclude_namespaces;
    if excluded.iter().any(|excluded| excluded == namespace) {
        tracing::debug!(
            namespace,
            pod = name,
            "left alone: its namespace is excluded"
        );
        return Ok(None);
    }
    let found = read_pod(&config.kubernetes, namespace, name)?;
    match pod::decide(&found) {
        Ok(Decision::Intercept(options)) => {
            tracing::info!(namespace, pod = name, mode = ?options.mode, "intercepted");
            Ok(Some(*options))
        }
        Ok(Decision::Skip(reason)) => {
            tracing::debug!(namespace, pod = name, reason, "left alone");
            Ok(None)
        }
        Err(problem) => Err(CniError::Pod(format!("pod {namespace}/{name}: {problem}"))),
    }
}

/// Without an answer the pod does not start: it would run outside the mesh, and nobody would know.
fn read_pod(kubernetes: &Kubernetes, namespace: &str, name: &str) -> Result<Pod, CniError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CniError::Io(format!("start a runtime: {error}")))?;
    let access = KubeArgs {
        kubeconfig: Some(kubernetes.kubeconfig.clone()),
        context: None,
    };
    let found = runtime.block_on(async {
        let client = access
            .client()
            .await
            .map_err(|error| CniError::TryAgain(format!("{error:#}")))?;
        let api: Api<Pod> = Api::namespaced(client, namespace);
        let mut last = "no answer yet".to_owned();
        let reading = tokio::time::timeout(PATIENCE, get(&api, name, &mut last)).await;
        reading.unwrap_or_else(|_| Err(CniError::TryAgain(last.clone())))
    });
    // Looking up a name may still be under way.
    runtime.shutdown_background();
    found.map_err(|error| match error {
        CniError::TryAgain(reason) => {
            CniError::TryAgain(format!("read pod {namespace}/{name}: {reason}"))
        }
        other => other,
    })
}

/// Tries until there is an answer.
async fn get(api: &Api<Pod>, name: &str, last: &mut String) -> Result<Pod, CniError> {
    let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(4));
    loop {
        match api.get(name).await {
            Ok(pod) => return Ok(pod),
            // No further question gives another answer; the runtime asks anew in its own time.
            Err(kube::Error::Api(status)) if (400..429).contains(&status.code) => {
                return Err(CniError::TryAgain(status.message.clone()));
            }
            Err(error) => *last = error.to_string(),
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// Enters the pod's network namespace. The process ends soon after: it does not come back.
fn enter(environment: &Environment) -> Result<(), CniError> {
    let path = environment
        .network_namespace()
        .ok_or_else(|| CniError::Environment("CNI_NETNS is not set".to_owned()))?;
    let named =
        |error: &dyn std::fmt::Display| CniError::Io(format!("enter {}: {error}", path.display()));
    let file = File::open(&path).map_err(|error| named(&error))?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|error| named(&error))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn call(command: &str, arguments: &str, config: &Value) -> Result<Option<Value>, CniError> {
        let environment = Environment {
            command: Some(command.to_owned()),
            container: "c1".to_owned(),
            network_namespace: String::new(),
            arguments: arguments.to_owned(),
        };
        serve(&environment, &config.to_string())
    }

    #[test]
    fn what_is_left_alone_keeps_the_result_of_the_plugin_before() {
        let previous = json!({"cniVersion": "0.4.0", "interfaces": [{"name": "eth0"}], "ips": [], "custom": 1});
        let config = json!({
            "cniVersion": "0.4.0", "prevResult": previous, "kubernetes": {"exclude_namespaces": ["istio-system"]},
        });
        let excluded = "K8S_POD_NAMESPACE=istio-system;K8S_POD_NAME=pilot";
        for arguments in ["", excluded] {
            let answer = call("ADD", arguments, &config).unwrap();
            assert_eq!(answer.as_ref(), Some(&previous));
            assert_eq!(call("CHECK", arguments, &config).unwrap(), None);
        }
        let alone = call("ADD", "", &json!({"cniVersion": "1.0.0"})).unwrap();
        assert_eq!(alone, Some(json!({"cniVersion": "1.0.0"})));
    }

    #[test]
    fn every_command_of_the_specification_is_answered() {
        let versions = call("VERSION", "", &json!({"cniVersion": "0.3.1"}))
            .unwrap()
            .unwrap();
        assert_eq!(versions["cniVersion"], "0.3.1");
        assert!(
            versions["supportedVersions"]
                .as_array()
                .unwrap()
                .contains(&json!("1.0.0"))
        );
        let config =
            json!({"cniVersion": "1.1.0", "kubernetes": {"kubeconfig": "/nowhere/at/all"}});
        // A namespace that is gone already is no reason to keep the pod.
        for command in ["DEL", "GC"] {
            assert_eq!(call(command, "", &config).unwrap(), None);
        }
        assert_eq!(call("STATUS", "", &config).unwrap_err().code(), 50);
        assert_eq!(call("PAINT", "", &config).unwrap_err().code(), 4);
    }

    #[test]
    fn a_pod_that_cannot_be_read_is_tried_again_later() {
        let config =
            json!({"cniVersion": "1.0.0", "kubernetes": {"kubeconfig": "/nowhere/at/all"}});
        let error = call("ADD", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web", &config).unwrap_err();
        assert_eq!(error.code(), 11, "{error}");
        assert_eq!(
            error.to_json("1.0.0")["msg"].as_str().unwrap(),
            error.to_string()
        );
    }
}
