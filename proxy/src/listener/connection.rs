//! One downstream connection: its stream, what is known about it, and who wants to hear of its end.

use crate::{
    filter_chain::FilterChain,
    filter_state::FilterState,
    stream_info::DynamicMetadata,
    transport::{CertificateDetails, ClientAddresses, DownstreamStream, HandshakeNotes, Meter},
    worker::Worker,
};
use parking_lot::Mutex;
use proto::envoy::config::core::v3::Metadata;
use proto_component::drain::Drain;
use std::{
    cell::Cell,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::time::Instant;

/// Which way a listener's traffic goes, as its configuration says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Not said.
    #[default]
    Unspecified,
    /// To the workload.
    Inbound,
    /// From the workload.
    Outbound,
}

/// A connection on its way through the filters.
pub(crate) struct Connection {
    /// Its bytes; anything the listener filters have read comes first.
    pub(crate) stream: DownstreamStream,
    /// What is known about it.
    pub(crate) info: Rc<ConnectionInfo>,
    /// The worker it lives on.
    pub(crate) worker: Rc<Worker>,
    /// Signalled when the connection should find its end: its chain or listener is going, or the process is.
    pub(crate) drain: Drain,
    /// Dropped when the connection is over; filters leave their watchers here.
    pub(crate) watchers: Vec<Box<dyn std::any::Any>>,
}

/// What is known about a downstream connection.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionInfo {
    /// Unique in the process.
    pub(crate) id: u64,
    /// When it came.
    pub(crate) began: Instant,
    /// The client, as told by the PROXY protocol if that was used.
    pub(crate) remote_address: SocketAddr,
    /// The socket's real peer.
    pub(crate) direct_remote_address: SocketAddr,
    /// Where the client wanted to go: the original destination once it is restored.
    pub(crate) local_address: SocketAddr,
    /// Where the socket itself is.
    pub(crate) direct_local_address: SocketAddr,
    /// Whether `local_address` was restored by a listener filter.
    pub(crate) is_local_restored: bool,
    /// `raw_buffer` or `tls`, as detected or as terminated.
    pub(crate) transport_protocol: TransportProtocol,
    /// The server name asked for, by the TLS inspector or the handshake.
    pub(crate) server_name: Option<Arc<str>>,
    /// Application protocols offered (inspectors).
    pub(crate) application_protocols: Vec<Box<str>>,
    /// The terminated TLS session.
    pub(crate) tls: Option<Arc<TlsInfo>>,
    /// How its handshake went.
    pub(crate) handshake: HandshakeNotes,
    /// What kind of client its ClientHello is of, where the TLS inspector is asked to say.
    pub(crate) fingerprints: Option<Box<Fingerprints>>,
    /// The listener's name.
    pub(crate) listener: Arc<str>,
    /// The listener's metadata.
    pub(crate) listener_metadata: Option<Arc<Metadata>>,
    /// The listener's direction.
    pub(crate) direction: Direction,
    /// The chain that serves it.
    pub(crate) chain: Option<Arc<FilterChain>>,
    /// Bytes in and out so far.
    pub(crate) meter: Arc<Meter>,
    /// Left by listener and network filters for others and for logs.
    pub(crate) filter_state: FilterState,
    /// Left by network filters.
    pub(crate) metadata: DynamicMetadata,
    /// What filters that look at the bytes have found so far.
    pub(crate) seen: Arc<Mutex<DynamicMetadata>>,
    /// Cluster that a passing filter has chosen (`sni_cluster`).
    pub(crate) cluster_override: Option<Arc<str>>,
    /// Where clusters of a DNS cache are to send it (`sni_dynamic_forward_proxy`).
    pub(crate) dynamic_host: Option<DynamicHost>,
    /// Where its upstream connections are to come from (`original_src`).
    pub(crate) upstream_source: Option<UpstreamSource>,
    /// Whether it finds its end when health checks are made to fail (`drain_type`).
    pub(crate) drains_when_unhealthy: bool,
    /// Whether the overload manager has closed it.
    pub(crate) is_shed: Cell<bool>,
    /// The most that is buffered for it, each way (`per_connection_buffer_limit_bytes`).
    pub(crate) buffer_limit: u32,
}

/// The source that upstream connections take instead of our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct UpstreamSource {
    /// The address; its port is 0, the system's choice.
    pub(crate) address: SocketAddr,
    /// The packets' mark, for policy routing; 0 for none.
    pub(crate) mark: u32,
}

/// A name that is resolved when a connection asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DynamicHost {
    /// The DNS cache that its cluster must have.
    pub(crate) cache: Arc<str>,
    /// Name and port.
    pub(crate) authority: Arc<str>,
}

/// How a connection was closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum CloseType {
    /// Not by a reset.
    #[default]
    Normal,
    /// We reset it.
    LocalReset,
    /// The peer reset it.
    RemoteReset,
}

impl CloseType {
    /// As access logs name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::LocalReset => "LocalReset",
            Self::RemoteReset => "RemoteReset",
        }
    }
}

/// Names for clients that say the same ClientHello.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fingerprints {
    /// JA3.
    pub(crate) ja3: Option<String>,
    /// JA4.
    pub(crate) ja4: Option<String>,
}

/// What the first bytes look like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum TransportProtocol {
    /// Not TLS.
    #[default]
    RawBuffer,
    /// TLS.
    Tls,
}

/// A TLS session on the downstream side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TlsInfo {
    /// Negotiated application protocol.
    pub(crate) alpn: Option<String>,
    /// The name the client asked for.
    pub(crate) server_name: Option<String>,
    /// `TLSv1.3`.
    pub(crate) version: &'static str,
    /// The cipher suite in the IANA spelling.
    pub(crate) cipher: String,
    /// The peer's leaf certificate, if it showed one.
    pub(crate) peer: Option<Arc<PeerCertificate>>,
    /// The group of the key exchange, in Envoy's spelling.
    pub(crate) group: Option<&'static str>,
    /// What our own certificate says; nothing if we showed none.
    pub(crate) local: Arc<CertificateDetails>,
}

/// What a peer's certificate says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PeerCertificate {
    /// Whether the chain was verified.
    pub(crate) is_validated: bool,
    /// URI names.
    pub(crate) uri_sans: Vec<String>,
    /// DNS names.
    pub(crate) dns_sans: Vec<String>,
    /// Distinguished name, RFC 2253.
    pub(crate) subject: String,
    /// The issuer's.
    pub(crate) issuer: String,
    /// SHA-256 of the DER, lower-case hex.
    pub(crate) sha256: String,
    /// Serial number, lower-case hex.
    pub(crate) serial: String,
    /// Seconds since 1970.
    pub(crate) not_before: i64,
    /// Seconds since 1970.
    pub(crate) not_after: i64,
    /// The chain's DER, leaf first.
    pub(crate) chain: Vec<Vec<u8>>,
}

/// A number for a new connection, downstream or upstream, unique in the process.
pub(crate) fn next_connection_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Relaxed)
}

impl ConnectionInfo {
    /// The client, and where it connected to.
    pub(crate) fn addresses(&self) -> ClientAddresses {
        ClientAddresses {
            remote: self.remote_address,
            local: self.local_address,
        }
    }

    /// We end the connection, for this reason; unless there is one already, or the client has ended it.
    pub(crate) fn end_because(&self, reason: &'static str) {
        if !self.meter.is_over() && self.meter.reason().is_none() {
            self.meter.because(reason);
        }
    }

    /// How the connection was closed; normally, as long as it is open.
    pub(crate) fn close_type(&self) -> CloseType {
        if self.meter.is_reset_by_us() {
            CloseType::LocalReset
        } else if self.meter.is_reset() {
            CloseType::RemoteReset
        } else {
            CloseType::Normal
        }
    }

    /// The identity the peer proved: its first URI name.
    pub(crate) fn peer_principal(&self) -> Option<&str> {
        let peer = self.tls.as_ref()?.peer.as_ref()?;
        peer.uri_sans.first().map(String::as_str)
    }
}
