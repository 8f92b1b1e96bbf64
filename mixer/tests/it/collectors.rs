//! Telemetry that goes elsewhere, as it arrives there: StatsD, Fluentd, an OpenTelemetry collector; and a backend that is asked in
//! the place of an adapter.

use std::time::Duration;

use proto::istio::mixer::adapter::model::v1beta1::CheckResult;
use proto::istio::mixer::v1::ReportRequest;
use proto::opentelemetry::proto::collector::logs::v1::logs_service_server::{
    LogsService, LogsServiceServer,
};
use proto::opentelemetry::proto::collector::logs::v1::{
    ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use proto::opentelemetry::proto::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use proto::opentelemetry::proto::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use proto_component::task;
use serde_json::{Value as Json, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;
use tonic::{Code, Request, Response, Status};

use crate::outputs::adapter;
use crate::server::{MANIFEST, TestServer, attributes, eventually, request};

/// Passes on what it is sent, as text.
#[derive(Clone)]
struct Collector(mpsc::UnboundedSender<String>);

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        // The test has seen enough if nobody listens.
        let _ = self.0.send(format!("{:?}", request.into_inner()));
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let _ = self.0.send(format!("{:?}", request.into_inner()));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn config(statsd: u16, fluentd: u16, otlp: u16) -> String {
    format!(
        r#"{MANIFEST}---
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {{name: statsd, namespace: istio-system}}
spec:
  compiledAdapter: statsd
  params: {{address: "127.0.0.1:{statsd}", prefix: mesh, flushDuration: 10ms,
    metrics: {{people.instance.istio-system: {{type: COUNTER, nameTemplate: "people-{{{{.who}}}}"}}}}}}
---
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {{name: fluentd, namespace: istio-system}}
spec: {{compiledAdapter: fluentd, params: {{address: "127.0.0.1:{fluentd}", pushIntervalDuration: 10ms}}}}
---
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {{name: otlp, namespace: istio-system}}
spec: {{compiledAdapter: otlp, params: {{address: "127.0.0.1:{otlp}"}}}}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {{name: people, namespace: istio-system}}
spec: {{compiledTemplate: metric, params: {{value: "1", dimensions: {{who: source.name}}}}}}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {{name: entry, namespace: istio-system}}
spec: {{compiledTemplate: logentry, params: {{severity: '"info"', variables: {{who: source.name}}}}}}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {{name: span, namespace: istio-system}}
spec: {{compiledTemplate: tracespan, params: {{traceId: '"463ac35c9f6413ad"', spanId: '"1"', spanName: source.name}}}}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {{name: tell, namespace: istio-system}}
spec:
  actions:
  - {{handler: statsd, instances: [people]}}
  - {{handler: fluentd, instances: [entry]}}
  - {{handler: otlp, instances: [entry, span]}}
"#
    )
}

#[tokio::test]
async fn what_is_reported_reaches_every_collector() {
    let statsd = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let fluentd = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let otlp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = |address: std::io::Result<std::net::SocketAddr>| address.unwrap().port();
    let config = config(
        port(statsd.local_addr()),
        port(fluentd.local_addr()),
        port(otlp.local_addr()),
    );
    let (sender, mut told) = mpsc::unbounded_channel();
    let incoming = tonic::transport::server::TcpIncoming::from(otlp);
    let collector = tonic::transport::Server::builder()
        .add_service(LogsServiceServer::new(Collector(sender.clone())))
        .add_service(TraceServiceServer::new(Collector(sender)))
        .serve_with_incoming(incoming);
    let collector = task::spawn("collector", collector);
    let mut server = TestServer::start(&config).await;
    let page: Json = serde_json::from_str(&server.page("/debug/config").await).unwrap();
    assert_eq!(page["errors"], json!([]));
    let set = request(&attributes([("source.name", "alice".into())])).attributes;
    let report = ReportRequest {
        attributes: set.into_iter().collect(),
        global_word_count: 222,
        ..ReportRequest::default()
    };
    server.client.report(report).await.unwrap();
    let arrived = async {
        let mut packet = [0; 512];
        let length = statsd.recv(&mut packet).await.unwrap();
        assert_eq!(&packet[..length], b"mesh.people-alice:1|c");
        let (mut stream, _) = fluentd.accept().await.unwrap();
        let mut forwarded = Vec::new();
        while !String::from_utf8_lossy(&forwarded).contains("alice") {
            assert_ne!(stream.read_buf(&mut forwarded).await.unwrap(), 0);
        }
        assert!(String::from_utf8_lossy(&forwarded).contains("entry.instance.istio-system"));
        let (mut log, mut span) = (false, false);
        while !(log && span) {
            let told = told.recv().await.unwrap();
            log |= told.contains("LogRecord") && told.contains("alice");
            span |= told.contains("span_id") && told.contains("alice");
        }
    };
    let patience = Duration::from_secs(60);
    tokio::time::timeout(patience, arrived).await.unwrap();
    collector.abort();
}

#[tokio::test]
async fn a_backend_is_asked_by_a_bypass() {
    let refusal = CheckResult {
        status: Some(proto::google::rpc::Status {
            code: Code::ResourceExhausted.into(),
            message: "enough".into(),
            ..proto::google::rpc::Status::default()
        }),
        ..CheckResult::default()
    };
    let port = adapter(&refusal).await;
    let documents = format!(
        r#"{MANIFEST}---
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {{name: pass, namespace: istio-system}}
spec: {{compiledAdapter: bypass, params: {{backendAddress: "127.0.0.1:{port}"}}}}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {{name: nothing, namespace: istio-system}}
spec: {{compiledTemplate: checknothing}}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {{name: pass, namespace: istio-system}}
spec: {{actions: [{{handler: pass, instances: [nothing]}}]}}
"#
    );
    let mut server = TestServer::start(&documents).await;
    let answer = server.check(request(&attributes([]))).await;
    let status = answer.precondition.unwrap().status.unwrap();
    assert_eq!(status.code, Code::ResourceExhausted as i32);
    assert_eq!(status.message, "pass.istio-system:enough");
}

#[tokio::test]
async fn telemetry_that_nobody_takes_is_dropped_and_counted_and_policy_goes_on() {
    const REPORTS: u64 = 50;
    // Nobody listens there.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = gone.local_addr().unwrap().port();
    drop(gone);
    let documents = format!(
        r#"{MANIFEST}---
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {{name: log, namespace: istio-system}}
spec: {{compiledAdapter: fluentd, params: {{address: "127.0.0.1:{port}", instanceBufferSize: 2,
    pushIntervalDuration: 10ms}}}}
---
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {{name: deny, namespace: istio-system}}
spec: {{compiledAdapter: denier, params: {{status: {{code: 7, message: "no"}}}}}}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {{name: entry, namespace: istio-system}}
spec: {{compiledTemplate: logentry, params: {{severity: '"info"', variables: {{who: source.name}}}}}}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {{name: nothing, namespace: istio-system}}
spec: {{compiledTemplate: checknothing}}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {{name: both, namespace: istio-system}}
spec: {{actions: [{{handler: log, instances: [entry]}}, {{handler: deny, instances: [nothing]}}]}}
"#
    );
    let mut server = TestServer::start(&documents).await;
    let alice = request(&attributes([("source.name", "alice".into())]));
    let report = ReportRequest {
        attributes: alice.attributes.clone().into_iter().collect(),
        global_word_count: 222,
        ..ReportRequest::default()
    };
    for _ in 0..REPORTS {
        server.client.report(report.clone()).await.unwrap();
        let verdict = server.check(alice.clone()).await.precondition.unwrap();
        assert_eq!(verdict.status.unwrap().message, "deny.istio-system:no");
    }
    eventually("each of them is counted", || async {
        let metrics = server.page("/metrics").await;
        let dropped = |reason: &str| {
            let series = format!(
                "mixer_adapter_dropped_total{{handler=\"log.istio-system\",reason=\"{reason}\"}} "
            );
            let value = metrics
                .lines()
                .find_map(|line| line.strip_prefix(&series))?;
            value.parse::<u64>().ok()
        };
        let dropped = [dropped("queue full"), dropped("send failed")];
        dropped.iter().flatten().sum::<u64>() == REPORTS
    })
    .await;
}
