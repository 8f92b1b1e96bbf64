//! Operators by table, and a parser that never panics.

#![allow(
    clippy::needless_pass_by_value,
    reason = "json! literals and tables read best in place"
)]

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderMap, HeaderValue, StatusCode};
use proptest::prelude::*;
use serde_json::json;

use crate::stats::Store;
use crate::stream_info::testing::{info, mtls, request};
use crate::stream_info::{ResponseFlag, StreamInfo, UpstreamConnection};
use crate::transport::SecretSlots;
use crate::upstream::{Cluster, ClusterConfig, testing::host};

use super::super::LineFormat;
use super::*;

fn cluster() -> Arc<Cluster> {
    let wire = proto::yaml::from_str(
        "{name: outbound|80||a.b, alt_stat_name: a, metadata: {filter_metadata: {c: {k: v}}}}",
    )
    .unwrap();
    let config = ClusterConfig::new(wire, &SecretSlots::default()).unwrap();
    Cluster::new(config, &Arc::new(Store::default()).root()).unwrap()
}

fn stream() -> StreamInfo {
    let mut info = StreamInfo::new(
        Rc::new(mtls("spiffe://td/ns/a/sa/b")),
        Some(http::Version::HTTP_11),
    );
    info.start_time = UNIX_EPOCH + Duration::from_millis(1_577_934_245_678);
    info.end = Some(info.start + Duration::from_millis(12));
    info.response_start = Some(info.start + Duration::from_millis(5));
    info.response_code = Some(503);
    info.response_code_details = Some("via_upstream".into());
    info.flags.set(ResponseFlag::UpstreamConnectionFailure);
    info.bytes_received = 3;
    info.bytes_sent = 4096;
    info.upstream.cluster = Some(cluster());
    info.upstream.host = Some(host(1, true));
    info.upstream.attempts = 2;
    info.upstream.connection = Some(Rc::new(UpstreamConnection {
        id: 9,
        local_address: Some("10.0.0.9:50000".parse().unwrap()),
        tls: None,
        began: info.start,
        connected: info.start + Duration::from_millis(1),
        secured: None,
        filter_state: crate::filter_state::FilterState::default(),
    }));
    info.upstream.began = Some(info.start);
    info.upstream.ready = Some(info.start + Duration::from_millis(3));
    let fields = proto::json::from_value::<proto::envoy::config::core::v3::Metadata>(
        &json!({"filter_metadata": {"f": {"k": "v", "o": {"n": 1, "l": [true, null]}}}}),
    );
    for (name, fields) in fields.unwrap().filter_metadata {
        info.metadata.merge(name, fields);
    }
    info
}

fn with_context<T>(work: impl FnOnce(&FormatContext<'_>) -> T) -> T {
    let info = stream();
    let request = request(
        "h:80",
        "/p?q=1&r=2",
        &[("x-a", "one"), ("user-agent", "curl \"x\"")],
    );
    let mut map = HeaderMap::new();
    map.insert(
        "x-envoy-upstream-service-time",
        HeaderValue::from_static("9"),
    );
    let response = ResponseHeaders {
        status: StatusCode::SERVICE_UNAVAILABLE,
        map,
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("14"));
    work(&FormatContext {
        info: &info,
        request: Some(&request),
        response: Some(&response),
        trailers: Some(&trailers),
        local_reply_body: "body",
        log_type: LogType::DownstreamEnd,
    })
}

fn text(format: &str) -> String {
    let format = Format::parse(format).unwrap();
    with_context(|context| format.text(context, "-"))
}

#[test]
fn operators_write_their_values() {
    let cases = [
        ("100%% %UPSTREAM_WIRE_BYTES_SENT%", "100% 0"),
        (
            "%REQ(:METHOD)% %REQ(X-NONE?:PATH)% %PROTOCOL%",
            "GET /p?q=1&r=2 HTTP/1.1",
        ),
        ("%REQ(X-A):2%|%REQ(x-none)%", "on|-"),
        ("a|%REQ(X-A):18446744073709551615%", "a|one"),
        ("%REQUEST_HEADER(:AUTHORITY)%", "h:80"),
        (
            "%REQ_WITHOUT_QUERY(:PATH)% %PATH(NQ)% %PATH%",
            "/p /p /p?q=1&r=2",
        ),
        ("%QUERY_PARAM(r)% %QUERY_PARAMS%", "2 q=1&r=2"),
        ("%RESP(x-envoy-upstream-service-time)%", "9"),
        (
            "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG%",
            "503 UF UpstreamConnectionFailure",
        ),
        (
            "%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS%",
            "via_upstream -",
        ),
        (
            "%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESPONSE_DURATION% %RESPONSE_TX_DURATION%",
            "3 4096 12 5 7",
        ),
        (
            "%START_TIME% %START_TIME(%s)% %START_TIME(%Y/%m/%d %H:%M:%S.%3f)%",
            "2020-01-02T03:04:05.678Z 1577934245 2020/01/02 03:04:05.678",
        ),
        (
            "%UPSTREAM_HOST% %UPSTREAM_CLUSTER% %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS%",
            "10.0.0.1:80 a outbound|80||a.b 10.0.0.9:50000",
        ),
        (
            "%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %UPSTREAM_REMOTE_PORT%",
            "10.0.0.1 80",
        ),
        (
            "%UPSTREAM_REQUEST_ATTEMPT_COUNT% %UPSTREAM_TRANSPORT_FAILURE_REASON%",
            "2 -",
        ),
        (
            "%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
            "10.0.0.1:4000 10.0.0.1",
        ),
        (
            "%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_PORT%",
            "10.0.0.2:9080 9080",
        ),
        ("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%", "10.0.0.1:4000"),
        (
            "%REQUESTED_SERVER_NAME% %ROUTE_NAME% %CONNECTION_ID%",
            "inner.example - 7",
        ),
        (
            "%DOWNSTREAM_PEER_URI_SAN% %DOWNSTREAM_TLS_VERSION%",
            "spiffe://td/ns/a/sa/b TLSv1.3",
        ),
        (
            "%DOWNSTREAM_PEER_FINGERPRINT_256% %DOWNSTREAM_PEER_SUBJECT%",
            "ab12 CN=peer",
        ),
        (
            "%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS_NUMBER% %TRAILER(grpc-status)%",
            "Unavailable UNAVAILABLE 14 14",
        ),
        (
            "%DYNAMIC_METADATA(f:k)% %DYNAMIC_METADATA(f:o:n)% %DYNAMIC_METADATA(f:z)%",
            "v 1 -",
        ),
        ("%DYNAMIC_METADATA(f:o)%", r#"{"l":[true,null],"n":1}"#),
        ("%FILTER_STATE(x:PLAIN)% %LOCAL_REPLY_BODY%", "- body"),
    ];
    for (format, want) in cases {
        assert_eq!(text(format), want, "{format}");
    }
}

#[test]
fn operators_of_upstreams_and_expressions_write_their_values() {
    let cases = [
        (
            "%UPSTREAM_CONNECTION_ID% %UPSTREAM_CONNECTION_POOL_READY_DURATION% %UPSTREAM_HOST_NAME_WITHOUT_PORT%",
            "9 3 10.0.0.1",
        ),
        (
            "%COMMON_DURATION(US_CX_BEG:US_CX_END:us)% %COMMON_DURATION(US_CX_END:US_HS_END:us)%",
            "1000 -",
        ),
        (
            "%UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT(31)% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(0)% \
             %DOWNSTREAM_DIRECT_LOCAL_PORT%",
            "10.0.0.8/31 0.0.0.0/0 15006",
        ),
        (
            "%CLUSTER_METADATA(c:k)% %METADATA(CLUSTER:c)% %METADATA(CLUSTER:c:n)%",
            "v {\"k\":\"v\"} -",
        ),
        (
            "%COALESCE({\"operators\": [{\"command\": \"REQ\", \"param\": \"x-no\"}, \"PROTOCOL\"]}):4%",
            "HTTP",
        ),
        (
            "%CEL(response.code)% %CEL(request.method == 'POST')%",
            "503 false",
        ),
        (
            "%REQUESTED_SERVER_NAME(HOST_FIRST)% %ACCESS_LOG_TYPE%",
            "h:80 DownstreamEnd",
        ),
    ];
    for (format, want) in cases {
        assert_eq!(text(format), want, "{format}");
    }
}

#[test]
fn wrong_formats_are_refused() {
    for (format, want) in [
        ("%REQ(x%", "has no end"),
        ("%NOPE%", "not supported field in StreamInfo: NOPE"),
        ("%", "has no end"),
        ("%REQ(a?b?c)%", "more than 1 alternative header specified"),
        ("%REQ%", "an argument in parentheses is needed"),
        ("%REQ(a):x%", "length must be an integer"),
        ("%START_TIME(%Q)%", "unknown time conversion"),
        ("%ROUTE_NAME(x)%", "it takes no argument"),
        ("%UPSTREAM_LOCAL_PORT(8)%", "it takes no argument"),
        ("%DOWNSTREAM_PEER_SUBJECT(x)%", "it takes no argument"),
        ("%PROTOCOL:3%", "PROTOCOL does not take a length"),
        ("%XFCC_VALUE(issuer)%", "'issuer' is none of by, hash"),
    ] {
        let error = Format::parse(format).unwrap_err().to_string();
        assert!(error.contains(want), "{format}: {error}");
    }
}

fn line(format: serde_json::Value) -> String {
    let format = proto::json::from_value(&format).unwrap();
    let line = LineFormat::try_new(&format).unwrap();
    with_context(|context| {
        let mut out = String::new();
        line.write(context, &mut out);
        out
    })
}

#[test]
fn json_lines_keep_types() {
    let format = json!({"a": "%RESPONSE_CODE%", "b": "%RESPONSE_FLAGS% %REQ(none)%", "c": "%REQ(none)%",
        "d": {"e": "%REQ(user-agent)%", "f": 1, "g": true}, "h": ["%DURATION%", "x\"y"], "i": "%DYNAMIC_METADATA(f:o)%"});
    assert_eq!(
        line(json!({"json_format": format})),
        r#"{"a":503,"b":"UF -","c":null,"d":{"e":"curl \"x\"","f":1,"g":true},"h":[12,"x\"y"],"i":{"l":[true,null],"n":1}}"#
            .to_owned()
            + "\n"
    );
    assert_eq!(
        line(
            json!({"json_format": {"a": "%REQ(none)%", "b": "%REQ(x-a)%"}, "omit_empty_values": true})
        ),
        "{\"b\":\"one\"}\n"
    );
}

#[test]
fn text_lines_can_leave_out_what_is_missing() {
    let format = json!({"text_format_source": {"inline_string": "[%REQ(none)%] %REQ(x-a)%\n"}});
    assert_eq!(line(format.clone()), "[-] one\n");
    let mut omitting = format;
    omitting["omit_empty_values"] = json!(true);
    assert_eq!(line(omitting), "[] one\n");
}

#[test]
fn a_stream_that_just_began_can_be_written() {
    let info = info();
    let context = FormatContext::of(&info);
    let format =
        Format::parse("%RESPONSE_CODE% %REQ(:PATH)% %RESPONSE_DURATION% %UPSTREAM_HOST%").unwrap();
    assert_eq!(format.text(&context, "-"), "0 - - -");
}

proptest! {
    #[test]
    fn parsing_never_panics(format in "(%[A-Z_]{0,12}(\\([^)]{0,8}\\))?(:[0-9]{0,3})?%?|\\PC){0,6}") {
        if let Ok(format) = Format::parse(&format) {
            with_context(|context| format.text(context, "-"));
        }
    }
}

#[test]
fn fuzz_formats() {
    crate::fuzz::fuzz_text("log_formats", |text| {
        if let Ok(format) = Format::parse(text) {
            with_context(|context| format.text(context, "-"));
        }
    });
}
