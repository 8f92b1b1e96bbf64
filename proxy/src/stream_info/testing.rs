//! Streams for tests: a connection, an address, and nothing behind them.

use std::rc::Rc;
use std::sync::Arc;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Version};

use crate::http::headers::{RequestHeaders, Scheme};
use crate::listener::{ConnectionInfo, Direction, PeerCertificate, TlsInfo, TransportProtocol};

use crate::filter_state::FilterState;
use crate::transport::HandshakeNotes;

use super::StreamInfo;

/// A plain connection from 10.0.0.1:4000 to 10.0.0.2:9080.
pub(crate) fn connection() -> ConnectionInfo {
    let remote = "10.0.0.1:4000".parse().unwrap();
    ConnectionInfo {
        id: 7,
        began: tokio::time::Instant::now(),
        remote_address: remote,
        direct_remote_address: remote,
        local_address: "10.0.0.2:9080".parse().unwrap(),
        direct_local_address: "10.0.0.2:15006".parse().unwrap(),
        is_local_restored: false,
        transport_protocol: TransportProtocol::RawBuffer,
        server_name: None,
        application_protocols: Vec::new(),
        tls: None,
        handshake: HandshakeNotes::default(),
        fingerprints: None,
        listener: "test".into(),
        listener_metadata: None,
        direction: Direction::Unspecified,
        chain: None,
        filter_state: FilterState::default(),
        metadata: crate::stream_info::DynamicMetadata::default(),
        cluster_override: None,
        dynamic_host: None,
        seen: Arc::default(),
        upstream_source: None,
        drains_when_unhealthy: true,
        is_shed: std::cell::Cell::new(false),
        buffer_limit: 1 << 20,
        meter: Arc::default(),
    }
}

/// The same over mTLS by a peer with this URI name.
pub(crate) fn mtls(uri: &str) -> ConnectionInfo {
    let peer = PeerCertificate {
        uri_sans: vec![uri.to_owned()],
        subject: "CN=peer".into(),
        sha256: "ab12".into(),
        ..PeerCertificate::default()
    };
    let tls = TlsInfo {
        peer: Some(Arc::new(peer)),
        version: "TLSv1.3",
        ..TlsInfo::default()
    };
    ConnectionInfo {
        tls: Some(Arc::new(tls)),
        server_name: Some("inner.example".into()),
        ..connection()
    }
}

/// A stream on a plain connection.
pub(crate) fn info() -> StreamInfo {
    StreamInfo::new(Rc::new(connection()), Some(Version::HTTP_11))
}

/// A GET of a path at a host, with headers.
pub(crate) fn request(host: &str, path: &str, headers: &[(&str, &str)]) -> RequestHeaders {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(
            HeaderName::try_from(*name).unwrap(),
            HeaderValue::from_str(value).unwrap(),
        );
    }
    RequestHeaders {
        method: Method::GET,
        scheme: Scheme::Http,
        authority: HeaderValue::from_str(host).unwrap(),
        path: path.parse().unwrap(),
        upgrade: None,
        map,
    }
}
