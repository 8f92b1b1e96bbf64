//! Two replicas, as processes of their own over the same configuration: one is told to end, and its clients go on with the other.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::envoy::config::core::v3::Node;
use proto::type_url::{CLUSTER, ENDPOINT};
use proto_component::grpc::{ClientOptions, channel};

use super::ads::{Client, addresses, assignments};

const PATIENCE: Duration = Duration::from_secs(60);
/// What a process that drains may take at most.
const GRACE: Duration = Duration::from_secs(10);
const CLIENTS: usize = 20;
const SHOP: &str = "outbound|80||shop.test";

/// A running Pilot; it ends with this.
struct Replica {
    process: Child,
    xds: String,
}

impl Drop for Replica {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Replica {
    async fn start(folder: &Path) -> Self {
        let xds = {
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().to_string()
        };
        let process = Command::new(env!("CARGO_BIN_EXE_pilot-discovery"))
            .args(["discovery", "--registries=Mock", "--secureGrpcAddr="])
            .args(["--mtlsGrpcAddr=", "--configDir"])
            .arg(folder)
            .args(["--grpcAddr", &xds, "--httpAddr=127.0.0.1:0"])
            .arg("--monitoringAddr=127.0.0.1:0")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while tokio::net::TcpStream::connect(&xds).await.is_err() {
            assert!(begun.elapsed() < PATIENCE, "nobody listens on {xds}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Self { process, xds }
    }

    /// A proxy that has its clusters and endpoints from here; the addresses of the latter.
    async fn serve(&self, index: usize) -> (Client, Vec<String>) {
        let node = Node {
            id: format!("sidecar~10.1.9.{index}~web-{index}.default~default.svc.cluster.local"),
            ..Node::default()
        };
        let channel = channel(&self.xds, None, &ClientOptions::default()).unwrap();
        let mut client = Client::connect_to(channel, node).await;
        client.subscribe(CLUSTER, &[]).await;
        let endpoints = client.subscribe(ENDPOINT, &[SHOP]).await;
        (client, addresses(&assignments(&endpoints)[0]))
    }
}

fn write(folder: &Path, address: &str) {
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: shop, namespace: default}}\nspec:\n  \
         hosts: [shop.test]\n  resolution: STATIC\n  ports: [{{number: 80, name: http, protocol: HTTP}}]\n  \
         endpoints: [{{address: {address}}}]\n"
    );
    // Written aside first, so that nobody reads half of it.
    let aside = folder.with_extension("yaml");
    std::fs::write(&aside, text).unwrap();
    std::fs::rename(aside, folder.join("shop.yaml")).unwrap();
}

#[tokio::test]
async fn clients_of_a_replica_that_ends_go_on_with_another_one() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("config");
    std::fs::create_dir(&folder).unwrap();
    write(&folder, "10.9.0.1");
    let mut first = Replica::start(&folder).await;
    let second = Replica::start(&folder).await;
    let mut clients = Vec::new();
    for index in 0..CLIENTS {
        let (client, addresses) = first.serve(index).await;
        assert_eq!(addresses, ["10.9.0.1"]);
        clients.push(client);
    }

    let pid = Pid::from_raw(i32::try_from(first.process.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    let begun = Instant::now();
    // Each is told, and so need not find out by itself.
    for client in &mut clients {
        assert_eq!(client.refusal().await, tonic::Code::Unavailable);
    }
    let status = loop {
        if let Some(status) = first.process.try_wait().unwrap() {
            break status;
        }
        assert!(begun.elapsed() < PATIENCE, "the first replica does not end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(status.code(), Some(0));
    assert!(begun.elapsed() < GRACE, "nothing was cut off");
    let mut clients = Vec::new();
    for index in 0..CLIENTS {
        let (client, addresses) = second.serve(index).await;
        assert_eq!(addresses, ["10.9.0.1"]);
        clients.push(client);
    }

    write(&folder, "10.9.0.2");
    for client in &mut clients {
        let push = client.next().await;
        assert_eq!(push.type_url, ENDPOINT);
        assert_eq!(addresses(&assignments(&push)[0]), ["10.9.0.2"]);
    }
}
