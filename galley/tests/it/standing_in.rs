//! Analysis of a cluster that keeps something to itself, or is too old: what stands in for its API server says so.

use super::*;
use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, Uri},
    response::{IntoResponse as _, Response},
    routing::get,
};
use serde_json::json;

/// What the cluster says of itself.
#[derive(Clone, Copy)]
struct Cluster {
    minor: &'static str,
    shows_secrets: bool,
}

/// A gateway with a credential that is not there, and nothing else.
async fn list(State(cluster): State<Cluster>, uri: Uri) -> Response {
    let refused = |code: StatusCode, reason: &str| {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(),
            "reason": reason, "message": format!("{reason} for a stranger"),
        });
        (code, Json(status)).into_response()
    };
    let items = match uri.path().rsplit('/').next() {
        Some("secrets") if !cluster.shows_secrets => {
            return refused(StatusCode::FORBIDDEN, "Forbidden");
        }
        Some("secrets") => json!([]),
        Some("gateways") if uri.path().contains("/networking.istio.io/") => json!([{
            "metadata": {"name": "edge", "namespace": "shop"},
            "spec": {
                "selector": {"istio": "ingressgateway"},
                "servers": [{
                    "port": {"number": 443, "name": "https", "protocol": "HTTPS"}, "hosts": ["shop.test"],
                    "tls": {"mode": "SIMPLE", "credentialName": "nowhere"},
                }],
            },
        }]),
        Some("services") => json!([{
            "metadata": {"name": "edge", "namespace": "shop"},
            "spec": {"selector": {"istio": "ingressgateway"}, "ports": [{"name": "https", "port": 443}]},
        }]),
        Some("pods") => json!([{
            "metadata": {"name": "edge", "namespace": "shop", "labels": {"istio": "ingressgateway"}},
            "spec": {"containers": []},
        }]),
        _ => return refused(StatusCode::NOT_FOUND, "NotFound"),
    };
    let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items});
    Json(list).into_response()
}

async fn version(State(cluster): State<Cluster>) -> Json<Value> {
    let rest = [
        "buildDate",
        "compiler",
        "gitCommit",
        "gitTreeState",
        "gitVersion",
        "goVersion",
        "platform",
    ];
    let mut version = json!({"major": "1", "minor": cluster.minor});
    for name in rest {
        version[name] = json!("");
    }
    Json(version)
}

/// What analysis says of the cluster: codes and the objects they are about.
async fn told(cluster: Cluster) -> Vec<String> {
    let routes = Router::new()
        .route("/version", get(version))
        .fallback(list)
        .with_state(cluster);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    let serving =
        proto_component::task::spawn(
            "stand-in",
            async move { axum::serve(listener, routes).await },
        );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kubeconfig");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": server}}],
        "users": [{"name": "test", "user": {}}],
    });
    std::fs::write(&file, config.to_string()).unwrap();
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_galley"))
        .args(["analyze", "--use-kube", "-A", "-o", "json"])
        .env("KUBECONFIG", &file)
        .output()
        .await
        .unwrap();
    serving.abort();
    let messages: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(&output.stderr));
    });
    let line = |message: Value| {
        let [code, resource] =
            ["code", "resource"].map(|name| message[name].as_str().unwrap().to_owned());
        format!("{code} {resource}")
    };
    messages.into_iter().map(line).collect()
}

#[tokio::test]
async fn what_a_cluster_keeps_to_itself_is_told_and_not_missed() {
    let open = Cluster {
        minor: "34",
        shows_secrets: true,
    };
    assert_eq!(told(open).await, ["IST0101 Gateway edge.shop"]);
    let closed = Cluster {
        shows_secrets: false,
        ..open
    };
    assert_eq!(told(closed).await, ["IST0141 Secret"]);
}

#[tokio::test]
async fn a_cluster_that_is_too_old_is_told() {
    let old = Cluster {
        minor: "28+",
        shows_secrets: false,
    };
    assert_eq!(told(old).await, ["IST0142 Cluster", "IST0141 Secret"]);
}
