//! What the service is told of a request.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

use auth::attribute_context as context;
use bytes::Bytes;
use http::HeaderMap;
use proto::envoy::config::core::v3 as core;
use proto::envoy::service::auth::v3 as auth;

use crate::http::filter::Buffered;
use crate::http::headers::{RequestHeaders, names};
use crate::http::stream::Stream;
use crate::listener::{PeerCertificate, TlsInfo};
use crate::matcher::{FieldName, HeaderSource as _};
use crate::tracing::protocol_text;

use super::Check;

const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";

/// Everything that is known when the service is asked.
pub(super) struct Request {
    /// For a gRPC service.
    pub(super) message: auth::CheckRequest,
    /// For an HTTP service.
    pub(super) headers: RequestHeaders,
    pub(super) body: Bytes,
    /// Whether the body is a part of the whole; `None` when no body was wanted.
    pub(super) is_partial: Option<bool>,
}

impl Request {
    pub(super) fn new(
        check: &Check,
        body: Option<Buffered>,
        headers: &RequestHeaders,
        stream: &Stream,
    ) -> Self {
        let config = &check.config;
        let is_partial = check
            .body_rules
            .map(|_| body.as_ref().is_some_and(|body| !body.is_whole));
        let body = body.map(|body| body.body).unwrap_or_default();
        let as_bytes = check.body_rules.is_some_and(|rules| rules.as_bytes);
        let mut http = http_request(headers, stream, is_partial);
        http.headers.retain(|name, _| {
            let is_in = |list: &[crate::matcher::StringMatcher]| {
                list.iter().any(|matcher| matcher.matches(name))
            };
            config.allowed.as_ref().is_none_or(|list| is_in(list)) && !is_in(&config.disallowed)
        });
        if config.raw_headers {
            http.header_map = Some(header_map(&headers.map, &http.headers));
            http.headers.clear();
        }
        if as_bytes {
            http.raw_body = body.to_vec();
        } else {
            http.body = String::from_utf8_lossy(&body).into_owned();
        }
        let attributes = attributes(check, http, headers, stream);
        Request {
            message: auth::CheckRequest {
                attributes: Some(attributes),
            },
            headers: headers.clone(),
            body,
            is_partial,
        }
    }
}

/// Both ends, the request, and what else is to be told.
fn attributes(
    check: &Check,
    http: context::HttpRequest,
    headers: &RequestHeaders,
    stream: &Stream,
) -> auth::AttributeContext {
    let config = &check.config;
    let info = &stream.info;
    let tls = info.connection.tls.as_deref();
    let peer = tls.and_then(|tls| tls.peer.as_deref());
    let service = headers.text(&names::X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER);
    let since = info
        .start_time
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    auth::AttributeContext {
        source: Some(context::Peer {
            address: Some(address(info.connection.remote_address)),
            service: service.unwrap_or_default().to_owned(),
            principal: peer.map(principal).unwrap_or_default(),
            certificate: peer
                .filter(|_| config.includes_certificate)
                .map(certificate)
                .unwrap_or_default(),
            ..context::Peer::default()
        }),
        destination: Some(context::Peer {
            address: Some(address(info.connection.local_address)),
            principal: tls.map(own_principal).unwrap_or_default(),
            labels: config.labels.clone(),
            ..context::Peer::default()
        }),
        request: Some(context::Request {
            time: Some(prost_types::Timestamp {
                seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
                nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
            }),
            http: Some(http),
        }),
        context_extensions: check.extensions.clone(),
        metadata_context: Some(core::Metadata {
            filter_metadata: config
                .metadata_namespaces
                .iter()
                .filter_map(|name| Some((name.clone(), info.metadata.get(name)?.clone())))
                .collect(),
            ..core::Metadata::default()
        }),
        route_metadata_context: Some(core::Metadata {
            filter_metadata: route_metadata(stream, &config.route_metadata_namespaces),
            ..core::Metadata::default()
        }),
        tls_session: info
            .connection
            .server_name
            .as_ref()
            .filter(|_| config.includes_tls_session)
            .map(|sni| context::TlsSession {
                sni: sni.to_string(),
            }),
    }
}

fn http_request(
    headers: &RequestHeaders,
    stream: &Stream,
    is_partial: Option<bool>,
) -> context::HttpRequest {
    let info = &stream.info;
    let mut map: BTreeMap<String, String> = headers
        .map
        .keys()
        .map(|name| {
            let value = headers.field(&FieldName::Header(name.clone()));
            let value = value.unwrap_or(Cow::Borrowed(b""));
            (
                name.as_str().to_owned(),
                String::from_utf8_lossy(&value).into_owned(),
            )
        })
        .collect();
    for (name, value) in [
        (":method", headers.method.as_str()),
        (":path", headers.path.as_str()),
        (":authority", headers.host()),
        (":scheme", headers.scheme.as_str()),
    ] {
        map.insert(name.to_owned(), value.to_owned());
    }
    if let Some(is_partial) = is_partial {
        map.insert(PARTIAL_BODY.to_owned(), is_partial.to_string());
    }
    context::HttpRequest {
        id: info
            .connection
            .id
            .wrapping_add(u64::from(stream.connection.total.get()))
            .to_string(),
        method: headers.method.as_str().to_owned(),
        headers: map,
        path: headers.path.as_str().to_owned(),
        host: headers.host().to_owned(),
        scheme: headers.scheme.as_str().to_owned(),
        // QUIRK: what has come of the body so far, whatever the head says of it.
        size: i64::try_from(info.bytes_received).unwrap_or(i64::MAX),
        protocol: info
            .protocol
            .map(protocol_text)
            .unwrap_or_default()
            .to_owned(),
        ..context::HttpRequest::default()
    }
}

/// The headers as bytes, those that may be told.
fn header_map(map: &HeaderMap, allowed: &BTreeMap<String, String>) -> core::HeaderMap {
    let plain = |key: &str, raw: &[u8]| core::HeaderValue {
        key: key.to_owned(),
        raw_value: raw.to_vec(),
        ..core::HeaderValue::default()
    };
    let pseudo = allowed
        .iter()
        .filter(|(name, _)| name.starts_with(':'))
        .map(|(name, value)| plain(name, value.as_bytes()));
    let others = map
        .iter()
        .filter(|(name, _)| allowed.contains_key(name.as_str()))
        .map(|(name, value)| plain(name.as_str(), value.as_bytes()));
    core::HeaderMap {
        headers: pseudo.chain(others).collect(),
    }
}

fn route_metadata(stream: &Stream, namespaces: &[String]) -> BTreeMap<String, prost_types::Struct> {
    let route = stream.route();
    let Some(all) = route.and_then(|route| route.route().metadata.as_ref()) else {
        return BTreeMap::new();
    };
    namespaces
        .iter()
        .filter_map(|name| Some((name.clone(), all.filter_metadata.get(name)?.clone())))
        .collect()
}

fn address(address: std::net::SocketAddr) -> core::Address {
    use core::address::Address;
    use core::socket_address::PortSpecifier;
    core::Address {
        address: Some(Address::SocketAddress(core::SocketAddress {
            address: address.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(u32::from(address.port()))),
            ..core::SocketAddress::default()
        })),
    }
}

/// The first URI name, else the first DNS name, else the subject.
fn principal(peer: &PeerCertificate) -> String {
    let name = peer.uri_sans.first().or_else(|| peer.dns_sans.first());
    name.unwrap_or(&peer.subject).clone()
}

fn own_principal(tls: &TlsInfo) -> String {
    let name = tls
        .local
        .uri_sans
        .first()
        .or_else(|| tls.local.dns_sans.first());
    name.map_or_else(|| tls.local.subject.clone(), Clone::clone)
}

/// The peer's certificate as PEM, in URL encoding.
fn certificate(peer: &PeerCertificate) -> String {
    use base64::Engine as _;
    let Some(der) = peer.chain.first() else {
        return String::new();
    };
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .filter_map(|line| std::str::from_utf8(line).ok())
        .collect();
    let pem = format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    );
    let mut out = String::with_capacity(pem.len() * 2);
    for byte in pem.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}
