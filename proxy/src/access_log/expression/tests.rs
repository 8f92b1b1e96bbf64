//! Conditions by table, on one stream.

use std::rc::Rc;

use proptest::prelude::*;

use super::Expression;
use crate::access_log::FormatContext;
use crate::stream_info::StreamInfo;
use crate::stream_info::testing::{mtls, request};

fn holds(text: &str) -> bool {
    let connection = Rc::new(mtls("spiffe://td/ns/a/sa/b"));
    let mut info = StreamInfo::new(connection, Some(http::Version::HTTP_11));
    info.response_code = Some(503);
    let request = request("h:80", "/p/q?r=1", &[("user-agent", "curl/8")]);
    let expression = Expression::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    expression.holds(&FormatContext::of_request(&info, &request))
}

#[test]
fn conditions_hold_or_not() {
    for text in [
        "response.code >= 500",
        "response.code == 503 && request.method == 'GET'",
        "response.code < 400 || request.host == \"h:80\"",
        "!(response.code == 200)",
        "request.path == '/p/q?r=1'",
        "request.url_path.startsWith('/p') && request.url_path.endsWith('q')",
        "request.useragent.contains('curl')",
        "request.headers['user-agent'] == 'curl/8'",
        "response.code in [200, 503]",
        "has(response.code) && !has(request.referer)",
        "!has(request.referer) || request.referer.contains('x')",
        "connection.uri_san_peer_certificate == 'spiffe://td/ns/a/sa/b'",
        // One side decides, whatever the other is.
        "request.referer == 'x' || true",
        "true && 'a' < 'b'",
    ] {
        assert!(holds(text), "{text}");
    }
    for text in [
        "response.code < 500",
        "response.code == 503 && request.method == 'PUT'",
        "request.url_path.contains('r=1')",
        "response.code in []",
        // It cannot be told.
        "request.referer != 'x'",
        "!(request.referer == 'x')",
        "response.code == '503'",
        "true < false",
        "response.code",
    ] {
        assert!(!holds(text), "{text}");
    }
}

#[test]
fn what_cannot_be_read_is_refused() {
    for (text, reason) in [
        ("", "a value is missing"),
        ("response.code >=", "a value is missing"),
        ("response.code 5", "5 is not expected there"),
        ("(true", "')' is missing"),
        ("'a", "a string has no end"),
        (
            "a.b == 1",
            "the attribute 'a.b' in a condition is not supported",
        ),
        (
            "request.path.size() > 1",
            "'size' in a condition is not supported",
        ),
        (
            "response.code + 1 == 2",
            "'+' in a condition is not supported",
        ),
        (
            "request.headers[1] == 'a'",
            "an index that is no string is not supported",
        ),
    ] {
        let refused = Expression::parse(text).err().map(|error| error.to_string());
        assert_eq!(refused.as_deref(), Some(reason), "{text}");
    }
    let deep = "(".repeat(100_000);
    assert!(Expression::parse(&deep).is_err());
}

proptest! {
    #[test]
    fn the_parser_never_panics(text in "[a-z.!&|()<=>'\"\\[\\]\\\\, 0-9é]{0,40}") {
        let _ = Expression::parse(&text);
    }
}
