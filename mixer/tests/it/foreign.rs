//! A client and a server that know the 1.4 line's contract, and nothing of ours (`foreign.py`): the client is answered by our
//! server, the server asked by `mixs check`.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use serde_json::{Value as Json, json};

use crate::adapters::Running;
use crate::server::{MANIFEST, TestServer};

const RULES: &str = r#"
---
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {name: deny, namespace: istio-system}
spec: {compiledAdapter: denier, params: {status: {code: 7, message: "no"}, validDuration: 9s, validUseCount: 3}}
---
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {name: quota, namespace: istio-system}
spec: {compiledAdapter: memquota, params: {quotas: [{name: limit.instance.istio-system, maxAmount: 3, validDuration: 60s}]}}
---
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {name: count, namespace: istio-system}
spec:
  compiledAdapter: prometheus
  params: {metrics: [{name: sizes, instanceName: size.instance.istio-system, kind: COUNTER, labelNames: [who]}]}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {name: nothing, namespace: istio-system}
spec: {compiledTemplate: checknothing}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {name: limit, namespace: istio-system}
spec: {compiledTemplate: quota, params: {dimensions: {from: source.ip}}}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {name: size, namespace: istio-system}
spec: {compiledTemplate: metric, params: {value: request.size, dimensions: {who: source.name}}}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: deny, namespace: istio-system}
spec: {match: source.name == "evil", actions: [{handler: deny, instances: [nothing]}]}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: others, namespace: istio-system}
spec:
  actions: [{handler: quota, instances: [limit]}, {handler: count, instances: [size]}]
  requestHeaderOperations: [{name: x-who, values: ['request.headers["x-user"] | "nobody"'], operation: APPEND}]
"#;

#[allow(clippy::disallowed_methods, reason = "the tests' only input")]
fn python(arguments: &[&str]) -> Command {
    let packages = std::env::var("GRPCIO").expect("GRPCIO is the folder of grpcio");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/foreign.py");
    let mut command = Command::new("python3");
    command.arg(script).args(arguments);
    command.env("PYTHONPATH", packages).stdout(Stdio::piped());
    command
}

#[tokio::test]
#[ignore = "needs Python's grpcio: set GRPCIO to its folder"]
async fn a_client_of_the_contract_alone_is_answered() {
    let server = TestServer::start(&format!("{MANIFEST}{RULES}")).await;
    let port = server.grpc.to_string();
    let output = tokio::task::spawn_blocking(move || python(&["client", &port]).output());
    let output = output.await.unwrap().unwrap();
    let heard: Json = serde_json::from_slice(&output.stdout).unwrap();
    let looked_at = [
        "-context.reporter.kind",
        "-destination.namespace",
        "request.headers[x-user]",
        "source.name",
    ];
    let quota = json!({"granted": 3, "seconds": 60,
        "referenced": ["-context.reporter.kind", "-destination.namespace", "source.ip"]});
    let good = json!({
        "code": 0, "message": "", "seconds": 60, "uses": 10_000, "referenced": looked_at,
        "headers": [["x-who", "admin", 2]], "quotas": {"limit": quota},
    });
    assert_eq!(heard["good"], good);
    for evil in ["evil", "without the dictionary"] {
        let refused = json!({
            "code": 7, "message": "deny.istio-system:no", "seconds": 9, "uses": 3,
            "referenced": ["-context.reporter.kind", "-destination.namespace", "source.name"],
            "headers": [], "quotas": {},
        });
        assert_eq!(heard[evil], refused, "{evil}");
    }
    assert_eq!(heard["too many words"], "INTERNAL");
    assert_eq!(heard["report"], json!([]));
    assert_eq!(heard["report of nothing"], json!([]));
    let counted = server.scrape().await;
    for who in ["alice", "bob"] {
        let series = format!("istio_sizes{{who=\"{who}\"}} 7\n");
        assert!(counted.contains(&series), "{series} in {counted}");
    }
}

#[test]
#[ignore = "needs Python's grpcio: set GRPCIO to its folder"]
fn a_server_of_the_contract_alone_is_asked() {
    let mut server = python(&["server"]).spawn().unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let _server = Running(server);
    let port = lines.next().unwrap().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_mixs"))
        .args(["check", "--mixer", &format!("127.0.0.1:{port}")])
        .args(["-s", "source.name=me,my.own=x", "-i", "request.size=500"])
        .args(["--bytes_attributes", "source.ip=0a:00:00:01"])
        .args(["--stringmap_attributes", "request.headers=x-user:a"])
        .args(["-q", "limit=5"])
        .output()
        .unwrap();
    let shown = "check: PermissionDenied (not you)\nvalid: 5s, 9 uses\n\
        referenced: -request.headers[x-user], source.name\ndirect response: 302 \"elsewhere\"\n\
        request header: append x-team: red\nquota limit: granted 3 for 2s\n";
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!((output.status.code(), text.as_str()), (Some(3), shown));
    let asked: Json = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    let attributes = json!({
        "source.name": "me", "my.own": "x", "request.size": 500, "source.ip": [10, 0, 0, 1],
        "request.headers": {"x-user": "a"},
    });
    assert_eq!(asked["attributes"], attributes);
    assert_eq!(asked["words"], 222);
    assert_eq!(asked["quotas"], json!({"limit": [5, false]}));
    assert_ne!(asked["id"], "");
}
