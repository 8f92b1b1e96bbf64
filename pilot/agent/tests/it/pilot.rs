//! A Pilot that passes on what it is asked and says what it is told to.

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

/// The way back to who asks.
pub(crate) type Answers = mpsc::Sender<Result<DiscoveryResponse, Status>>;

/// What it is asked, always with the node that the stream began with.
pub(crate) struct Heard {
    pub(crate) request: DiscoveryRequest,
    pub(crate) answers: Answers,
}

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
            let mut node = None;
            loop {
                let request = tokio::select! {
                    request = requests.message() => request,
                    () = drain.signaled() => return,
                };
                let Ok(Some(mut request)) = request else {
                    return;
                };
                node = request.node.take().or(node);
                request.node.clone_from(&node);
                let answers = answers.clone();
                if heard.send(Heard { request, answers }).await.is_err() {
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

/// Starts it on `port`: its port, what it hears, and what ends it.
pub(crate) async fn listening(port: u16) -> (u16, mpsc::Receiver<Heard>, drain::Trigger) {
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
