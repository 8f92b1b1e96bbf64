//! The upstream side of a stream: where it went, on which connection, and when.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::time::Instant;

use crate::filter_state::FilterState;
use crate::listener::{CloseType, TlsInfo};
use crate::upstream::{Cluster, Host};

use super::bytes::ByteMeter;

/// The upstream side of a stream.
#[derive(Default, Clone)]
pub(crate) struct UpstreamInfo {
    /// The cluster.
    pub(crate) cluster: Option<Arc<Cluster>>,
    /// The chosen host.
    pub(crate) host: Option<Arc<Host>>,
    /// The connection to it, once there is one.
    pub(crate) connection: Option<Rc<UpstreamConnection>>,
    /// Where earlier attempts went: those that had a connection.
    pub(crate) earlier: Vec<(Arc<Host>, Rc<UpstreamConnection>)>,
    /// Why the transport (TCP, TLS) failed.
    pub(crate) transport_failure: Option<String>,
    /// How the connection of a TCP proxy was closed; normally, as long as it is open.
    pub(crate) close: Option<CloseType>,
    /// Why we closed that.
    pub(crate) close_reason: Option<&'static str>,
    /// The upstream's HTTP version.
    pub(crate) protocol: Option<http::Version>,
    /// How many attempts were made.
    pub(crate) attempts: u32,
    /// What went over its connection, and over those of earlier attempts.
    pub(crate) meter: Option<Rc<dyn ByteMeter>>,
    /// When the attempt began that was made last.
    pub(crate) began: Option<Instant>,
    /// When it had its connection.
    pub(crate) ready: Option<Instant>,
    /// When the response's body began to come.
    pub(crate) body_start: Option<Instant>,
    /// When the response was over.
    pub(crate) response_end: Option<Instant>,
}

/// What stays the same about an upstream connection; the streams that it carries share it.
pub(crate) struct UpstreamConnection {
    /// Unique in the process, among downstream connections too.
    pub(crate) id: u64,
    /// Our end's address.
    pub(crate) local_address: Option<SocketAddr>,
    /// Its TLS session.
    pub(crate) tls: Option<Arc<TlsInfo>>,
    /// When it was begun.
    pub(crate) began: Instant,
    /// When TCP was connected.
    pub(crate) connected: Instant,
    /// When the TLS handshake was over.
    pub(crate) secured: Option<Instant>,
    /// What those who made it share with it.
    pub(crate) filter_state: FilterState,
}

impl UpstreamInfo {
    /// Another attempt begins, on this host.
    pub(crate) fn set_host(&mut self, host: Arc<Host>) {
        let before = self.host.replace(host).zip(self.connection.take());
        self.earlier.extend(before);
        self.transport_failure = None;
    }

    /// Another attempt's request goes out, whose bytes are counted in with those of earlier ones.
    pub(crate) fn set_meter(&mut self, meter: Rc<dyn ByteMeter>) {
        if let Some(earlier) = &self.meter {
            meter.add(earlier.counts());
        }
        self.meter = Some(meter);
    }

    /// The host's name, else its address.
    pub(crate) fn host_name(&self) -> Option<&str> {
        self.host.as_deref().map(name_of)
    }

    /// The TLS session.
    pub(crate) fn tls(&self) -> Option<&TlsInfo> {
        self.connection.as_ref()?.tls.as_deref()
    }

    /// Our end's address.
    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        self.connection.as_ref()?.local_address
    }

    /// Hosts and connections of all attempts that had one, in their order.
    pub(crate) fn attempted(&self) -> impl Iterator<Item = (&Arc<Host>, &Rc<UpstreamConnection>)> {
        let earlier = self
            .earlier
            .iter()
            .map(|(host, connection)| (host, connection));
        earlier.chain(self.host.as_ref().zip(self.connection.as_ref()))
    }
}

/// A host's name, else its address.
pub(crate) fn name_of(host: &Host) -> &str {
    if host.hostname.is_empty() {
        &host.address_text
    } else {
        &host.hostname
    }
}
