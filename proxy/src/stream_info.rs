//! What is known about one stream (an HTTP request, or a TCP connection): filled while it runs, read by access logs,
//! header formatters, RBAC and statistics.

mod bytes;
mod response_flag;
#[cfg(test)]
pub(crate) mod testing;
mod upstream;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prost_types::Struct;
use tokio::time::Instant;

use crate::filter_state::{DESTINATION, FilterState, Object};
use crate::listener::ConnectionInfo;
use crate::router::{SelectedRoute, Way};
use crate::tracing::{Reason, Span};

pub(crate) use bytes::{ByteCounts, ByteMeter, PlainMeter, Traffic};
pub(crate) use response_flag::{ResponseFlag, ResponseFlags};
pub(crate) use upstream::{UpstreamConnection, UpstreamInfo, name_of};

/// The record of one stream.
pub(crate) struct StreamInfo {
    /// The downstream connection that carries the stream.
    pub(crate) connection: Rc<ConnectionInfo>,
    /// Wall-clock start.
    pub(crate) start_time: SystemTime,
    /// Monotonic start.
    pub(crate) start: Instant,
    /// The HTTP version; none for TCP.
    pub(crate) protocol: Option<http::Version>,
    /// The client as far as it is known: from `x-forwarded-for` or the socket.
    pub(crate) remote_address: SocketAddr,
    /// True when the client counts as inside the mesh's own network.
    pub(crate) is_internal: bool,
    /// True when the health-check filter answered or recognised a probe.
    pub(crate) is_health_check: bool,
    /// The matched route.
    pub(crate) route: Option<SelectedRoute>,
    /// The virtual cluster that the request belongs to.
    pub(crate) virtual_cluster: Option<Arc<str>>,
    /// `:status` sent downstream.
    pub(crate) response_code: Option<u16>,
    /// Why that status, in Envoy's words.
    pub(crate) response_code_details: Option<Cow<'static, str>>,
    /// Why the connection ended, for TCP.
    pub(crate) connection_termination_details: Option<Cow<'static, str>>,
    /// What went wrong.
    pub(crate) flags: ResponseFlags,
    /// Body bytes from downstream.
    pub(crate) bytes_received: u64,
    /// Body bytes to downstream.
    pub(crate) bytes_sent: u64,
    /// What went over the downstream connection, if HTTP did.
    pub(crate) meter: Option<Rc<dyn ByteMeter>>,
    /// When the last byte of the request was read.
    pub(crate) request_end: Option<Instant>,
    /// When the first byte of the response was read from upstream.
    pub(crate) response_start: Option<Instant>,
    /// When the response's head went downstream.
    pub(crate) response_sent: Option<Instant>,
    /// When the stream was over.
    pub(crate) end: Option<Instant>,
    /// The upstream side.
    pub(crate) upstream: UpstreamInfo,
    /// What filters left for each other, by filter name.
    pub(crate) metadata: DynamicMetadata,
    /// What filters left for others and for logs; of the connection there may be more.
    pub(crate) filter_state: FilterState,
    /// The span of the request, where it is traced.
    pub(crate) span: Option<Box<Span>>,
    /// Why it is traced, or that it is not.
    pub(crate) trace_reason: Reason,
    /// What the client's request came as, whatever filters make of it.
    pub(crate) rpc: Rpc,
    /// How many bytes of body an internal redirect has brought along, if it is one's request.
    pub(crate) brought: Option<u64>,
    /// Redirects of upstreams' that were followed for this request.
    pub(crate) internal_redirects: u32,
    /// The ways that they took from route to route.
    pub(crate) redirects: Vec<Way>,
}

/// How a client makes its calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Rpc {
    /// They are none, or of no kind that we know.
    #[default]
    None,
    /// gRPC.
    Grpc,
    /// gRPC-web, which is made gRPC for the upstream.
    Web,
}

/// Metadata by filter name. A stream has few of them, so a list is quickest.
#[derive(Debug, Default, Clone)]
pub(crate) struct DynamicMetadata(Vec<(Cow<'static, str>, Struct)>);

impl StreamInfo {
    /// A request that begins now on `connection`; without a protocol the connection itself, which began when it came.
    pub(crate) fn new(connection: Rc<ConnectionInfo>, protocol: Option<http::Version>) -> Self {
        let remote_address = connection.remote_address;
        let (mut start_time, mut start) = (SystemTime::now(), Instant::now());
        if protocol.is_none() {
            start_time -= start.saturating_duration_since(connection.began);
            start = connection.began;
        }
        StreamInfo {
            connection,
            start_time,
            start,
            protocol,
            remote_address,
            is_internal: false,
            is_health_check: false,
            route: None,
            virtual_cluster: None,
            response_code: None,
            response_code_details: None,
            connection_termination_details: None,
            flags: ResponseFlags::default(),
            bytes_received: 0,
            bytes_sent: 0,
            meter: None,
            request_end: None,
            response_sent: None,
            response_start: None,
            end: None,
            upstream: UpstreamInfo::default(),
            metadata: DynamicMetadata::default(),
            filter_state: FilterState::default(),
            span: None,
            trace_reason: Reason::default(),
            rpc: Rpc::None,
            brought: None,
            internal_redirects: 0,
            redirects: Vec::new(),
        }
    }

    /// How long the stream took, or takes so far.
    pub(crate) fn duration(&self) -> Duration {
        self.end
            .unwrap_or_else(Instant::now)
            .saturating_duration_since(self.start)
    }

    /// What filters left under that name: as in Envoy a request cannot replace what its connection has.
    pub(crate) fn object(&self, key: &str) -> Option<&Object> {
        let of_connection = self.connection.filter_state.get(key);
        of_connection.or_else(|| self.filter_state.get(key))
    }

    /// What a connection that is made for it gets of what filters left.
    pub(crate) fn shared_state(&self) -> FilterState {
        let mut shared = self.connection.filter_state.shared();
        shared.extend(self.filter_state.shared());
        shared
    }

    /// Where the client wanted to go, or a filter says it does, for clusters that send it there.
    pub(crate) fn original_destination(&self) -> Option<SocketAddr> {
        let connection = &self.connection;
        match self.object(DESTINATION) {
            Some(Object::Address(address)) => Some(*address),
            _ => (connection.is_local_restored).then_some(connection.local_address),
        }
    }

    /// The trace that the request belongs to.
    pub(crate) fn trace_id(&self) -> Option<String> {
        self.span.as_ref().map(|span| span.trace_id())
    }

    /// The request's span.
    pub(crate) fn span_id(&self) -> Option<String> {
        self.span.as_ref().map(|span| span.span_id())
    }

    /// What went over the downstream connection.
    pub(crate) fn downstream_bytes(&self) -> ByteCounts {
        match &self.meter {
            Some(meter) => meter.counts(),
            None => self.tcp_bytes(self.bytes_received, self.bytes_sent),
        }
    }

    /// What went over the upstream's connections.
    pub(crate) fn upstream_bytes(&self) -> ByteCounts {
        match &self.upstream.meter {
            Some(meter) => meter.counts(),
            None => self.tcp_bytes(self.bytes_sent, self.bytes_received),
        }
    }

    /// TCP has no heads: all that goes through.
    fn tcp_bytes(&self, received: u64, sent: u64) -> ByteCounts {
        let mut counts = ByteCounts::default();
        if self.protocol.is_none() {
            counts.received.wire = received;
            counts.sent.wire = sent;
        }
        counts
    }

    /// Notes why a status is sent, unless something else already said so.
    pub(crate) fn set_details(&mut self, details: impl Into<Cow<'static, str>>) {
        if self.response_code_details.is_none() {
            self.response_code_details = Some(details.into());
        }
    }
}

impl DynamicMetadata {
    /// What `filter` left.
    pub(crate) fn get(&self, filter: &str) -> Option<&Struct> {
        self.0
            .iter()
            .find(|(name, _)| name == filter)
            .map(|(_, fields)| fields)
    }

    /// Adds fields to what `filter` left; a field of the same name is replaced.
    pub(crate) fn merge(&mut self, filter: impl Into<Cow<'static, str>>, fields: Struct) {
        let filter = filter.into();
        match self.0.iter_mut().find(|(name, _)| *name == filter) {
            Some((_, present)) => present.fields.extend(fields.fields),
            None => self.0.push((filter, fields)),
        }
    }

    /// Everything, by filter.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Struct)> {
        self.0.iter().map(|(name, fields)| (name.as_ref(), fields))
    }
}
