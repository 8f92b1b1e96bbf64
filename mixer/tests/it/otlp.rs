//! Spans of the program's own work reach a collector.

use std::process::{Command, Stdio};
use std::time::Duration;

use proto::opentelemetry::proto::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use proto::opentelemetry::proto::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use crate::server::default_config;

/// Keeps what it is sent.
struct Collector(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        // The test has seen enough if nobody listens.
        let _ = self.0.send(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test]
async fn a_collector_is_told_of_configurations_put_in_force() {
    let (sender, mut exports) = mpsc::unbounded_channel();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let server = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(Collector(sender)))
        .serve_with_incoming(incoming);
    let server = proto_component::task::spawn("collector", server);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.yaml"), default_config()).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_mixs"))
        .args(["server", "--address=tcp://127.0.0.1:0"])
        .args(["--monitoringPort=0", "--prometheusPort=0"])
        .args(["--otlpEndpoint", &endpoint])
        .arg(format!("--configStoreURL=fs://{}", folder.path().display()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let span = async {
        while let Some(export) = exports.recv().await {
            for spans in &export.resource_spans {
                let attributes = spans.resource.iter().flat_map(|of| &of.attributes);
                let is_ours = attributes
                    .filter(|attribute| attribute.key == "service.name")
                    .any(|attribute| format!("{:?}", attribute.value).contains("mixs"));
                let mut names = spans.scope_spans.iter().flat_map(|scope| &scope.spans);
                if is_ours && names.any(|span| span.name == "apply_configuration") {
                    return true;
                }
            }
        }
        false
    };
    let found = tokio::time::timeout(Duration::from_secs(60), span).await;
    child.kill().unwrap();
    child.wait().unwrap();
    server.abort();
    assert_eq!(found, Ok(true), "the span has not come");
}
