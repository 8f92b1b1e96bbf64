//! Reports: the default configuration's metrics, both encodings, errors.

use proto::istio::mixer::v1::report_request::RepeatedAttributesSemantics;
use proto::istio::mixer::v1::{CompressedAttributes, ReportRequest};
use proto_mesh::attribute::codec::Encoder;
use proto_mesh::attribute::{Attributes, Value, dictionary};
use tonic::Code;

use crate::server::{TestServer, attributes, default_config, default_file};

fn encode(sets: &[Attributes], semantics: RepeatedAttributesSemantics) -> ReportRequest {
    let mut encoder = Encoder::new(dictionary::WORDS.len());
    let attributes = sets
        .iter()
        .map(|set| encoder.encode(set.iter().map(|(name, value)| (name, value.as_ref()))))
        .collect();
    ReportRequest {
        attributes,
        default_words: encoder.into_words(),
        global_word_count: 222,
        repeated_attributes_semantics: semantics.into(),
    }
}

fn http(code: i64) -> Attributes {
    attributes([
        ("context.protocol", "http".into()),
        ("context.reporter.kind", "inbound".into()),
        ("connection.mtls", Value::Bool(true)),
        ("source.workload.name", "productpage-v1".into()),
        ("source.namespace", "default".into()),
        (
            "source.principal",
            "cluster.local/ns/default/sa/productpage".into(),
        ),
        ("destination.workload.name", "reviews-v2".into()),
        ("destination.namespace", "default".into()),
        (
            "destination.labels",
            Value::StringMap(vec![
                ("app".into(), "reviews".into()),
                ("version".into(), "v2".into()),
            ]),
        ),
        (
            "destination.service.host",
            "reviews.default.svc.cluster.local".into(),
        ),
        ("destination.service.name", "reviews".into()),
        ("destination.service.namespace", "default".into()),
        ("response.code", Value::Int64(code)),
        (
            "response.duration",
            Value::Duration(prost_types::Duration {
                seconds: 0,
                nanos: 20_000_000,
            }),
        ),
        ("request.size", Value::Int64(0)),
        ("response.size", Value::Int64(375)),
    ])
}

#[tokio::test]
async fn the_default_configuration_counts_requests() {
    let mut server = TestServer::start(&default_config()).await;
    let page: serde_json::Value =
        serde_json::from_str(&server.page("/debug/config").await).unwrap();
    assert_eq!(page["errors"], serde_json::json!([]));
    let mut probe = http(200);
    probe.set("request.useragent", "kube-probe/1.30");
    let request = encode(
        &[http(200), http(503), http(200), probe],
        RepeatedAttributesSemantics::IndependentEncoding,
    );
    server.client.report(request).await.unwrap();
    let text = server.scrape().await;
    let labels = |code: &str| {
        format!(
            "{{connection_security_policy=\"mutual_tls\",destination_app=\"reviews\",destination_principal=\"unknown\",\
             destination_service=\"reviews.default.svc.cluster.local\",destination_service_name=\"reviews\",\
             destination_service_namespace=\"default\",destination_version=\"v2\",destination_workload=\"reviews-v2\",\
             destination_workload_namespace=\"default\",permissive_response_code=\"none\",permissive_response_policyid=\"none\",\
             reporter=\"destination\",request_protocol=\"http\",response_code=\"{code}\",response_flags=\"-\",source_app=\"unknown\",\
             source_principal=\"cluster.local/ns/default/sa/productpage\",source_version=\"unknown\",\
             source_workload=\"productpage-v1\",source_workload_namespace=\"default\"}}"
        )
    };
    for want in [
        format!("istio_requests_total{} 2\n", labels("200")),
        format!("istio_requests_total{} 1\n", labels("503")),
        format!("istio_request_duration_seconds_sum{} 0.04\n", labels("200")),
        format!("istio_request_duration_seconds_count{} 1\n", labels("503")),
        format!("istio_response_bytes_sum{} 750\n", labels("200")),
    ] {
        assert!(text.contains(&want), "{want} in {text}");
    }
    assert!(text.contains("le=\"0.025\"} 2\n") && text.contains("le=\"100000000\"} 2\n"));
    assert!(!text.contains("istio_tcp"));
}

#[tokio::test]
async fn delta_encoded_sets_build_on_each_other() {
    let mut server = TestServer::start(&default_config()).await;
    let tcp = attributes([
        ("context.protocol", "tcp".into()),
        ("connection.event", "open".into()),
        ("context.reporter.kind", "outbound".into()),
        ("connection.sent.bytes", Value::Int64(10)),
        ("connection.received.bytes", Value::Int64(1)),
    ]);
    let next = attributes([
        ("connection.event", "continue".into()),
        ("connection.sent.bytes", Value::Int64(5)),
    ]);
    let close = attributes([("connection.event", "close".into())]);
    let request = encode(
        &[tcp, next, close],
        RepeatedAttributesSemantics::DeltaEncoding,
    );
    server.client.report(request).await.unwrap();
    let text = server.scrape().await;
    let value = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().to_owned()
    };
    assert_eq!(value("istio_tcp_sent_bytes_total{"), "20");
    assert_eq!(value("istio_tcp_received_bytes_total{"), "3");
    assert_eq!(value("istio_tcp_connections_opened_total{"), "1");
    assert_eq!(value("istio_tcp_connections_closed_total{"), "1");
    assert!(text.contains("reporter=\"source\""));
}

#[tokio::test]
async fn a_report_that_cannot_be_read_is_an_error() {
    let mut server = TestServer::start(&default_config()).await;
    let mut broken = CompressedAttributes::default();
    broken.strings.insert(-1, 5);
    let request = ReportRequest {
        attributes: vec![broken],
        ..ReportRequest::default()
    };
    let error = server.client.report(request).await.unwrap_err();
    assert_eq!(error.code(), Code::Unknown);
    let too_many = ReportRequest {
        global_word_count: 300,
        ..ReportRequest::default()
    };
    let error = server.client.report(too_many).await.unwrap_err();
    assert_eq!(error.code(), Code::Internal);
    server
        .client
        .report(ReportRequest::default())
        .await
        .unwrap();
}

const SAMPLED: &str = r#"
---
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {name: sampled, namespace: istio-system}
spec:
  compiledAdapter: prometheus
  params: {metrics: [{name: sampled, instanceName: one.instance.istio-system, kind: COUNTER}]}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {name: one, namespace: istio-system}
spec: {compiledTemplate: metric, params: {value: "1"}}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: sampled, namespace: istio-system}
spec:
  match: response.code == 200
  actions: [{handler: sampled, instances: [one]}]
  sampling: {rateLimit: {samplingDuration: 3600s, maxUnsampledEntries: 2, samplingRate: 4}}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {name: nothing, namespace: istio-system}
spec: {compiledTemplate: checknothing}
---
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {name: noop, namespace: istio-system}
spec: {compiledAdapter: noop}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: verdict, namespace: istio-system}
spec:
  actions: [{handler: noop, instances: [nothing]}]
  sampling: {random: {percentSampled: {numerator: 50}}}
"#;

#[tokio::test]
async fn a_rule_tells_of_a_sample() {
    let mut server = TestServer::start(&(default_config() + SAMPLED)).await;
    let page: serde_json::Value =
        serde_json::from_str(&server.page("/debug/config").await).unwrap();
    let [error] = page["errors"].as_array().unwrap().as_slice() else {
        panic!("{page}");
    };
    // A verdict is used again and again: it cannot be drawn.
    assert!(error.to_string().contains("nothing but report templates"));
    let request = encode(
        &vec![http(200); 10],
        RepeatedAttributesSemantics::IndependentEncoding,
    );
    server.client.report(request).await.unwrap();
    // The first two, then the sixth and the tenth.
    let text = server.scrape().await;
    assert!(text.contains("istio_sampled 4\n"), "{text}");
}

#[tokio::test]
async fn access_logs_can_be_switched_on() {
    let accesslog = default_file("accesslog");
    let server = TestServer::start(&format!("{}---\n{accesslog}", default_config())).await;
    let page: serde_json::Value =
        serde_json::from_str(&server.page("/debug/config").await).unwrap();
    assert_eq!(page["errors"], serde_json::json!([]));
    let handlers = server.page("/debug/handlers").await;
    assert!(handlers.contains("stdio.istio-system"), "{handlers}");
}
