//! Filters and logs that talk to services of their own: authorization, rate limits, access log collectors.

#![allow(
    clippy::needless_pass_by_value,
    reason = "json! literals and tables read best in place"
)]

use prost::Message;
use proto::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use proto::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use proto::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use proto::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use proto::opentelemetry::proto::collector::logs::v1::ExportLogsServiceRequest;
use serde_json::{Value, json};

use crate::http::testing::{
    GrpcServer, Proxy, Upstream, filter, grpc_cluster, manager, on_worker, with_filters,
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn message<T: Message + prost::Name + Default>(json: Value) -> Vec<u8> {
    proto::json::from_value::<T>(&json).unwrap().encode_to_vec()
}

/// A proxy whose one route forwards to `c`, with a filter and a gRPC server as cluster `s`.
async fn with_server(
    filters: &[Value],
    route: Value,
    upstream: &Upstream,
    server: &GrpcServer,
) -> Proxy {
    let mut all = json!({"match": {"prefix": "/"}, "route": {"cluster": "c"}});
    let route = route.as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(route);
    let clusters = [upstream.cluster("c"), grpc_cluster("s", server.address)];
    Proxy::start(with_filters(manager(json!([all])), filters), &clusters).await
}

fn service() -> Value {
    json!({"envoy_grpc": {"cluster_name": "s"}, "timeout": "30s"})
}

#[test]
fn a_grpc_service_lets_pass_with_changes() {
    on_worker(async {
        let mut upstream = Upstream::start(&[OK]).await;
        let answer = message::<CheckResponse>(json!({"status": {"code": 0}, "okResponse": {
            "headers": [{"header": {"key": "x-user", "value": "u"}}], "headersToRemove": ["x-secret"],
            "responseHeadersToAdd": [{"header": {"key": "x-checked", "value": "yes"}}],
            "queryParametersToSet": [{"key": "b", "value": "2"}], "queryParametersToRemove": ["a"]},
            "dynamicMetadata": {"who": "u"}}));
        let mut server = GrpcServer::start(vec![answer]).await;
        let filters = [filter(
            "ext_authz",
            "ext_authz.v3.ExtAuthz",
            json!({"grpc_service": service(), "transport_api_version": "V3",
                "with_request_body": {"max_request_bytes": 3, "allow_partial_message": true}}),
        )];
        let extensions = json!({"typed_per_filter_config": {"envoy.filters.http.ext_authz": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute",
            "check_settings": {"context_extensions": {"route": "r"}}}}});
        let proxy = with_server(&filters, extensions, &upstream, &server).await;
        let response = proxy
            .send(
                "POST /p?a=1 HTTP/1.1\r\nhost: h\r\nx-secret: s\r\ncontent-length: 5\r\n\r\nhello",
            )
            .await;
        assert!(response.ends_with("ok"), "{response}");
        assert!(response.contains("x-checked: yes\r\n"), "{response}");
        let request = upstream.request().await;
        assert!(request.starts_with("POST /p?b=2 HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("x-user: u\r\n") && !request.contains("x-secret"));
        assert!(request.ends_with("hello"), "{request}");
        let (path, bytes) = server.request().await;
        assert_eq!(path, "/envoy.service.auth.v3.Authorization/Check");
        let check = CheckRequest::decode(bytes.as_slice()).unwrap();
        let attributes = check.attributes.unwrap();
        assert_eq!(attributes.context_extensions["route"], "r");
        let http = attributes.request.unwrap().http.unwrap();
        assert_eq!(
            (http.method.as_str(), http.path.as_str()),
            ("POST", "/p?a=1")
        );
        assert_eq!(http.body, "hel");
        assert_eq!(http.headers["x-envoy-auth-partial-body"], "true");
        assert_eq!(http.headers["x-secret"], "s");
        assert_eq!(proxy.stat("http.test.ext_authz.ok"), 1);
        assert_eq!(proxy.stat("cluster.c.ext_authz.ok"), 1);
    });
}

#[test]
fn a_grpc_service_refuses_in_its_own_words() {
    on_worker(async {
        let upstream = Upstream::start(&[OK]).await;
        let answer = message::<CheckResponse>(json!({"status": {"code": 7}, "deniedResponse": {
            "status": {"code": "Unauthorized"}, "body": "who are you?",
            "headers": [{"header": {"key": "x-why", "value": "unknown"}}]}}));
        let server = GrpcServer::start(vec![answer]).await;
        let filters = [filter(
            "ext_authz",
            "ext_authz.v3.ExtAuthz",
            json!({"grpc_service": service(), "transport_api_version": "V3"}),
        )];
        let proxy = with_server(&filters, json!({}), &upstream, &server).await;
        let response = proxy.get("/", "").await;
        assert!(response.starts_with("HTTP/1.1 401 "), "{response}");
        assert!(response.contains("x-why: unknown\r\n"), "{response}");
        assert!(response.ends_with("\r\n\r\nwho are you?"), "{response}");
        assert_eq!(proxy.stat("http.test.ext_authz.denied"), 1);
    });
}

#[test]
fn without_an_answer_the_failure_mode_decides() {
    for (allows, start) in [(false, "HTTP/1.1 403 "), (true, "HTTP/1.1 200 ")] {
        on_worker(async move {
            let mut upstream = Upstream::start(&[OK]).await;
            let filters = [filter(
                "ext_authz",
                "ext_authz.v3.ExtAuthz",
                json!({"grpc_service": {"envoy_grpc": {"cluster_name": "nobody"}}, "transport_api_version": "V3",
                    "failure_mode_allow": allows, "failure_mode_allow_header_add": true}),
            )];
            let server = GrpcServer::start(Vec::new()).await;
            let proxy = with_server(&filters, json!({}), &upstream, &server).await;
            let response = proxy.get("/", "").await;
            assert!(response.starts_with(start), "{response}");
            assert_eq!(proxy.stat("http.test.ext_authz.error"), 1);
            if allows {
                let request = upstream.request().await;
                let mark = "x-envoy-auth-failure-mode-allowed: true\r\n";
                assert!(request.contains(mark), "{request}");
            }
        });
    }
}

#[test]
fn an_http_service_is_shown_the_request() {
    on_worker(async {
        let mut upstream = Upstream::start(&[OK]).await;
        let yes = "HTTP/1.1 200 OK\r\nx-user: u\r\nx-other: o\r\nx-client: c\r\ncontent-length: 0\r\n\r\n";
        let no =
            "HTTP/1.1 302 Found\r\nlocation: /login\r\nx-other: o\r\ncontent-length: 4\r\n\r\ngone";
        let mut service = Upstream::start(&[yes, no]).await;
        let matcher = |name: &str| json!({"patterns": [{"exact": name}]});
        let filters = [filter(
            "ext_authz",
            "ext_authz.v3.ExtAuthz",
            json!({"http_service": {
                "server_uri": {"uri": "http://auth", "cluster": "s", "timeout": "30s"}, "path_prefix": "/check",
                "authorization_request": {"allowed_headers": matcher("x-in"),
                    "headers_to_add": [{"key": "x-added", "value": "a"}]},
                "authorization_response": {"allowed_upstream_headers": matcher("x-user"),
                    "allowed_client_headers": matcher("x-none"),
                    "allowed_client_headers_on_success": matcher("x-client")}}}),
        )];
        let config = with_filters(
            manager(json!([{"match": {"prefix": "/"}, "route": {"cluster": "c"}}])),
            &filters,
        );
        let clusters = [upstream.cluster("c"), service.cluster("s")];
        let proxy = Proxy::start(config, &clusters).await;
        let response = proxy.get("/p", "x-in: i\r\nx-out: o\r\n").await;
        assert!(response.contains("x-client: c\r\n"), "{response}");
        let asked = service.request().await;
        assert!(
            asked.starts_with("GET /check/p HTTP/1.1\r\nhost: test\r\n"),
            "{asked}"
        );
        assert!(asked.contains("x-in: i\r\n") && asked.contains("x-added: a\r\n"));
        assert!(!asked.contains("x-out"), "{asked}");
        let request = upstream.request().await;
        assert!(request.contains("x-user: u\r\n") && !request.contains("x-other"));
        let response = proxy.get("/p", "").await;
        assert!(response.starts_with("HTTP/1.1 302 "), "{response}");
        assert!(response.contains("location: /login\r\n"), "{response}");
        assert!(!response.contains("x-other") && response.ends_with("gone"));
    });
}

#[test]
fn a_rate_limit_service_is_told_descriptors() {
    on_worker(async {
        let mut upstream = Upstream::start(&[OK]).await;
        let statuses = json!([{"code": "OVER_LIMIT", "limitRemaining": 0, "durationUntilReset": "7s",
            "currentLimit": {"requestsPerUnit": 10, "unit": "MINUTE", "name": "n"}}]);
        let answers = vec![
            message::<RateLimitResponse>(json!({"overallCode": "OK",
                "requestHeadersToAdd": [{"key": "x-quota", "value": "q"}]})),
            message::<RateLimitResponse>(
                json!({"overallCode": "OVER_LIMIT", "statuses": statuses}),
            ),
        ];
        let mut server = GrpcServer::start(answers).await;
        let filters = [filter(
            "ratelimit",
            "ratelimit.v3.RateLimit",
            json!({"domain": "d", "timeout": "30s", "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
                "rate_limit_service": {"grpc_service": service(), "transport_api_version": "V3"}}),
        )];
        let limits = json!({"route": {"cluster": "c", "rate_limits": [
            {"actions": [{"destination_cluster": {}}, {"generic_key": {"descriptor_value": "g"}},
                {"request_headers": {"header_name": "x-h", "descriptor_key": "h", "skip_if_absent": true}}],
                "limit": {"rate_limit": {"requests_per_unit": 3, "unit": "HOUR"}}},
            {"actions": [{"header_value_match": {"descriptor_value": "v", "headers": [{"name": "x-h"}]}}]},
            {"stage": 1, "actions": [{"remote_address": {}}]}]}});
        let proxy = with_server(&filters, limits, &upstream, &server).await;
        let response = proxy.get("/", "").await;
        assert!(response.ends_with("ok"), "{response}");
        assert!(upstream.request().await.contains("x-quota: q\r\n"));
        let (_, bytes) = server.request().await;
        let request = RateLimitRequest::decode(bytes.as_slice()).unwrap();
        assert_eq!(request.domain, "d");
        let entries: Vec<(&str, &str)> = request.descriptors[0]
            .entries
            .iter()
            .map(|entry| (entry.key.as_str(), entry.value.as_str()))
            .collect();
        assert_eq!(
            entries,
            [("destination_cluster", "c"), ("generic_key", "g")]
        );
        assert_eq!(request.descriptors.len(), 1);
        let limit = request.descriptors[0].limit.unwrap();
        assert_eq!(limit.requests_per_unit, 3);
        let response = proxy.get("/", "x-h: 1\r\n").await;
        assert!(response.starts_with("HTTP/1.1 429 "), "{response}");
        for line in [
            "x-envoy-ratelimited: true\r\n",
            "x-ratelimit-limit: 10, 10;w=60;name=\"n\"\r\n",
            "x-ratelimit-remaining: 0\r\n",
            "x-ratelimit-reset: 7\r\n",
        ] {
            assert!(response.contains(line), "{line}{response}");
        }
        let (_, bytes) = server.request().await;
        let request = RateLimitRequest::decode(bytes.as_slice()).unwrap();
        assert_eq!(request.descriptors.len(), 2);
        assert_eq!(proxy.stat("cluster.c.ratelimit.over_limit"), 1);
    });
}

#[test]
fn access_logs_stream_over_grpc() {
    on_worker(async {
        let upstream = Upstream::start(&[OK]).await;
        let mut server = GrpcServer::start(Vec::new()).await;
        let mut config =
            manager(json!([{"match": {"prefix": "/"}, "name": "r", "route": {"cluster": "c"}}]));
        config["access_log"] = json!([{"name": "als", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
            "common_config": {"log_name": "log", "grpc_service": service(), "transport_api_version": "V3",
                "buffer_size_bytes": 1, "custom_tags": [{"tag": "t", "literal": {"value": "v"}}]},
            "additional_request_headers_to_log": ["x-h"]}}]);
        let clusters = [upstream.cluster("c"), grpc_cluster("s", server.address)];
        let proxy = Proxy::start(config, &clusters).await;
        for turn in 0..2 {
            proxy.get("/p", "x-h: 1\r\n").await;
            let (path, bytes) = server.request().await;
            assert_eq!(
                path,
                "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs"
            );
            let message = StreamAccessLogsMessage::decode(bytes.as_slice()).unwrap();
            // One stream: it says who speaks once.
            assert_eq!(message.identifier.is_some(), turn == 0);
            let Some(LogEntries::HttpLogs(logs)) = message.log_entries else {
                panic!("no HTTP entries");
            };
            let entry = &logs.log_entry[0];
            let request = entry.request.as_ref().unwrap();
            assert_eq!(request.path, "/p");
            assert_eq!(request.request_headers["x-h"], "1");
            let response = entry.response.as_ref().unwrap();
            assert_eq!(response.response_code, Some(200));
            assert_eq!(response.response_code_details, "via_upstream");
            let common = entry.common_properties.as_ref().unwrap();
            assert_eq!(common.upstream_cluster, "c");
            assert_eq!(common.route_name, "r");
            assert_eq!(common.custom_tags["t"], "v");
        }
    });
}

#[test]
fn access_logs_are_otlp_records() {
    on_worker(async {
        let upstream = Upstream::start(&[OK]).await;
        let mut server = GrpcServer::start(Vec::new()).await;
        let mut config = manager(json!([{"match": {"prefix": "/"}, "route": {"cluster": "c"}}]));
        config["access_log"] = json!([{"name": "otel", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig",
            "common_config": {"log_name": "log", "grpc_service": service(), "transport_api_version": "V3",
                "buffer_size_bytes": 1},
            "body": {"string_value": "%REQ(:METHOD)% %RESPONSE_CODE%"},
            "attributes": {"values": [{"key": "path", "value": {"string_value": "%REQ(:PATH)%"}}]}}}]);
        let clusters = [upstream.cluster("c"), grpc_cluster("s", server.address)];
        let proxy = Proxy::start(config, &clusters).await;
        proxy.get("/p", "").await;
        let (path, bytes) = server.request().await;
        assert_eq!(
            path,
            "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
        );
        let request = ExportLogsServiceRequest::decode(bytes.as_slice()).unwrap();
        let record = &request.resource_logs[0].scope_logs[0].log_records[0];
        let text = format!("{:?}{:?}", record.body, record.attributes);
        assert!(text.contains("GET 200") && text.contains("/p"), "{text}");
    });
}

fn compressor() -> Value {
    let library = json!({"name": "text", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip"}});
    filter(
        "compressor",
        "compressor.v3.Compressor",
        json!({"compressor_library": library, "response_direction_config": {}}),
    )
}

#[test]
fn responses_are_compressed_for_those_who_ask() {
    on_worker(async {
        let body = "x".repeat(500);
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\netag: \"e\"\r\ncontent-length: 500\r\n\r\n{body}"
        );
        let mut upstream = Upstream::start(&[&answer]).await;
        let config = with_filters(
            manager(json!([{"match": {"prefix": "/"}, "route": {"cluster": "c"}}])),
            &[compressor()],
        );
        let proxy = Proxy::start(config, &[upstream.cluster("c")]).await;
        let response = proxy.get("/", "accept-encoding: br;q=0, gzip\r\n").await;
        assert!(
            response.contains("content-encoding: gzip\r\n"),
            "{response}"
        );
        assert!(response.contains("vary: Accept-Encoding\r\n"), "{response}");
        assert!(!response.contains("etag") && !response.contains("content-length"));
        assert!(response.len() < 500, "{response}");
        let response = proxy.get("/", "accept-encoding: br\r\n").await;
        assert!(
            response.ends_with(&body) && response.contains("vary:"),
            "{response}"
        );
        assert_eq!(
            proxy.stat("http.test.compressor.text.gzip.response.compressed"),
            1
        );
        upstream.request().await;
    });
}

#[test]
fn what_the_upstream_has_compressed_is_unpacked() {
    on_worker(async {
        let answer = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 500\r\n\r\n";
        let body = "y".repeat(500);
        let mut inner = Upstream::start(&[&format!("{answer}{body}")]).await;
        let route = json!([{"match": {"prefix": "/"}, "route": {"cluster": "c"}}]);
        let packs = with_filters(manager(route.clone()), &[compressor()]);
        let packing = Proxy::start(packs, &[inner.cluster("c")]).await;
        let library = json!({"name": "text", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.compression.gzip.decompressor.v3.Gzip"}});
        let unpacks = filter(
            "decompressor",
            "decompressor.v3.Decompressor",
            json!({"decompressor_library": library}),
        );
        let clusters = [crate::http::testing::cluster("c", packing.address)];
        let proxy = Proxy::start(with_filters(manager(route), &[unpacks]), &clusters).await;
        let response = proxy.get("/", "").await;
        assert!(response.contains(&body), "{response}");
        assert!(!response.contains("content-encoding"), "{response}");
        assert!(inner.request().await.contains("accept-encoding: gzip\r\n"));
        let stat = "http.test.decompressor.text.gzip.response.decompressed";
        assert_eq!(proxy.stat(stat), 1);
    });
}
