//! HTTP inspector: whether a plain connection speaks HTTP, and which.

use super::{Accepted, HttpInspectorStats, Look};
use crate::listener::{ConnectionInfo, TransportProtocol};
use std::io;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Methods that begin a request line.
const METHODS: &[&str] = &[
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "CONNECT",
    "OPTIONS",
    "TRACE",
    "PATCH",
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "COPY",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "ORDERPATCH",
    "PRI",
    "PROPFIND",
    "PROPPATCH",
    "REBIND",
    "REPORT",
    "SEARCH",
    "SOURCE",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
    "M-SEARCH",
    "NOTIFY",
    "PURGE",
    "SUBSCRIBE",
    "UNSUBSCRIBE",
];

/// A line that has not ended by then is none of HTTP.
const LONGEST: usize = 8192;

/// Looks at the first line of a connection that is not TLS.
pub(super) async fn inspect(
    accepted: &mut Accepted,
    info: &mut ConnectionInfo,
    stats: &HttpInspectorStats,
) -> io::Result<()> {
    if info.transport_protocol == TransportProtocol::Tls {
        return Ok(());
    }
    let found = accepted
        .look(parse)
        .await
        .inspect_err(|_| stats.read_error.inc())?
        .flatten();
    match found {
        Some("http/1.0") => &stats.http10_found,
        Some("http/1.1") => &stats.http11_found,
        Some(_) => &stats.http2_found,
        None => &stats.http_not_found,
    }
    .inc();
    if let Some(protocol) = found {
        info.application_protocols = vec![protocol.into()];
    }
    Ok(())
}

/// Envoy's name of the protocol; `Done(None)` when it is not HTTP.
fn parse(bytes: &[u8]) -> Look<Option<&'static str>> {
    if bytes.starts_with(PREFACE) {
        return Look::Done(Some("h2c"));
    }
    if PREFACE.starts_with(bytes) {
        return Look::More;
    }
    // However the bytes come, the line is looked at from its first one, and not further than this.
    let bytes = &bytes[..bytes.len().min(LONGEST)];
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\r' || *byte == b'\n');
    let line = &bytes[..end.unwrap_or(bytes.len())];
    let is_possible = METHODS.iter().any(|method| {
        let method = method.as_bytes();
        match line.get(method.len()) {
            Some(after) => line.starts_with(method) && *after == b' ',
            None => method.starts_with(line),
        }
    });
    if !is_possible || end.is_none() {
        return if is_possible && bytes.len() < LONGEST {
            Look::More
        } else {
            Look::Done(None)
        };
    }
    let mut words = line
        .split(|byte| *byte == b' ')
        .filter(|word| !word.is_empty());
    let (_method, _target, version) = (words.next(), words.next(), words.next());
    Look::Done(match version {
        Some(b"HTTP/1.1") => Some("http/1.1"),
        Some(b"HTTP/1.0") => Some("http/1.0"),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn protocols_are_told_apart() {
        assert!(matches!(
            parse(b"GET / HTTP/1.1\r\n"),
            Look::Done(Some("http/1.1"))
        ));
        assert!(matches!(parse(b"POST /a b HTTP/1.0\r\n"), Look::Done(None)));
        assert!(matches!(
            parse(b"GET / HTTP/1.0\r\n"),
            Look::Done(Some("http/1.0"))
        ));
        assert!(matches!(parse(PREFACE), Look::Done(Some("h2c"))));
        assert!(matches!(parse(b"PRI * HT"), Look::More));
        assert!(matches!(parse(b"GE"), Look::More));
        assert!(matches!(parse(b"GET /long"), Look::More));
        assert!(matches!(parse(b"\x00\x01"), Look::Done(None)));
        assert!(matches!(parse(b"+PING\r\n"), Look::Done(None)));
    }

    proptest! {
        #[test]
        fn parser_never_panics(bytes in proptest::collection::vec(any::<u8>(), 1..200)) {
            parse(&bytes);
        }
    }

    #[test]
    fn fuzz_first_lines() {
        crate::listener_filter::fuzz_looks("first_lines", 1, parse);
    }
}
