//! The program itself: starts, serves, is ready, ends on SIGTERM; refuses what it cannot work with.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use proto::istio::mixer::v1::mixer_client::MixerClient;
use proto_mesh::attribute::Attributes;

use crate::server::{default_config, get, request};

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn mixs(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mixs"));
    command.args(arguments);
    command
}

#[tokio::test]
async fn the_process_serves_until_it_is_told_to_end() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.yaml"), default_config()).unwrap();
    let ready = folder.path().join("ready");
    let child = mixs(&[
        "server",
        "--address=tcp://127.0.0.1:0",
        "--monitoringPort=0",
        "--prometheusPort=0",
        "--log_as_json",
        &format!("--configStoreURL=fs://{}", folder.path().display()),
        &format!("--readinessProbePath={}", ready.display()),
        "--readinessProbeInterval=100ms",
    ])
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    let mut running = Running(child);
    let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
    let ports = lines
        .by_ref()
        .map(|line| serde_json::from_str::<serde_json::Value>(&line.unwrap()).unwrap())
        .find(|line| line.to_string().contains("grpc_port"))
        .unwrap();
    let number = |name: &str| -> u16 {
        let text = ports[name].to_string();
        let digits: String = text.chars().filter(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    };
    let (grpc, monitoring, scraped) = (
        number("grpc_port"),
        number("monitoring"),
        number("prometheus"),
    );
    crate::server::eventually("it is ready", || async move {
        get(monitoring, "/ready").await == "ready\n"
    })
    .await;
    crate::server::eventually("the probe file is there", || {
        let probe = mixs(&["probe", "--probe-path", &ready.display().to_string()]).output();
        async move { probe.unwrap().status.success() }
    })
    .await;
    let mut client = MixerClient::connect(format!("http://127.0.0.1:{grpc}"))
        .await
        .unwrap();
    client.check(request(&Attributes::new())).await.unwrap();
    assert_eq!(get(scraped, "/metrics").await, "");
    let id = running.0.id().to_string();
    assert!(Command::new("kill").arg(&id).status().unwrap().success());
    // Our connection takes part in its end, so we must not block.
    let status = tokio::task::spawn_blocking(move || running.0.wait()).await;
    assert_eq!(status.unwrap().unwrap().code(), Some(0));
    assert!(!ready.exists());
}

#[test]
fn what_cannot_work_is_said_in_one_line() {
    for (arguments, want) in [
        (
            vec!["server", "--configStoreURL=nowhere"],
            "--configStoreURL nowhere",
        ),
        (vec!["server"], "--configStoreURL"),
        (
            vec!["server", "--configStoreURL=fs:///x", "--address=nowhere:x"],
            "--address",
        ),
    ] {
        let output = mixs(&arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(want), "{text}");
    }
}

#[test]
fn expressions_are_evaluated_line_by_line() {
    use std::io::Write as _;
    let mut child = mixs(&["eval", "--jsonl"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let case =
        r#"{"id": "1", "expr": "as | \"x\"", "attribute_types": {"as": "STRING"}, "input": {}}"#;
    writeln!(child.stdin.take().unwrap(), "{case}").unwrap();
    let output = child.wait_with_output().unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        answer,
        serde_json::json!({"id": "1", "type": "STRING", "value": {"t": "STRING", "v": "x"}, "referenced": ["-as"]})
    );
}
