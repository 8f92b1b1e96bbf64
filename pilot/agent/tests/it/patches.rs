//! Patches of the bootstrap: the real binary beside a pretended proxy, and a Pilot that takes its time.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::envoy::config::bootstrap::v3::Bootstrap;
use proto::envoy::service::discovery::v3::DiscoveryResponse;
use serde_json::{Value, json};

use crate::binary::{Agent, agent, eventually};
use crate::pilot::{Heard, listening};

const PATIENCE: Duration = Duration::from_secs(60);

/// Answers with `bootstrap`.
async fn answer(heard: &Heard, bootstrap: &Value) {
    let bootstrap: Bootstrap = proto::json::from_value(bootstrap).unwrap();
    let response = DiscoveryResponse {
        type_url: heard.request.type_url.clone(),
        resources: vec![proto::any::pack(&bootstrap)],
        nonce: "1".to_owned(),
        ..DiscoveryResponse::default()
    };
    // An agent that has gone asks again.
    let _ = heard.answers.send(Ok(response)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_starts_once_pilot_has_said_what_its_bootstrap_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let started = folder.path().join("started");
    let program = folder.path().join("envoy");
    let script = format!(
        "#!/bin/sh\ntrap 'exit 0' TERM\ntouch {}\nwhile :; do sleep 0.02; done\n",
        started.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let (port, mut said, _trigger) = listening(0).await;
    let child = agent(folder.path())
        .arg("--binaryPath")
        .arg(&program)
        .args(["--statusPort", "0", "--discoveryAddress"])
        .arg(format!("127.0.0.1:{port}"))
        .env("BOOTSTRAP_XDS_AGENT", "true")
        .env("TERMINATION_DRAIN_DURATION_SECONDS", "0")
        .spawn()
        .unwrap();
    let mut running = Agent(child);
    let mut next = async || {
        let heard = tokio::time::timeout(PATIENCE, said.recv()).await;
        let heard = heard.expect("in time").expect("a request");
        assert_eq!(
            heard.request.type_url,
            "type.googleapis.com/envoy.config.bootstrap.v3.Bootstrap"
        );
        assert_eq!(heard.request.resource_names, ["patches"]);
        heard
    };
    // A Pilot that ends the stream, and one that knows whole bootstraps only: the agent asks again.
    let gone = tonic::Status::unavailable("come back");
    next().await.answers.send(Err(gone)).await.unwrap();
    answer(&next().await, &json!({"node": {"id": "other"}})).await;
    let heard = next().await;
    assert!(!started.exists(), "the proxy waits");
    let node = heard.request.node.clone().unwrap();
    assert_eq!(node.id, "sidecar~127.0.0.1~web.shop~shop.svc.cluster.local");
    let patches = json!({
        "admin": {"profilePath": "/dev/null"},
        "staticResources": {"clusters": [{"name": "patched"}]},
        "statsFlushInterval": "7s",
    });
    answer(&heard, &patches).await;
    eventually("the proxy is started", || started.exists()).await;

    let file = folder.path().join("proxy/envoy-rev0.json");
    let written: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(written["stats_flush_interval"], "7s");
    assert_eq!(written["admin"]["profile_path"], "/dev/null");
    assert!(written["admin"]["address"].is_object(), "{written}");
    let clusters = written["static_resources"]["clusters"].as_array().unwrap();
    let names: Vec<_> = clusters.iter().map(|cluster| &cluster["name"]).collect();
    assert_eq!(
        names,
        ["prometheus_stats", "sds-grpc", "xds-grpc", "patched"]
    );

    let pid = Pid::from_raw(i32::try_from(running.0.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    eventually("the agent ends", || running.0.try_wait().unwrap().is_some()).await;
}

#[tokio::test]
async fn who_waits_for_patches_ends_when_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let (port, mut said, _trigger) = listening(0).await;
    let child = agent(folder.path())
        .args(["--statusPort", "0", "--discoveryAddress"])
        .arg(format!("127.0.0.1:{port}"))
        .env("BOOTSTRAP_XDS_AGENT", "true")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut running = Agent(child);
    // Never answered.
    let _asked = tokio::time::timeout(PATIENCE, said.recv()).await.unwrap();
    let pid = Pid::from_raw(i32::try_from(running.0.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    eventually("the agent ends", || running.0.try_wait().unwrap().is_some()).await;
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
}
