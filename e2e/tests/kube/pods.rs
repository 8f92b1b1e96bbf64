//! What the API server's own admission says of pods: security standards, and webhooks that do not answer.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use e2e::mesh::eventually;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Client;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::component::{INJECTOR, debug_folder, start};
use crate::{
    NAMESPACE, SOON, UMBRELLA, charts, containers, fresh, helm, injected_namespace, install,
};

/// Everything that can be switched on beside what the demo profile has.
const EVERYTHING: &str = "gateways: {istio-ilbgateway: {enabled: true}}
global: {controlPlaneSecurityEnabled: true}
istio_cni: {enabled: true}";

/// A namespace that takes only what the strictest of the standards allows.
async fn restricted_namespace(client: &Client) -> Api<Pod> {
    let pods = injected_namespace(client, "restricted").await;
    let labels = json!({"metadata": {"labels": {
        "istio-injection": null, "pod-security.kubernetes.io/enforce": "restricted",
    }}});
    let spaces: Api<Namespace> = Api::all(client.clone());
    let params = PatchParams::default();
    spaces
        .patch("restricted", &params, &Patch::Merge(labels))
        .await
        .unwrap();
    pods
}

/// What the API server says of a pod, which it does not keep.
async fn admitted(pods: &Api<Pod>, mut spec: Value) -> Result<(), String> {
    // The chart's own account is elsewhere.
    spec["serviceAccountName"] = json!("default");
    spec["priorityClassName"] = Value::Null;
    let pod = json!({"metadata": {"name": "one"}, "spec": spec});
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let pod = serde_json::from_value(pod).unwrap();
    let made = pods.create(&dry, &pod).await;
    made.map(drop).map_err(|error| error.to_string())
}

/// The pod of one container, injected where the nodes' plugin intercepts.
fn injected() -> Value {
    let folder = tempfile::tempdir().unwrap();
    let values = folder.path().join("values.yaml");
    fs::write(&values, "istio_cni: {enabled: true}").unwrap();
    let mut child = Command::new(debug_folder().join("sidecar-injector"))
        .args(["inject", "-f", "-", "--injectValues"])
        .arg(&values)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
        "spec": {"containers": [{
            "name": "web", "image": "example.com/web:1", "securityContext": {
                "runAsNonRoot": true, "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
            },
        }]},
    });
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(pod.to_string().as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut documents = proto::yaml::parse_documents(&text);
    documents.remove(0).unwrap().value["spec"].clone()
}

#[tokio::test]
async fn components_and_injected_pods_pass_the_restricted_standard() {
    let client = fresh().await;
    let pods = restricted_namespace(&client).await;
    let demo = charts().join("profiles/demo.yaml").display().to_string();
    let arguments = ["template", "istio", &UMBRELLA, "-f", &demo, "-f", "-"];
    let manifests = helm(&arguments, EVERYTHING).unwrap();
    let mut judged = Vec::new();
    for document in proto::yaml::parse_documents(&manifests) {
        let object = document.unwrap().value;
        let spec = &object["spec"]["template"]["spec"];
        let what = format!("{} {}", object["kind"], object["metadata"]["name"]);
        if object["kind"] == "Deployment" {
            let verdict = admitted(&pods, spec.clone()).await;
            assert_eq!(verdict, Ok(()), "{what}");
            judged.push(what);
        } else if object["kind"] == "DaemonSet" {
            // The standard is in force: what changes its node cannot pass.
            let refusal = admitted(&pods, spec.clone()).await.unwrap_err();
            assert!(refusal.contains("violates PodSecurity"), "{refusal}");
        }
    }
    assert_eq!(judged.len(), 12, "{judged:?}");
    let mut spec = injected();
    assert_eq!(spec["containers"][1]["name"], "istio-proxy");
    let verdict = admitted(&pods, spec.clone()).await;
    assert_eq!(verdict, Ok(()), "{spec}");
    spec["containers"][1]["securityContext"]["capabilities"]["add"] = json!(["NET_ADMIN"]);
    let refusal = admitted(&pods, spec).await.unwrap_err();
    assert!(refusal.contains("NET_ADMIN"), "{refusal}");
}

#[tokio::test]
async fn pods_wait_for_an_injector_that_is_gone_unless_that_is_to_be_ignored() {
    let client = fresh().await;
    install("");
    let injector = start(&client, &INJECTOR).await;
    let pods = injected_namespace(&client, "failures").await;
    let injected = async || containers(&pods).await.is_ok_and(|count| count == 2);
    eventually("a pod is injected", SOON, &injected)
        .await
        .unwrap();
    drop(injector);
    let refused = async || {
        let refusal = containers(&pods).await.err();
        refusal.is_some_and(|error| error.to_string().contains("failed calling webhook"))
    };
    eventually("a pod is refused", SOON, &refused)
        .await
        .unwrap();
    install("sidecarInjectorWebhook: {failurePolicy: Ignore}");
    let ignored = async || containers(&pods).await.is_ok_and(|count| count == 1);
    eventually("a pod is let in", SOON, &ignored).await.unwrap();
    install("");
    eventually("a pod is refused again", SOON, &refused)
        .await
        .unwrap();
}

/// The scheduler is there, and has seen what the charts ask of it; nodes are not.
#[tokio::test]
async fn pods_of_the_production_profile_wait_for_nothing_but_a_node() {
    let client = fresh().await;
    let values = fs::read_to_string(charts().join("profiles/production.yaml")).unwrap();
    install(&values);
    let pods: Api<Pod> = Api::namespaced(client, NAMESPACE);
    let ours = ListParams::default().labels("istio");
    let said = async || -> Vec<(String, String)> {
        let found = pods.list(&ours).await.unwrap().into_iter();
        let conditions = found.filter_map(|pod| pod.status?.conditions);
        let scheduled = conditions
            .flatten()
            .filter(|one| one.type_ == "PodScheduled");
        let text = |text: Option<String>| text.unwrap_or_default();
        let said = scheduled.map(|one| (text(one.reason), text(one.message)));
        said.collect()
    };
    let waiting = eventually("the scheduler's word", SOON, async || {
        let said = said().await;
        let is_waited = said.iter().all(|(reason, message)| {
            reason == "Unschedulable" && message.contains("no nodes available")
        });
        is_waited && said.len() >= 12
    });
    assert!(waiting.await.is_ok(), "{:?}", said().await);
    install("");
}
