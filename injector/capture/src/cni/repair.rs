//! Pods that started before the plugin was on their node: their traffic is not intercepted, the init container
//! `istio-validation` has noticed and ends with 126 for ever. They are made anew, or labelled for somebody who does.

use std::pin::pin;
use std::time::Duration;

use clap::{ArgAction, Args};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource as _, ResourceExt as _};
use proto_component::Process;
use proto_component::backoff::Backoff;
use proto_component::kubernetes::{self, Change, KubeArgs};
use serde_json::json;

use crate::validation::FAILED;

/// How often a repair is tried before the pod's next failure is waited for.
const ATTEMPTS: u32 = 4;

/// Which pods are broken, and what is done about them. The environment is that of Istio 1.4's `istio-cni-repair`.
#[derive(Clone, Debug, Args)]
pub struct RepairArgs {
    /// How to reach the API server.
    #[command(flatten)]
    pub client: KubeArgs,
    /// Only pods of this node; all nodes' if empty.
    #[arg(long, env = "REPAIR_NODE_NAME", default_value = "")]
    pub node_name: String,
    /// Only pods with this annotation.
    #[arg(
        long,
        env = "REPAIR_SIDECAR_ANNOTATION",
        default_value = "sidecar.istio.io/status"
    )]
    pub sidecar_annotation: String,
    /// Name of the init container that tries the interception.
    #[arg(
        long,
        env = "REPAIR_INIT_CONTAINER_NAME",
        default_value = "istio-validation"
    )]
    pub init_container_name: String,
    /// Exit code by which it says that nothing is intercepted.
    #[arg(long, env = "REPAIR_INIT_CONTAINER_EXIT_CODE", default_value_t = i32::from(FAILED))]
    pub init_container_exit_code: i32,
    /// What its termination message must be; any if empty.
    #[arg(
        long,
        env = "REPAIR_INIT_CONTAINER_TERMINATION_MESSAGE",
        default_value = ""
    )]
    pub init_container_termination_message: String,
    /// Only pods that this selects.
    #[arg(long, env = "REPAIR_LABEL_SELECTORS", default_value = "")]
    pub label_selectors: String,
    /// Only pods that this selects.
    #[arg(long, env = "REPAIR_FIELD_SELECTORS", default_value = "")]
    pub field_selectors: String,
    /// Delete broken pods, so that their controllers make them anew. Counts before labels.
    #[arg(long, env = "REPAIR_DELETE_PODS", default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub delete_pods: bool,
    /// Label broken pods.
    #[arg(long, env = "REPAIR_LABEL_PODS", default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub label_pods: bool,
    /// Say it in the pod's events too.
    #[arg(long, env = "REPAIR_CREATE_EVENTS", default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub create_events: bool,
    /// The label's key.
    #[arg(
        long,
        env = "REPAIR_BROKEN_POD_LABEL_KEY",
        default_value = "cni.istio.io/uninitialized"
    )]
    pub broken_pod_label_key: String,
    /// The label's value.
    #[arg(long, env = "REPAIR_BROKEN_POD_LABEL_VALUE", default_value = "true")]
    pub broken_pod_label_value: String,
}

/// What is done about a broken pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repair {
    Delete,
    Label,
}

/// Follows the pods until the drain.
///
/// # Errors
/// When there is no way to the API server.
pub async fn run(args: RepairArgs, process: Process) -> anyhow::Result<()> {
    let client = args.client.client().await?;
    let node = (!args.node_name.is_empty()).then(|| format!("spec.nodeName={}", args.node_name));
    let given = (!args.field_selectors.is_empty()).then(|| args.field_selectors.clone());
    let fields: Vec<String> = node.into_iter().chain(given).collect();
    let pods: Api<Pod> = Api::all(client.clone());
    let mut changes = pin!(kubernetes::watch_selected(
        pods,
        &fields.join(","),
        &args.label_selectors
    ));
    let reporter = Reporter {
        controller: "istio-cni-repair".to_owned(),
        instance: (!args.node_name.is_empty()).then(|| args.node_name.clone()),
    };
    let events = Recorder::new(client.clone(), reporter);
    loop {
        let change = tokio::select! {
            change = changes.next() => change,
            () = process.drain.signaled() => return Ok(()),
        };
        match change {
            Some(Change::Object(pod)) => {
                let Some(repair) = decide(&args, &pod) else {
                    continue;
                };
                let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(5));
                while let Err(error) = apply(&args, &client, &events, &pod, repair).await {
                    tracing::warn!(pod = pod.name_any(), namespace = pod.namespace(), ?repair, %error, "cannot repair");
                    if backoff.attempts() == ATTEMPTS || !backoff.wait(&process.drain).await {
                        break;
                    }
                }
            }
            Some(Change::Failed(reason) | Change::Denied(reason)) => {
                tracing::warn!(reason, "cannot follow pods; trying again");
            }
            Some(Change::Listing | Change::Gone(_) | Change::Listed | Change::Absent) => {}
            None => return Ok(()),
        }
    }
}

/// What is done about a pod; nothing if it is not broken, or on its way already.
fn decide(args: &RepairArgs, pod: &Pod) -> Option<Repair> {
    if pod.metadata.deletion_timestamp.is_some() || !is_broken(args, pod) {
        return None;
    }
    let label = pod.labels().get(&args.broken_pod_label_key);
    if args.delete_pods {
        Some(Repair::Delete)
    } else {
        (args.label_pods && label != Some(&args.broken_pod_label_value)).then_some(Repair::Label)
    }
}

fn is_broken(args: &RepairArgs, pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.init_container_statuses.as_deref());
    let says_so = |container: &ContainerStatus| {
        let states = [&container.state, &container.last_state]
            .into_iter()
            .flatten();
        states
            .filter_map(|state| state.terminated.as_ref())
            .any(|end| {
                let message = end.message.as_deref().unwrap_or_default().trim();
                end.exit_code == args.init_container_exit_code
                    && [message, ""].contains(&args.init_container_termination_message.as_str())
            })
    };
    pod.annotations().contains_key(&args.sidecar_annotation)
        && containers
            .into_iter()
            .flatten()
            .any(|container| container.name == args.init_container_name && says_so(container))
}

async fn apply(
    args: &RepairArgs,
    client: &Client,
    events: &Recorder,
    pod: &Pod,
    repair: Repair,
) -> Result<(), kube::Error> {
    let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let done = match repair {
        Repair::Delete => {
            // This very pod, not one of its name that came after it.
            let same = Preconditions {
                uid: pod.uid(),
                resource_version: None,
            };
            let params = DeleteParams::default().preconditions(same);
            api.delete(&name, &params).await.map(drop)
        }
        Repair::Label => {
            let patch = json!({"metadata": {"labels": {&args.broken_pod_label_key: &args.broken_pod_label_value}}});
            let params = PatchParams::default();
            api.patch_metadata(&name, &params, &Patch::Merge(patch))
                .await
                .map(drop)
        }
    };
    match done {
        // Somebody was quicker.
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => return Ok(()),
        other => other?,
    }
    tracing::info!(
        pod = name,
        namespace,
        ?repair,
        "a pod that started without interception"
    );
    if args.create_events {
        let event = Event {
            type_: EventType::Warning,
            reason: "InterceptionMissing".to_owned(),
            note: Some("The pod started before the CNI plugin was on its node; its traffic is not intercepted.".to_owned()),
            action: format!("{repair:?}"),
            secondary: None,
        };
        if let Err(error) = events.publish(&event, &pod.object_ref(&())).await {
            tracing::debug!(%error, "no event");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::Value;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: RepairArgs,
    }

    fn args(flags: &[&str]) -> RepairArgs {
        Command::parse_from([&["repair"], flags].concat()).args
    }

    fn pod(change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = json!({
            "metadata": {"name": "web", "annotations": {"sidecar.istio.io/status": "{}"}, "labels": {}},
            "status": {"initContainerStatuses": [{
                "name": "istio-validation", "image": "i", "imageID": "i", "ready": false, "restartCount": 1,
                "lastState": {"terminated": {"exitCode": 126, "message": "not intercepted"}},
            }]},
        });
        change(&mut pod);
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn pods_whose_validation_failed_are_repaired_and_no_others() {
        type Change = fn(&mut Value);
        let cases: &[(&str, &[&str], Change, Option<Repair>)] = &[
            ("labelled", &["--label-pods"], |_| {}, Some(Repair::Label)),
            (
                "deleted",
                &["--label-pods=true", "--delete-pods=true"],
                |_| {},
                Some(Repair::Delete),
            ),
            ("only watched", &[], |_| {}, None),
            (
                "labelled already",
                &["--label-pods"],
                |pod| pod["metadata"]["labels"]["cni.istio.io/uninitialized"] = json!("true"),
                None,
            ),
            (
                "another exit code",
                &["--label-pods"],
                |pod| {
                    pod["status"]["initContainerStatuses"][0]["lastState"]["terminated"]["exitCode"] =
                        json!(1);
                },
                None,
            ),
            (
                "that will not start again",
                &["--label-pods"],
                |pod| {
                    let status = &mut pod["status"]["initContainerStatuses"][0];
                    status["state"] = status["lastState"].take();
                },
                Some(Repair::Label),
            ),
            (
                "another container",
                &["--label-pods"],
                |pod| pod["status"]["initContainerStatuses"][0]["name"] = json!("setup"),
                None,
            ),
            (
                "not injected",
                &["--label-pods"],
                |pod| pod["metadata"]["annotations"] = json!({}),
                None,
            ),
            (
                "on its way",
                &["--delete-pods"],
                |pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"),
                None,
            ),
            (
                "another message",
                &[
                    "--label-pods",
                    "--init-container-termination-message",
                    "other",
                ],
                |_| {},
                None,
            ),
            (
                "that message",
                &[
                    "--label-pods",
                    "--init-container-termination-message",
                    "not intercepted",
                ],
                |_| {},
                Some(Repair::Label),
            ),
        ];
        for (name, flags, change, want) in cases {
            assert_eq!(decide(&args(flags), &pod(change)), *want, "{name}");
        }
    }
}
