//! Reports of a machine's health, to a Pilot that only listens.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use pilot_agent::discovery::Pilot;
use pilot_agent::health::Prober;
use pilot_agent::secret_cache::SecretCache;
use proto::envoy::config::core::v3::Node;
use proto_component::drain;
use tokio::sync::mpsc;

use crate::pilot::{Heard, listening};

const PATIENCE: Duration = Duration::from_secs(60);
const HEALTH: &str = "type.googleapis.com/istio.v1.HealthInformation";

fn prober(file: &Path) -> Prober {
    let probe = proto::json::from_value(&serde_json::json!({
        "exec": {"command": ["test", "-e", file]}, "periodSeconds": 1, "timeoutSeconds": 60, "failureThreshold": 1,
    }))
    .unwrap();
    Prober::new(&probe, IpAddr::from([127, 0, 0, 1])).unwrap()
}

/// The next report: who says it, and what is wrong.
async fn next(said: &mut mpsc::Receiver<Heard>) -> (String, Option<String>) {
    let next = tokio::time::timeout(PATIENCE, said.recv()).await;
    let request = next.expect("in time").expect("a report").request;
    assert_eq!(request.type_url, HEALTH);
    let error = request.error_detail.map(|error| error.message);
    (request.node.unwrap().id, error)
}

#[tokio::test]
async fn changes_of_health_are_told_and_told_anew_to_a_pilot_that_comes_back() {
    proto_component::tls::install_provider();
    let folder = tempfile::tempdir().unwrap();
    let sign = folder.path().join("healthy");
    let (port, mut said, first) = listening(0).await;
    let pilot = Pilot {
        address: format!("127.0.0.1:{port}"),
        identity: None,
        secrets: SecretCache::new(folder.path().join("credentials")),
        node: Node {
            id: "machine".to_owned(),
            ..Node::default()
        },
    };
    let (_trigger, drain) = drain::channel();
    prober(&sign).start(pilot, drain);
    let (id, error) = next(&mut said).await;
    assert_eq!(id, "machine");
    assert!(error.unwrap().starts_with("test: exit status: 1"));
    std::fs::write(&sign, "").unwrap();
    assert_eq!(next(&mut said).await, ("machine".to_owned(), None));
    // Pilot ends and comes back.
    first.drain(Duration::ZERO);
    drop(said);
    let (_, mut said, _second) = loop {
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            break listening(port).await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(next(&mut said).await, ("machine".to_owned(), None));
    std::fs::remove_file(&sign).unwrap();
    assert!(next(&mut said).await.1.is_some());
}

#[test]
fn a_probe_that_does_nothing_is_refused() {
    let probe = proto::json::from_value(&serde_json::json!({"periodSeconds": 1})).unwrap();
    let refused = Prober::new(&probe, IpAddr::from([127, 0, 0, 1])).err();
    assert!(
        refused
            .unwrap()
            .to_string()
            .contains("httpGet, tcpSocket, exec or grpc")
    );
}
