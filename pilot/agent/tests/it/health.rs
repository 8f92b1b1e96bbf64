//! Reports of a machine's health, to a Pilot that only listens.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use pilot_agent::discovery::Pilot;
use pilot_agent::health::Prober;
use pilot_agent::secret_cache::SecretCache;
use proto::envoy::config::core::v3::Node;
use proto::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use proto_component::drain::{self, Drain};
use proto_component::grpc::{self, ServerOptions};
use proto_component::listen::Listener;
use proto_component::task;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

const PATIENCE: Duration = Duration::from_secs(60);

/// What it hears: who says it, and what is wrong.
type Heard = (String, Option<String>);

struct Listening(mpsc::Sender<Heard>, Drain);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Listening {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        requests: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (answers, outgoing) = mpsc::channel(1);
        let (heard, drain) = (self.0.clone(), self.1.clone());
        let mut requests = requests.into_inner();
        task::spawn("listen", async move {
            let _open = answers;
            let mut id = String::new();
            loop {
                let request = tokio::select! {
                    request = requests.message() => request,
                    () = drain.signaled() => return,
                };
                let Ok(Some(request)) = request else { return };
                assert_eq!(
                    request.type_url,
                    "type.googleapis.com/istio.v1.HealthInformation"
                );
                if let Some(node) = request.node {
                    id = node.id;
                }
                let error = request.error_detail.map(|error| error.message);
                if heard.send((id.clone(), error)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}

/// Starts a Pilot on `port`; what it hears, and what ends it.
async fn listening(port: u16) -> (u16, mpsc::Receiver<Heard>, drain::Trigger) {
    let (heard, said) = mpsc::channel(16);
    let (trigger, drain) = drain::channel();
    let listener = Listener::bind_text(&format!("127.0.0.1:{port}"), "--grpcAddr")
        .await
        .unwrap();
    let port = listener.port().unwrap();
    let incoming = listener.plaintext(&drain);
    let service = AggregatedDiscoveryServiceServer::new(Listening(heard, drain.clone()));
    task::spawn("pilot", async move {
        let routes = tonic::service::Routes::new(service);
        grpc::serve(incoming, routes, &ServerOptions::default(), None, drain).await
    });
    (port, said, trigger)
}

fn prober(file: &Path) -> Prober {
    let probe = proto::json::from_value(&serde_json::json!({
        "exec": {"command": ["test", "-e", file]}, "periodSeconds": 1, "failureThreshold": 1,
    }))
    .unwrap();
    Prober::new(&probe, IpAddr::from([127, 0, 0, 1])).unwrap()
}

async fn next(said: &mut mpsc::Receiver<Heard>) -> Heard {
    let next = tokio::time::timeout(PATIENCE, said.recv()).await;
    next.expect("in time").expect("a report")
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
