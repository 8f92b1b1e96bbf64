//! The program itself: starts, serves, is ready, ends on SIGTERM; refuses what it cannot work with.

use std::io::{BufRead as _, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use proto::istio::mixer::v1::mixer_client::MixerClient;
use proto_mesh::attribute::Attributes;
use tonic::Code;

use crate::server::{attributes, default_config, default_file, get, request};

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

/// A server on ports that are free, with the configuration in a folder.
fn server(folder: &Path, flags: &[&str]) -> Running {
    let store = format!("--configStoreURL=fs://{}", folder.display());
    let usual = [
        "server",
        "--address=tcp://127.0.0.1:0",
        "--monitoringPort=0",
        "--prometheusPort=0",
        "--log_as_json",
        &store,
    ];
    let mut command = mixs(&[&usual, flags].concat());
    Running(command.stdout(Stdio::piped()).spawn().unwrap())
}

/// What a server tells of its ports, and what else it is going to say.
fn ports<const N: usize>(
    running: &mut Running,
    names: [&str; N],
) -> ([u16; N], Lines<BufReader<ChildStdout>>) {
    let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
    let told = lines
        .by_ref()
        .map(|line| serde_json::from_str::<serde_json::Value>(&line.unwrap()).unwrap())
        .find(|line| line.to_string().contains("grpc_port"))
        .unwrap();
    let ports = names.map(|name| {
        let text = told[name].to_string();
        let digits: String = text.chars().filter(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    });
    (ports, lines)
}

/// The next line with `part` of what a server says.
async fn next_with(lines: Lines<BufReader<ChildStdout>>, part: &'static str) -> String {
    let mut lines = lines.map(Result::unwrap);
    let found = tokio::task::spawn_blocking(move || lines.find(|line| line.contains(part)));
    let found = tokio::time::timeout(Duration::from_secs(60), found).await;
    found.expect(part).unwrap().expect(part)
}

#[tokio::test]
async fn the_process_serves_until_it_is_told_to_end() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.yaml"), default_config()).unwrap();
    let ready = folder.path().join("ready");
    let mut running = server(
        folder.path(),
        &[
            &format!("--readinessProbePath={}", ready.display()),
            "--readinessProbeInterval=100ms",
        ],
    );
    let (ports, _lines) = ports(&mut running, ["grpc_port", "monitoring", "prometheus"]);
    let [grpc, monitoring, scraped] = ports;
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

#[tokio::test]
async fn too_many_requests_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.yaml"), default_config()).unwrap();
    let mut running = server(
        folder.path(),
        &[
            "--loadsheddingMode=enforce",
            "--maxRequestsPerSecond=0.001",
            "--burstSize=2",
        ],
    );
    let ([grpc, monitoring], _lines) = ports(&mut running, ["grpc_port", "monitoring"]);
    crate::server::eventually("it is ready", || async move {
        get(monitoring, "/ready").await == "ready\n"
    })
    .await;
    let mut client = MixerClient::connect(format!("http://127.0.0.1:{grpc}"))
        .await
        .unwrap();
    let mut codes = Vec::new();
    for _ in 0..4 {
        let answer = client.check(request(&Attributes::new())).await;
        codes.push(answer.map_or_else(|status| status.code(), |_| Code::Ok));
    }
    let want = [Code::Ok, Code::Ok, Code::Unavailable, Code::Unavailable];
    assert_eq!(codes, want);
    let metrics = get(monitoring, "/metrics").await;
    let want = "mixer_loadshedding_requests_throttled 2\n";
    assert!(metrics.contains(want), "{metrics}");
}

#[tokio::test]
async fn access_logs_are_lines_on_the_standard_output() {
    let folder = tempfile::tempdir().unwrap();
    let documents = format!("{}---\n{}", default_config(), default_file("accesslog"));
    std::fs::write(folder.path().join("config.yaml"), documents).unwrap();
    let mut running = server(folder.path(), &[]);
    let ([grpc, monitoring], lines) = ports(&mut running, ["grpc_port", "monitoring"]);
    crate::server::eventually("it is ready", || async move {
        get(monitoring, "/ready").await == "ready\n"
    })
    .await;
    let attributes = "context.protocol=http,context.reporter.kind=outbound,destination.labels=app:web,\
        request.path=/cart,request.headers=x-request-id:7,response.code=404,response.duration=20ms,\
        request.time=2026-01-01T00:00:00Z,response.time=2026-01-01T00:00:00.02Z";
    let mixer = format!("127.0.0.1:{grpc}");
    let report = mixs(&["report", "--mixer", &mixer, "-a", attributes]).output();
    assert!(report.unwrap().status.success());
    let line = next_with(lines, "accesslog.instance.istio-system").await;
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    for (name, value) in [
        ("level", "info".into()),
        ("destinationApp", "web".into()),
        ("latency", "20ms".into()),
        ("reporter", "source".into()),
        ("requestId", "7".into()),
        ("responseCode", serde_json::json!(404)),
        ("url", "/cart".into()),
    ] {
        assert_eq!(line[name], value, "{name}: {line}");
    }
}

/// A server for which 50 ms are too much, with a policy agent that takes ten times as long.
async fn with_a_slow_agent(mode: &str, folder: &Path) -> Running {
    let decide = || async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        r#"{"result": true}"#
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let router = axum::Router::new().fallback(decide);
    proto_component::task::spawn("agent", async move { axum::serve(listener, router).await });
    std::fs::write(folder.join("config.yaml"), crate::transport::asking(port)).unwrap();
    server(
        folder,
        &[
            &format!("--loadsheddingMode={mode}"),
            "--averageLatencyThreshold=50ms",
            "--latencyEnforcementThreshold=0",
        ],
    )
}

#[tokio::test]
async fn slow_answers_have_a_share_of_requests_refused_or_logged() {
    for (mode, is_refusing) in [("enforce", true), ("logonly", false)] {
        let folder = tempfile::tempdir().unwrap();
        let mut running = with_a_slow_agent(mode, folder.path()).await;
        let ([grpc, monitoring], lines) = ports(&mut running, ["grpc_port", "monitoring"]);
        crate::server::eventually("it is ready", || async move {
            get(monitoring, "/ready").await == "ready\n"
        })
        .await;
        let mut client = MixerClient::connect(format!("http://127.0.0.1:{grpc}"))
            .await
            .unwrap();
        let of = |name: &'static str| request(&attributes([("source.name", name.into())]));
        client.check(of("slow")).await.unwrap();
        let mut refused = 0;
        for _ in 0..20 {
            match client.check(of("quick")).await {
                Ok(_) => {}
                Err(status) if status.code() == Code::Unavailable => refused += 1,
                Err(status) => panic!("{mode}: {status}"),
            }
        }
        // Fair: there is an answer among the refusals.
        let is_as_wanted = if is_refusing {
            (1..20).contains(&refused)
        } else {
            refused == 0
        };
        assert!(is_as_wanted, "{mode}: {refused} of 20 were refused");
        let metrics = get(monitoring, "/metrics").await;
        let want = format!("mixer_loadshedding_requests_throttled {refused}\n");
        assert!(metrics.contains(&want), "{mode}: {metrics}");
        next_with(lines, "too many requests").await;
    }
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
fn an_expression_is_evaluated_for_a_person() {
    let eval = |expression: &str| {
        let attributes = "source.labels=app:web,response.code=200";
        let output = mixs(&["eval", "-e", expression, "--attributes", attributes]).output();
        let output = output.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), text, error)
    };
    let (code, text, _) = eval(r#"source.labels["app"] | "unknown""#);
    let want = "STRING web\nreferenced: source.labels, source.labels[app]\n";
    assert_eq!((code, text.as_str()), (0, want));
    let (code, text, error) = eval("request.size + response.code");
    assert_eq!((code, text.as_str()), (1, "referenced: -request.size\n"));
    assert!(error.contains("lookup failed: 'request.size'"), "{error}");
    let (code, _, error) = eval("response.code +");
    assert_eq!(code, 1);
    assert!(error.contains("at 16: "), "{error}");
}

#[tokio::test]
async fn a_check_and_a_report_from_the_command_line() {
    let config = format!(
        "{}---\n{}",
        crate::server::MANIFEST,
        r#"
apiVersion: config.istio.io/v1alpha2
kind: denier
metadata: {name: deny, namespace: istio-system}
spec: {status: {code: 7, message: "not today"}}
---
apiVersion: config.istio.io/v1alpha2
kind: checknothing
metadata: {name: nothing, namespace: istio-system}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: deny, namespace: istio-system}
spec: {match: source.name == "evil", actions: [{handler: deny.denier, instances: [nothing.checknothing]}]}
"#
    );
    let server = crate::server::TestServer::start(&config).await;
    let mixer = format!("127.0.0.1:{}", server.grpc);
    let run = async |arguments: &[&str]| {
        let mut command = mixs(arguments);
        command.args(["--mixer", &mixer]);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap());
        let output = output.await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap(), text)
    };
    let (code, text) = run(&["check", "-s", "source.name=evil"]).await;
    assert_eq!(code, 3, "{text}");
    let want = "check: PermissionDenied (deny.istio-system:not today)\nvalid: 5s, 1000 uses\n";
    assert!(text.starts_with(want), "{text}");
    let (code, text) = run(&["check", "-s", "source.name=good", "-q", "anything=5"]).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("quota anything: granted 5 for 60s"), "{text}");
    let (code, text) = run(&["report", "-a", "source.name=x,response.code=200"]).await;
    assert_eq!((code, text.as_str()), (0, "reported: 2 attributes\n"));
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
