//! Adapters that talk to others: a policy agent, a trace collector, a real Redis, an adapter in Python.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::{post, put};
use parking_lot::Mutex;
use proto::istio::mixer::v1::check_request::QuotaParams;
use proto::istio::mixer::v1::check_response::QuotaResult;
use proto::istio::mixer::v1::mixer_client::MixerClient;
use proto::istio::mixer::v1::{CheckRequest, ReportRequest};
use proto_component::task;
use proto_mesh::attribute::Attributes;
use serde_json::{Value as Json, json};
use tonic::Code;
use tonic::transport::Channel;

use crate::server::{MANIFEST, TestServer, attributes, eventually, request};

/// What a server was told.
type Told = Arc<Mutex<Vec<Json>>>;

/// A process that ends with the test.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn serve(router: Router) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    task::spawn("peer", async move { axum::serve(listener, router).await });
    port
}

fn config(documents: &str) -> String {
    format!("{MANIFEST}---\n{documents}")
}

async fn code(server: &mut TestServer, attributes: &Attributes) -> i32 {
    let response = server.check(request(attributes)).await;
    response.precondition.unwrap().status.unwrap().code
}

#[tokio::test]
async fn a_policy_agent_decides() {
    let policies: Told = Arc::default();
    let told = policies.clone();
    let upload = put(move |body: String| async move {
        told.lock().push(json!(body));
    });
    let decide = post(|axum::Json(question): axum::Json<Json>| async move {
        let is_me = question["input"]["subject"]["user"] == "me";
        axum::Json(json!({"result": is_me}))
    });
    let router = Router::new()
        .route("/v1/policies/{*id}", upload)
        .route("/v1/data/mixerauthz/allow", decide);
    let port = serve(router).await;
    let documents = format!(
        r#"
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {{name: opa, namespace: istio-system}}
spec:
  compiledAdapter: opa
  params: {{policy: ["package mixerauthz"], checkMethod: data.mixerauthz.allow, failClose: true,
    serverUrl: "http://127.0.0.1:{port}"}}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {{name: who, namespace: istio-system}}
spec: {{compiledTemplate: authorization, params: {{subject: {{user: source.name}}, action: {{path: '"/"'}}}}}}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {{name: opa, namespace: istio-system}}
spec: {{actions: [{{handler: opa, instances: [who]}}]}}
"#
    );
    let server = TestServer::start(&config(&documents)).await;
    let me = attributes([("source.name", "me".into())]);
    let client = server.client.clone();
    eventually("the policy is on the server", || {
        let (mut client, request) = (client.clone(), request(&me));
        async move {
            let answer = client.check(request).await.unwrap().into_inner();
            answer.precondition.unwrap().status.unwrap().code == 0
        }
    })
    .await;
    assert_eq!(*policies.lock(), [json!("package mixerauthz")]);
    let mut server = server;
    let you = attributes([("source.name", "you".into())]);
    assert_eq!(code(&mut server, &you).await, Code::PermissionDenied as i32);
}

#[tokio::test]
async fn spans_go_to_a_collector() {
    let spans: Told = Arc::default();
    async fn take(State(spans): State<Told>, axum::Json(batch): axum::Json<Json>) {
        spans.lock().extend(batch.as_array().unwrap().clone());
    }
    let router = Router::new().route("/api/v2/spans", post(take));
    let port = serve(router.with_state(spans.clone())).await;
    let documents = format!(
        r#"
apiVersion: config.istio.io/v1alpha2
kind: zipkin
metadata: {{name: collector, namespace: istio-system}}
spec: {{url: "http://127.0.0.1:{port}/api/v2/spans", sampleProbability: 1}}
---
apiVersion: config.istio.io/v1alpha2
kind: tracespan
metadata: {{name: span, namespace: istio-system}}
spec: {{traceId: '"463ac35c9f6413ad"', spanId: 'request.headers["x-b3-spanid"] | "1"', spanName: '"reviews"'}}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {{name: trace, namespace: istio-system}}
spec: {{actions: [{{handler: collector.zipkin, instances: [span.tracespan]}}]}}
"#
    );
    let mut server = TestServer::start(&config(&documents)).await;
    report(&mut server, &attributes([("source.name", "a".into())])).await;
    eventually("the span has come", || {
        let is_there = !spans.lock().is_empty();
        async move { is_there }
    })
    .await;
    assert_eq!(spans.lock()[0]["id"], "0000000000000001");
}

async fn report(server: &mut TestServer, attributes: &Attributes) {
    let message = request(attributes);
    let report = ReportRequest {
        attributes: message.attributes.into_iter().collect(),
        global_word_count: message.global_word_count,
        ..ReportRequest::default()
    };
    server.client.report(report).await.unwrap();
}

/// A Redis of our own, without persistence, on a socket in a folder.
pub(crate) fn redis(folder: &Path) -> Running {
    let program = ["redis-server", "valkey-server"].into_iter().find(|name| {
        let found = Command::new(name).arg("--version").output();
        found.is_ok_and(|output| output.status.success())
    });
    let child = Command::new(program.expect("redis-server or valkey-server"))
        .args(["--port", "0", "--unixsocket"])
        .arg(folder.join("socket"))
        .args(["--save", "", "--dir", &folder.display().to_string()])
        .stdout(Stdio::null())
        .spawn();
    Running(child.unwrap())
}

async fn ask(
    client: &mut MixerClient<Channel>,
    name: &str,
    amount: i64,
    deduplication_id: &str,
) -> QuotaResult {
    ask_as(client, "a", name, amount, deduplication_id).await
}

async fn ask_as(
    client: &mut MixerClient<Channel>,
    source: &'static str,
    name: &str,
    amount: i64,
    deduplication_id: &str,
) -> QuotaResult {
    let params = QuotaParams {
        amount,
        best_effort: false,
    };
    let request = CheckRequest {
        deduplication_id: deduplication_id.into(),
        quotas: [(name.to_owned(), params)].into(),
        ..request(&attributes([("source.name", source.into())]))
    };
    let mut answer = client.check(request).await.unwrap().into_inner();
    answer.quotas.remove(name).unwrap()
}

/// Quotas counted in the Redis that listens on `socket`.
fn redis_config(socket: &str) -> String {
    config(&format!(
        r#"
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {{name: redis, namespace: istio-system}}
spec:
  compiledAdapter: redisquota
  params:
    redisServerUrl: unix://{socket}
    quotas:
    - {{name: fixed.instance.istio-system, maxAmount: 100, validDuration: 300s}}
    - {{name: rolling.instance.istio-system, maxAmount: 50, validDuration: 300s, bucketDuration: 1s,
        rateLimitAlgorithm: ROLLING_WINDOW, overrides: [{{dimensions: {{source: vip}}, maxAmount: 7}}]}}
---
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {{name: strict, namespace: istio-system}}
spec:
  compiledAdapter: redisquota
  params:
    redisServerUrl: unix://{socket}
    failPolicy: FAIL_CLOSE
    quotas: [{{name: strict.instance.istio-system, maxAmount: 1000, validDuration: 300s}}]
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {{name: strict, namespace: istio-system}}
spec: {{compiledTemplate: quota, params: {{dimensions: {{source: source.name}}}}}}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {{name: fixed, namespace: istio-system}}
spec: {{compiledTemplate: quota, params: {{dimensions: {{source: source.name}}}}}}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {{name: rolling, namespace: istio-system}}
spec: {{compiledTemplate: quota, params: {{dimensions: {{source: source.name}}}}}}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {{name: redis, namespace: istio-system}}
spec: {{actions: [{{handler: redis, instances: [fixed, rolling]}}, {{handler: strict, instances: [strict]}}]}}
"#
    ))
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn replicas_share_a_quota_in_redis() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket").display().to_string();
    let mut server = redis(folder.path());
    let documents = redis_config(&socket);
    let replicas = [
        TestServer::start(&documents).await,
        TestServer::start(&documents).await,
        TestServer::start(&documents).await,
    ];
    let first = replicas[0].client.clone();
    eventually("the quotas' server is up", || {
        let mut client = first.clone();
        async move { ask(&mut client, "fixed", 1, "up").await.granted_amount == 1 }
    })
    .await;
    // All replicas at once, more than there is: what is granted is the limit, to the last one.
    for (name, limit) in [("fixed", 99), ("rolling", 50)] {
        let calls = (0..240).map(|call| {
            let mut client = replicas[call % 3].client.clone();
            let id = format!("{name}-{call}");
            async move { ask(&mut client, name, 1, &id).await.granted_amount }
        });
        let granted: i64 = futures::future::join_all(calls).await.into_iter().sum();
        assert_eq!(granted, limit, "{name}");
    }
    // Who has an override has a counter of his own, at every replica.
    let vip = replicas.iter().enumerate().map(|(number, replica)| {
        let mut client = replica.client.clone();
        let id = format!("vip-{number}");
        async move {
            ask_as(&mut client, "vip", "rolling", 3, &id)
                .await
                .granted_amount
        }
    });
    let mut granted = futures::future::join_all(vip).await;
    granted.sort_unstable();
    assert_eq!(granted, [0, 3, 3], "of seven");
    // A repetition is charged once, whichever replica it comes to.
    let mut last = replicas[2].client.clone();
    assert_eq!(ask(&mut last, "fixed", 1, "up").await.granted_amount, 1);
    let refused = ask(&mut last, "fixed", 1, "new").await;
    assert_eq!(refused.granted_amount, 0);
    assert_eq!(refused.status.unwrap().code, Code::ResourceExhausted as i32);
    server.0.kill().unwrap();
    server.0.wait().unwrap();
    let away = ask(&mut last, "fixed", 1, "away").await;
    assert_eq!(away.status.unwrap().code, Code::Unavailable as i32);
    let strict = ask(&mut last, "strict", 1, "away").await;
    assert_eq!(strict.granted_amount, 0);
    assert_eq!(strict.status.unwrap().code, Code::ResourceExhausted as i32);
    drop(server);
    let _server = redis(folder.path());
    eventually("the connection is back", || {
        let mut client = last.clone();
        async move { ask(&mut client, "fixed", 1, "back").await.granted_amount == 1 }
    })
    .await;
}

/// The sample's environment; made once, beside other build results.
fn sample() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-sample");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples/python/build.sh");
    let status = Command::new(script).arg(&folder).status().unwrap();
    assert!(status.success());
    folder
}

/// Starts the sample; the port, and what it prints.
fn python(folder: &Path, port: u16, flags: &[&str]) -> (Running, u16, Arc<Mutex<Vec<String>>>) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples/python/adapter.py");
    let mut child = Command::new(folder.join("venv/bin/python"))
        .arg(script)
        .args(["--port", &port.to_string(), "--generated"])
        .arg(folder.join("generated"))
        .args(flags)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let running = Running(child);
    let first = lines.next().unwrap().unwrap();
    let port = first.strip_prefix("listening ").unwrap().parse().unwrap();
    let printed: Arc<Mutex<Vec<String>>> = Arc::default();
    let copy = printed.clone();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            copy.lock().push(line);
        }
    });
    (running, port, printed)
}

fn python_config(folder: &Path, port: u16, is_session_based: bool, file: &Path) -> String {
    let text = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let (params, template) = (text("config.base64"), text("wordcount.base64"));
    let team = text("team.base64");
    let file = file.display();
    config(&format!(
        r#"
apiVersion: config.istio.io/v1alpha2
kind: template
metadata: {{name: wordcount, namespace: istio-system}}
spec: {{descriptor: "{template}"}}
---
apiVersion: config.istio.io/v1alpha2
kind: template
metadata: {{name: team, namespace: istio-system}}
spec: {{descriptor: "{team}"}}
---
apiVersion: config.istio.io/v1alpha2
kind: adapter
metadata: {{name: sample, namespace: istio-system}}
spec:
  description: counts words
  session_based: {is_session_based}
  templates: [wordcount, team, metric, quota]
  config: "{params}"
---
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {{name: sample, namespace: istio-system}}
spec:
  adapter: sample
  connection: {{address: "127.0.0.1:{port}", timeout: 30s}}
  params: {{max_words: 2, file: "{file}"}}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {{name: words, namespace: istio-system}}
spec: {{template: wordcount, params: {{text: my.own, labels: {{size: request.size | 0}}}}}}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {{name: team, namespace: istio-system}}
spec: {{template: team, params: {{workload: source.name}}, attributeBindings: {{source.namespace: output.team}}}}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {{name: count, namespace: istio-system}}
spec: {{template: metric, params: {{value: "1", dimensions: {{source: source.name, team: source.namespace}}}}}}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {{name: limit, namespace: istio-system}}
spec: {{template: quota, params: {{dimensions: {{source: source.name}}}}}}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {{name: sample, namespace: istio-system}}
spec: {{actions: [{{handler: sample, instances: [words, team, count, limit]}}]}}
"#
    ))
}

fn words(text: &'static str) -> Attributes {
    attributes([("my.own", text.into()), ("source.name", "a-1".into())])
}

#[tokio::test]
#[ignore = "needs Python and its package index"]
async fn an_adapter_in_python_decides_and_counts() {
    let folder = sample();
    let (adapter, port, _) = python(&folder, 0, &[]);
    let metrics = tempfile::NamedTempFile::new().unwrap();
    let config = python_config(&folder, port, false, metrics.path());
    let mut server = TestServer::start(&config).await;
    let page: Json = serde_json::from_str(&server.page("/debug/config").await).unwrap();
    assert_eq!(page["errors"], json!([]));
    assert_eq!(code(&mut server, &words("two words")).await, 0);
    let response = server.check(request(&words("one two three"))).await;
    let status = response.precondition.unwrap().status.unwrap();
    assert_eq!(status.code, Code::PermissionDenied as i32);
    let want = "sample.istio-system:3 words for words.instance.istio-system";
    assert_eq!(status.message, want);
    let mut request = request(&words("x"));
    let params = QuotaParams {
        amount: 5,
        best_effort: true,
    };
    request.quotas.insert("limit".into(), params);
    let response = server.check(request).await;
    assert_eq!(response.quotas["limit"].granted_amount, 2);
    report(&mut server, &words("x")).await;
    eventually("the metric is written", || {
        let text = std::fs::read_to_string(metrics.path()).unwrap();
        async move { text == "count.instance.istio-system 1 {'source': 'a-1', 'team': 'a'}\n" }
    })
    .await;
    // It dies: an error while it is away; it is used again when it is back.
    drop(adapter);
    let refused = server
        .client
        .check(crate::server::request(&words("x")))
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::Internal);
    let _adapter = python(&folder, port, &[]);
    let client = server.client.clone();
    eventually("the adapter is back", || {
        let mut client = client.clone();
        async move {
            client
                .check(crate::server::request(&words("x")))
                .await
                .is_ok()
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs Python and its package index"]
async fn a_session_is_opened_kept_and_closed() {
    let folder = sample();
    let (adapter, port, printed) = python(&folder, 0, &["--session"]);
    let metrics = tempfile::NamedTempFile::new().unwrap();
    let config = python_config(&folder, port, true, metrics.path());
    let mut server = TestServer::start(&config).await;
    assert_eq!(code(&mut server, &words("two words")).await, 0);
    let types = ["count", "limit", "words"].map(|name| format!("{name}.instance.istio-system"));
    let types = format!("types {}", types.join(" "));
    eventually("the session has these types", || {
        let is_told = printed.lock().contains(&types);
        async move { is_told }
    })
    .await;
    // Started anew, it knows no session: a new one is opened.
    drop(adapter);
    let (_adapter, _, printed) = python(&folder, port, &["--session"]);
    let client = server.client.clone();
    eventually("there is a new session", || {
        let mut client = client.clone();
        async move {
            let answer = client
                .check(crate::server::request(&words("one two three")))
                .await;
            answer.is_ok_and(|answer| {
                let precondition = answer.into_inner().precondition.unwrap();
                precondition.status.unwrap().code == Code::PermissionDenied as i32
            })
        }
    })
    .await;
    server.write("");
    eventually("the session is closed", || {
        let is_closed = printed.lock().iter().any(|line| line == "closed");
        async move { is_closed }
    })
    .await;
}
