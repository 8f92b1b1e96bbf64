//! Tracing end to end: small collectors, real requests.

#![allow(
    clippy::needless_pass_by_value,
    reason = "json! literals and tables read best in place"
)]

use prost::Message as _;
use proto::opentelemetry::proto::collector::trace::v1::ExportTraceServiceRequest;
use serde_json::{Value, json};

use crate::http::testing::{GrpcServer, Proxy, Upstream, grpc_cluster, manager, on_worker};
use crate::listener::Direction;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const ACCEPTED: &str = "HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n";

fn zipkin(more: Value) -> Value {
    let mut config = json!({"@type": "type.googleapis.com/envoy.config.trace.v3.ZipkinConfig",
        "collector_cluster": "z", "collector_endpoint": "/api/v2/spans", "collector_endpoint_version": "HTTP_JSON"});
    let more = more.as_object().unwrap().clone();
    config.as_object_mut().unwrap().extend(more);
    json!({"name": "envoy.tracers.zipkin", "typed_config": config})
}

fn traced(tracing: Value, route: Value) -> Value {
    let mut all = json!({"match": {"prefix": "/"}, "route": {"cluster": "c"}});
    let route = route.as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(route);
    let mut config = manager(json!([all]));
    config["tracing"] = tracing;
    config
}

/// The value of a header in a request as it came.
fn header<'a>(request: &'a str, name: &str) -> Option<&'a str> {
    request
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name}: ")))
}

/// The spans of a report as it came.
fn spans(report: &str) -> Vec<Value> {
    let (_, body) = report.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap()
}

#[test]
fn five_spans_are_a_report_to_zipkin() {
    on_worker(async {
        let mut upstream = Upstream::start(&[OK]).await;
        let mut collector = Upstream::start(&[ACCEPTED]).await;
        let config = traced(
            json!({"provider": zipkin(json!({})), "custom_tags": [
                {"tag": "fixed", "literal": {"value": "f"}},
                {"tag": "who", "request_header": {"name": "x-who", "default_value": "nobody"}},
                {"tag": "env", "environment": {"name": "BIREME_NO_SUCH", "default_value": "d"}},
                {"tag": "format", "value": "%REQ(:METHOD)%!"}]}),
            json!({"decorator": {"operation": "look"}}),
        );
        let clusters = [upstream.cluster("c"), collector.cluster("z")];
        let proxy = Proxy::start_towards(Direction::Outbound, config, &clusters).await;
        let mut ids = Vec::new();
        for _ in 0..5 {
            proxy.get("/p?q=1", "x-who: me\r\n").await;
            let request = upstream.request().await;
            assert_eq!(header(&request, "x-b3-sampled"), Some("1"), "{request}");
            assert_eq!(
                header(&request, "x-envoy-decorator-operation"),
                Some("look")
            );
            let id = header(&request, "x-request-id").unwrap();
            assert_eq!(id.as_bytes()[14], b'9', "{id}");
            ids.push(header(&request, "x-b3-traceid").unwrap().to_owned());
        }
        let report = collector.request().await;
        assert!(
            report.starts_with("POST /api/v2/spans HTTP/1.1\r\nhost: z\r\n"),
            "{report}"
        );
        let spans = spans(&report);
        assert_eq!(spans.len(), 5);
        let span = &spans[0];
        assert_eq!(span["traceId"], ids[0].as_str());
        assert_eq!(span["name"], "look");
        assert_eq!(span["kind"], "CLIENT");
        assert_eq!(span["localEndpoint"]["serviceName"], "cluster");
        assert!(span["duration"].as_u64().unwrap() > 0);
        let tags = &span["tags"];
        for (name, value) in [
            ("component", "proxy"),
            ("http.method", "GET"),
            ("http.url", "http://test/p?q=1"),
            ("http.status_code", "200"),
            ("http.protocol", "HTTP/1.1"),
            ("upstream_cluster", "c"),
            ("response_flags", "-"),
            ("peer.address", "127.0.0.1"),
            ("node_id", "node"),
            ("fixed", "f"),
            ("who", "me"),
            ("env", "d"),
            ("format", "GET!"),
        ] {
            assert_eq!(tags[name], value, "{name}: {span}");
        }
        assert_eq!(proxy.stat("http.test.tracing.random_sampling"), 5);
        assert_eq!(proxy.stat("tracing.zipkin.spans_sent"), 5);
    });
}

#[test]
fn a_server_shares_its_callers_span() {
    on_worker(async {
        let mut upstream = Upstream::start(&[OK]).await;
        let mut collector = Upstream::start(&[ACCEPTED]).await;
        let config = traced(
            json!({"provider": zipkin(json!({})), "random_sampling": {"value": 0}}),
            json!({}),
        );
        let clusters = [upstream.cluster("c"), collector.cluster("z")];
        let proxy = Proxy::start_towards(Direction::Inbound, config, &clusters).await;
        let b3 = "x-b3-traceid: 0000000000000001\r\nx-b3-spanid: 0000000000000002\r\nx-b3-sampled: 1\r\n\
            x-envoy-decorator-operation: told\r\n";
        for _ in 0..5 {
            proxy.get("/", b3).await;
            let request = upstream.request().await;
            assert_eq!(header(&request, "x-b3-traceid"), Some("0000000000000001"));
            assert_eq!(header(&request, "x-b3-spanid"), Some("0000000000000002"));
            assert_eq!(header(&request, "x-envoy-decorator-operation"), None);
        }
        let spans = spans(&collector.request().await);
        assert_eq!(spans[0]["kind"], "SERVER");
        assert_eq!(spans[0]["shared"], true);
        assert_eq!(spans[0]["name"], "told");
        // A request that is not drawn hands a decision against sampling on.
        proxy.get("/", "").await;
        let request = upstream.request().await;
        assert_eq!(header(&request, "x-b3-sampled"), Some("0"), "{request}");
        let id = header(&request, "x-request-id").unwrap();
        assert_eq!(id.as_bytes()[14], b'4', "{id}");
        assert_eq!(proxy.stat("http.test.tracing.not_traceable"), 6);
    });
}

#[test]
fn clients_and_services_may_ask_for_a_trace() {
    on_worker(async {
        let mut upstream = Upstream::start(&[OK]).await;
        let tracing = json!({"provider": zipkin(json!({})), "random_sampling": {"value": 0}});
        let proxy = Proxy::start(
            traced(tracing, json!({})),
            &[upstream.cluster("c"), upstream.cluster("z")],
        )
        .await;
        let id = "x-request-id: 12345678-1234-4234-8234-123456789012\r\n";
        for (headers, letter) in [
            ("x-client-trace-id: 1\r\n", b'b'),
            ("x-envoy-force-trace: 1\r\n", b'4'),
            ("", b'4'),
        ] {
            proxy.get("/", &format!("{id}{headers}")).await;
            let request = upstream.request().await;
            let id = header(&request, "x-request-id").unwrap();
            assert_eq!(id.as_bytes()[14], letter, "{headers}{id}");
        }
        assert_eq!(proxy.stat("http.test.tracing.client_enabled"), 1);
    });
}

#[test]
fn otlp_goes_over_grpc() {
    on_worker(async {
        let mut upstream = Upstream::start(&[OK]).await;
        let mut collector = GrpcServer::start(Vec::new()).await;
        let provider = json!({"name": "envoy.tracers.opentelemetry", "typed_config": {
            "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
            "grpc_service": {"envoy_grpc": {"cluster_name": "otel"}, "timeout": "30s"},
            "service_name": "shop",
            "resource_detectors": [{"name": "static", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.tracers.opentelemetry.resource_detectors.v3.StaticConfigResourceDetectorConfig",
                "attributes": {"team": "a"}}}]}});
        let config = traced(
            json!({"provider": provider, "spawn_upstream_span": true}),
            json!({}),
        );
        let clusters = [
            upstream.cluster("c"),
            grpc_cluster("otel", collector.address),
        ];
        let proxy = Proxy::start_towards(Direction::Inbound, config, &clusters).await;
        let parent = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ntracestate: a=b\r\n";
        for _ in 0..3 {
            proxy.get("/", parent).await;
            let request = upstream.request().await;
            let told = header(&request, "traceparent").unwrap();
            assert!(
                told.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && told.ends_with("-01"),
                "{told}"
            );
            assert!(!told.contains("b7ad6b7169203331"), "{told}");
            assert_eq!(header(&request, "tracestate"), Some("a=b"));
        }
        let (path, message) = collector.request().await;
        assert_eq!(
            path,
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
        );
        let request = ExportTraceServiceRequest::decode(message.as_slice()).unwrap();
        let spans = &request.resource_spans[0];
        let attributes = &spans.resource.as_ref().unwrap().attributes;
        let has = |key: &str| attributes.iter().any(|attribute| attribute.key == key);
        assert!(has("service.name") && has("team"), "{attributes:?}");
        let spans = &spans.scope_spans[0].spans;
        assert!(spans.len() >= 5, "{spans:?}");
        let server = spans.iter().find(|span| span.name == "ingress").unwrap();
        assert_eq!(server.kind, 2);
        assert_eq!(
            server.parent_span_id,
            0xb7ad_6b71_6920_3331_u64.to_be_bytes()
        );
        let child = spans
            .iter()
            .find(|span| span.name == "router c egress" && span.parent_span_id == server.span_id)
            .unwrap();
        assert_eq!((child.kind, &child.trace_id), (3, &server.trace_id));
    });
}

#[test]
fn otlp_goes_over_http() {
    on_worker(async {
        let upstream = Upstream::start(&[OK]).await;
        let mut collector = Upstream::start(&[OK]).await;
        let provider = json!({"name": "envoy.tracers.opentelemetry", "typed_config": {
            "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
            "sampler": {"name": "s", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.tracers.opentelemetry.samplers.v3.AlwaysOnSamplerConfig"}},
            "http_service": {"http_uri": {"uri": "http://collector:4318/v1/traces", "cluster": "otel", "timeout": "30s"},
                "request_headers_to_add": [{"header": {"key": "x-key", "value": "k"}}]}}});
        let config = traced(
            json!({"provider": provider, "random_sampling": {"value": 0}}),
            json!({}),
        );
        let clusters = [upstream.cluster("c"), collector.cluster("otel")];
        let proxy = Proxy::start(config, &clusters).await;
        for _ in 0..5 {
            proxy.get("/", "").await;
        }
        let report = collector.request().await;
        assert!(
            report.starts_with("POST /v1/traces HTTP/1.1\r\nhost: collector:4318\r\n"),
            "{report}"
        );
        assert_eq!(
            header(&report, "content-type"),
            Some("application/x-protobuf")
        );
        assert_eq!(header(&report, "x-key"), Some("k"));
        assert_eq!(proxy.stat("tracing.opentelemetry.spans_sent"), 5);
    });
}
