//! gRPC's own xDS client and server (Python's grpcio; `GRPCIO` is its folder) are configured by Pilot: calls follow weights and
//! timeouts, and both sides prove who they are.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::credentials::Authority;
use super::mesh::{Pilot, eventually};

const HOST: &str = "echo.default.svc.cluster.local";
const CALLS: u32 = 400;

/// The client with its servers; it ends with this.
struct Client {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Drop for Client {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a client or server is told of Pilot.
fn bootstrap(pilot: u16) -> Value {
    json!({
        "xds_servers": [{
            "server_uri": format!("127.0.0.1:{pilot}"),
            "channel_creds": [{"type": "insecure"}],
            "server_features": ["xds_v3"],
        }],
        "node": {
            "id": "sidecar~10.1.9.9~client.default~default.svc.cluster.local",
            "metadata": {"GENERATOR": "grpc"},
        },
    })
}

#[allow(clippy::disallowed_methods, reason = "the tests' only input")]
fn packages() -> String {
    std::env::var("GRPCIO").expect("GRPCIO is the folder of grpcio")
}

impl Client {
    fn start(script: &str, argument: &str, bootstrap: &Value) -> Self {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it");
        // Nobody answers after this: what hangs ends as well.
        let mut child = Command::new("timeout")
            .args(["120", "python3", &format!("{folder}/{script}"), argument])
            .env("PYTHONPATH", packages())
            .env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Client {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    fn read<T: DeserializeOwned>(&mut self) -> T {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    /// Says a line; the answer to it.
    fn ask<T: DeserializeOwned>(&mut self, line: &str) -> T {
        writeln!(self.input, "{line}").unwrap();
        self.read()
    }

    /// How often each server answered, or with which status.
    fn call(&mut self, path: &str, count: u32) -> BTreeMap<String, u32> {
        self.ask(&format!("{path} {count}"))
    }
}

fn config(ports: [u16; 2]) -> String {
    let [first, second] = ports;
    format!(
        "---
apiVersion: networking.istio.io/v1alpha3
kind: ServiceEntry
metadata: {{name: echo, namespace: default, annotations: {{networking.alpha.istio.io/serviceVersion: \"1\"}}}}
spec:
  hosts: [{HOST}]
  addresses: [10.96.0.9]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 9000, name: grpc, protocol: GRPC}}]
  endpoints:
  - {{address: 127.0.0.1, ports: {{grpc: {first}}}, labels: {{version: v1}}}}
  - {{address: 127.0.0.1, ports: {{grpc: {second}}}, labels: {{version: v2}}}}
---
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata: {{name: echo, namespace: default}}
spec:
  host: {HOST}
  subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]
---
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {{name: echo, namespace: default}}
spec:
  hosts: [{HOST}]
  http:
  - match: [{{uri: {{prefix: /test.Echo/Slow}}}}]
    timeout: 0.3s
    route: [{{destination: {{host: {HOST}, subset: v1}}}}]
  - route:
    - {{destination: {{host: {HOST}, subset: v1}}, weight: 80}}
    - {{destination: {{host: {HOST}, subset: v2}}, weight: 20}}
"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Python's grpcio: set GRPCIO to its folder"]
async fn grpcs_own_client_follows_weights_and_timeouts() {
    let pilot = Pilot::start_empty().await;
    let target = format!("{HOST}:9000");
    let mut client = Client::start("grpc_client.py", &target, &bootstrap(pilot.port));
    let client = tokio::task::spawn_blocking(move || {
        let ports: [u16; 2] = client.read();
        (client, ports)
    });
    let (mut client, ports) = client.await.unwrap();
    pilot.apply(&config(ports)).await;
    // Calls would go elsewhere before; the service comes after its routes.
    eventually(|| {
        let current = pilot.discovery.current();
        current.push.services.lookup(HOST, "default").is_some()
    })
    .await;
    let calls = tokio::task::spawn_blocking(move || {
        let answers = client.call("/test.Echo/Say", CALLS);
        (answers, client.call("/test.Echo/Slow", 1))
    });
    let (answers, slow) = calls.await.unwrap();
    assert_eq!(answers.values().sum::<u32>(), CALLS, "{answers:?}");
    // 80 of 100; ten standard deviations of 400 draws are 20 of 100.
    let share = f64::from(answers["v1"]) / f64::from(CALLS);
    assert!(
        (0.6..1.0).contains(&share) && answers["v2"] > 0,
        "{answers:?}"
    );
    assert_eq!(slow, BTreeMap::from([("DEADLINE_EXCEEDED".to_owned(), 1)]));
}

/// Two services of one server: what others call it, and what it is not.
fn mutual_config(port: u16) -> String {
    let service = |name: &str, account: &str| {
        format!(
            "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: default, annotations: {{networking.alpha.istio.io/serviceVersion: \"1\"}}}}
spec:
  hosts: [{name}.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 9000, name: grpc, protocol: GRPC}}]
  endpoints: [{{address: 127.0.0.1, ports: {{grpc: {port}}}, serviceAccount: {account}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}, namespace: default}}
spec: {{host: {name}.default.svc.cluster.local, trafficPolicy: {{tls: {{mode: ISTIO_MUTUAL}}}}}}
"
        )
    };
    service("server", "server")
        + &service("impostor", "somebody-else")
        + "---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: default}
spec: {mtls: {mode: STRICT}}
"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Python's grpcio: set GRPCIO to its folder"]
async fn grpcs_own_client_and_server_prove_who_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let pem = Authority::new().issue("spiffe://cluster.local/ns/default/sa/server");
    let file = |name: &str| folder.path().join(name);
    for (name, bytes) in [("chain", pem.chain), ("key", pem.key), ("roots", pem.roots)] {
        std::fs::write(file(name), bytes).unwrap();
    }
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port()
    };
    let pilot = Pilot::start(&mutual_config(port)).await;
    let mut bootstrap = bootstrap(pilot.port);
    bootstrap["server_listener_resource_name_template"] = json!("xds.istio.io/grpc/lds/inbound/%s");
    bootstrap["certificate_providers"] = json!({"default": {
        "plugin_name": "file_watcher",
        "config": {"certificate_file": file("chain"), "private_key_file": file("key"),
            "ca_certificate_file": file("roots"), "refresh_interval": "600s"},
    }});
    let address = format!("127.0.0.1:{port}");
    let said = tokio::task::spawn_blocking(move || {
        let mut peer = Client::start("grpc_mutual.py", &address, &bootstrap);
        assert_eq!(peer.read::<String>(), "started");
        let targets = [
            "xds:///server.default.svc.cluster.local:9000",
            "xds:///impostor.default.svc.cluster.local:9000",
            &address,
        ];
        targets.map(|target| peer.ask::<String>(target))
    });
    let said = said.await.unwrap();
    assert_eq!(
        said,
        [
            "spiffe://cluster.local/ns/default/sa/server",
            // The server's certificate is not of whom the client looks for.
            "UNAVAILABLE",
            // And it takes no plain text.
            "UNAVAILABLE"
        ]
    );
}
