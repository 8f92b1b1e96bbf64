//! gRPC's own xDS client (Python's grpcio; `GRPCIO` is its folder) is configured by Pilot: its calls follow weights and timeouts.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::de::DeserializeOwned;
use serde_json::json;

use super::mesh::Pilot;

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

impl Client {
    fn start(packages: &str, pilot: u16) -> Self {
        let bootstrap = json!({
            "xds_servers": [{
                "server_uri": format!("127.0.0.1:{pilot}"),
                "channel_creds": [{"type": "insecure"}],
                "server_features": ["xds_v3"],
            }],
            "node": {
                "id": "sidecar~10.1.9.9~client.default~default.svc.cluster.local",
                "metadata": {"GENERATOR": "grpc"},
            },
        });
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/grpc_client.py");
        // Nobody answers after this: what hangs ends as well.
        let mut child = Command::new("timeout")
            .args(["120", "python3", script, &format!("{HOST}:9000")])
            .env("PYTHONPATH", packages)
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

    /// How often each server answered, or with which status.
    fn call(&mut self, path: &str, count: u32) -> BTreeMap<String, u32> {
        writeln!(self.input, "{path} {count}").unwrap();
        self.read()
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
    #[allow(clippy::disallowed_methods, reason = "the test's only input")]
    let packages = std::env::var("GRPCIO").expect("GRPCIO is the folder of grpcio");
    let pilot = Pilot::start_empty().await;
    let mut client = Client::start(&packages, pilot.port);
    let client = tokio::task::spawn_blocking(move || {
        let ports: [u16; 2] = client.read();
        (client, ports)
    });
    let (mut client, ports) = client.await.unwrap();
    pilot.apply(&config(ports)).await;
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
