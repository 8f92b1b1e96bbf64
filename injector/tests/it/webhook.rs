//! The webhook as an API server calls it.

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http_body_util::BodyExt as _;
use injector::config::{Files, Settings};
use injector::webhook::{Metrics, Webhook, routes};
use serde_json::{Value, json};
use tower::ServiceExt as _;

pub(crate) async fn post(content_type: &str, body: String) -> (StatusCode, Value) {
    let settings = Arc::new(ArcSwap::from_pointee(
        Settings::load(&Files::default()).unwrap(),
    ));
    let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
    let request = Request::post("/inject")
        .header("content-type", content_type)
        .body(Body::from(body))
        .unwrap();
    let response = routes(Webhook { settings, metrics })
        .oneshot(request)
        .await
        .unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

fn review(pod: &Value) -> String {
    review_of("v1", pod)
}

pub(crate) fn review_of(version: &str, pod: &Value) -> String {
    json!({
        "apiVersion": format!("admission.k8s.io/{version}"),
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "name": "", "namespace": "shop", "operation": "CREATE", "dryRun": false,
            "userInfo": {"username": "admin"},
            "object": pod,
        },
    })
    .to_string()
}

fn pod(annotations: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "generateName": "web-5d7c-", "annotations": annotations, "labels": {"app": "web", "pod-template-hash": "5d7c"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d7c", "uid": "1", "controller": true}],
        },
        "spec": {"containers": [{"name": "web", "image": "web", "ports": [{"containerPort": 8080}]}]},
    })
}

pub(crate) fn patched(pod: &Value, response: &Value) -> Value {
    let patch = BASE64
        .decode(response["response"]["patch"].as_str().unwrap())
        .unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &patch).unwrap();
    pod
}

#[tokio::test]
async fn a_pod_is_answered_with_a_patch_that_adds_the_proxy() {
    let pod = pod(&json!({}));
    let (status, response) = post("application/json", review(&pod)).await;
    assert_eq!(
        (status, &response["response"]["allowed"]),
        (StatusCode::OK, &json!(true))
    );
    assert_eq!(
        response["response"]["uid"],
        "705ab4f5-6393-11e8-b7cc-42010a800002"
    );
    let injected = patched(&pod, &response);
    assert_eq!(injected["spec"]["containers"][1]["name"], "istio-proxy");
    assert_eq!(injected["spec"]["initContainers"][0]["name"], "istio-init");
    assert_eq!(
        injected["metadata"]["labels"]["security.istio.io/tlsMode"],
        "istio"
    );
    let env = injected["spec"]["containers"][1]["env"].as_array().unwrap();
    let owner = env
        .iter()
        .find(|variable| variable["name"] == "ISTIO_META_OWNER")
        .unwrap();
    assert_eq!(
        owner["value"],
        "kubernetes://apis/apps/v1/namespaces/shop/deployments/web"
    );
}

#[tokio::test]
async fn a_pod_injected_before_is_injected_anew_with_its_own_probes() {
    for native in ["false", "true"] {
        let mut pod = pod(&json!({"sidecar.istio.io/nativeSidecar": native}));
        let web = &mut pod["spec"]["containers"][0];
        web["readinessProbe"] = json!({"httpGet": {"path": "/ready", "port": 8080}});
        web["livenessProbe"] = json!({"tcpSocket": {"port": 8080}, "timeoutSeconds": 3});
        let (_, response) = post("application/json", review(&pod)).await;
        let once = patched(&pod, &response);
        assert_eq!(
            once["spec"]["containers"][0]["livenessProbe"],
            json!({"httpGet": {"path": "/app-health/web/livez", "port": 15020}, "timeoutSeconds": 3})
        );
        let (_, response) = post("application/json", review(&once)).await;
        assert_eq!(patched(&once, &response), once, "native sidecar: {native}");
    }
}

#[tokio::test]
async fn a_pod_that_declines_is_allowed_without_a_patch() {
    let (_, response) = post(
        "application/json",
        review(&pod(&json!({"sidecar.istio.io/inject": "false"}))),
    )
    .await;
    assert_eq!(response["response"]["allowed"], true);
    assert!(response["response"]["patch"].is_null());
}

#[tokio::test]
async fn a_pod_that_asks_for_nonsense_is_refused_with_the_reason() {
    let pod = pod(&json!({"status.sidecar.istio.io/port": "none"}));
    let (_, response) = post("application/json", review(&pod)).await;
    assert_eq!(response["response"]["allowed"], false);
    let message = response["response"]["status"]["message"].as_str().unwrap();
    assert!(
        message.contains("status.sidecar.istio.io/port") && message.contains("a number"),
        "{message}"
    );
}

#[tokio::test]
async fn what_is_no_review_is_refused() {
    assert_eq!(
        post("text/plain", "{}".into()).await.0,
        StatusCode::UNSUPPORTED_MEDIA_TYPE
    );
    assert_eq!(
        post("application/json", "{".into()).await.0,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(
        post("application/json", String::new()).await.0,
        StatusCode::BAD_REQUEST
    );
}
