//! Every kind that holds pods, through the program that injects files; and the pod that a controller makes of it, through the
//! webhook. The two must agree.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::webhook::{patched, post, review_of};

/// API version, kind, and who owns the pods in the end.
const KINDS: &[(&str, &str, &str)] = &[
    ("apps/v1", "Deployment", "ReplicaSet"),
    ("apps/v1", "StatefulSet", "StatefulSet"),
    ("apps/v1", "DaemonSet", "DaemonSet"),
    ("apps/v1", "ReplicaSet", "ReplicaSet"),
    ("batch/v1", "Job", "Job"),
    ("v1", "ReplicationController", "ReplicationController"),
];

fn template() -> Value {
    json!({
        "metadata": {"labels": {"app": "web"}, "annotations": {"traffic.sidecar.istio.io/excludeOutboundPorts": "3306"}},
        "spec": {
            "serviceAccountName": "web",
            "containers": [{
                "name": "web", "image": "web", "ports": [{"containerPort": 80}],
                "livenessProbe": {"httpGet": {"path": "/live", "port": 80}},
            }],
        },
    })
}

/// `sidecar-injector inject -f -`.
fn inject(object: &Value) -> Value {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sidecar-injector"))
        .args(["inject", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(object.to_string().as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let mut documents = proto::yaml::parse_documents(&text);
    assert_eq!(documents.len(), 1, "{text}");
    documents.remove(0).unwrap().value
}

/// The pod that a controller makes of the template, before any webhook sees it.
fn pod(template: &Value, owner: (&str, &str, &str)) -> Value {
    let (api_version, kind, name) = owner;
    let mut pod = template.clone();
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    let metadata = &mut pod["metadata"];
    metadata["generateName"] = json!(format!("{name}-"));
    metadata["ownerReferences"] = json!([{
        "apiVersion": api_version, "kind": kind, "name": name, "uid": "1", "controller": true,
    }]);
    if name.ends_with("-5d7c") {
        metadata["labels"]["pod-template-hash"] = json!("5d7c");
    }
    pod
}

/// What was added: the spec, and the record of it. The labels that controllers add are theirs.
fn injected(pod: &Value) -> (Value, Value) {
    let mut spec = pod["spec"].clone();
    for container in spec["containers"].as_array_mut().unwrap() {
        if let Some(env) = container.get_mut("env").and_then(Value::as_array_mut) {
            env.retain(|variable| variable["name"] != "ISTIO_METAJSON_LABELS");
        }
    }
    (spec, pod["metadata"]["annotations"].clone())
}

#[tokio::test]
async fn the_program_and_the_webhook_make_the_same_of_every_kind() {
    for (api_version, kind, owner) in KINDS {
        let object = json!({
            "apiVersion": api_version, "kind": kind, "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"template": template()},
        });
        let by_file = inject(&object);
        assert_eq!(by_file["metadata"], object["metadata"], "{kind}");
        let by_file = injected(&by_file["spec"]["template"]);
        assert_eq!(by_file.0["containers"][1]["name"], "istio-proxy", "{kind}");
        let name = if owner == kind { "web" } else { "web-5d7c" };
        let pod = pod(&template(), (api_version, owner, name));
        for version in ["v1", "v1beta1"] {
            let (_, response) = post("application/json", review_of(version, &pod)).await;
            assert_eq!(
                response["apiVersion"],
                format!("admission.k8s.io/{version}"),
                "{kind}"
            );
            assert_eq!(response["response"]["patchType"], "JSONPatch", "{kind}");
            let by_webhook = injected(&patched(&pod, &response));
            assert_eq!(by_webhook, by_file, "{kind} {version}");
        }
    }
}
