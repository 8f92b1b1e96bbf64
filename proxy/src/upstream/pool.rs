//! Connection pools of one worker: HTTP/1.1, HTTP/2 and plain TCP. Nothing here is shared between threads.
//!
//! A pool is for one host, protocol, priority and server name. Getting a connection and sending the request are two steps, so
//! that a failed connection never eats the request.

mod body;
mod establish;
mod http;
mod http1;
mod http2;
mod http_connection;
mod lease;
mod tally;

pub(crate) use body::{UpstreamBody, UpstreamBodyError};
pub(crate) use http_connection::HttpConnection;

use self::{establish::AT_A_TIME, http::HttpPool, tally::Tally};
use super::{Aim, Cluster, ConnectError, Host, Load, Priority, UpstreamProtocol, connect};
use crate::filter_state::{FilterState, Object};
use crate::http::body::{BodyError, is_malformed, is_refused};
use crate::listener::UpstreamSource;
use crate::transport::{AlpnFallback, ClientAddresses, UpstreamStream};
use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc, time::Duration};

/// Refuses to make a connection where the overload manager says so; as in Envoy, who waits for one counts as cancelled.
fn refuse_if(shed: Option<&Shed>, cluster: &Cluster) -> Result<(), PoolError> {
    if !shed.is_some_and(|shed| shed()) {
        return Ok(());
    }
    cluster.stats.upstream_rq_cancelled.inc();
    Err(PoolError::new(PoolErrorKind::Shed, "overload"))
}

/// What a connection is wanted for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolRequest<'a> {
    /// The route's priority.
    pub(crate) priority: Priority,
    /// What the downstream speaks.
    pub(crate) downstream_protocol: ::http::Version,
    /// The server name, where it follows the request (`auto_sni`).
    pub(crate) sni: Option<&'a str>,
    /// The client that it is for.
    pub(crate) client: Option<ClientAddresses>,
    /// The source that its connection takes instead of our own.
    pub(crate) source: Option<UpstreamSource>,
    /// What its connection, if it is the first of its kind, gets of the filter state.
    pub(crate) shared: Option<&'a FilterState>,
}

/// Why a connection could not be had, or a request failed on it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{kind:?}: {text}")]
pub(crate) struct PoolError {
    /// What kind of failure.
    pub(crate) kind: PoolErrorKind,
    /// The transport's word for it; may be empty.
    pub(crate) text: String,
}

/// What kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PoolErrorKind {
    /// The host could not be reached.
    ConnectFailure,
    /// It could not be reached in time.
    ConnectTimeout,
    /// A circuit breaker is open.
    Overflow,
    /// The overload manager lets no connection be made.
    Shed,
    /// The cluster has as many pools as it may.
    PoolOverflow,
    /// The host refused the stream before working on it.
    RefusedStream,
    /// The host reset the stream.
    Reset,
    /// The connection ended.
    ConnectionTermination,
    /// What came back is not HTTP.
    Protocol,
    /// We reset the stream.
    LocalReset,
    /// The client's body is not framed as it says.
    MalformedBody,
    /// A filter wants no more of the client's body.
    RefusedBody,
}

/// A TCP connection to a host.
pub(crate) struct TcpConnection {
    /// Its bytes.
    pub(crate) stream: UpstreamStream,
}

/// What a plain TCP connection may ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TcpOptions {
    /// The protocols that TLS offers.
    pub(crate) alpn: AlpnFallback,
    /// The source it takes instead of our own.
    pub(crate) source: Option<UpstreamSource>,
    /// The client that it is for.
    pub(crate) client: Option<ClientAddresses>,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            alpn: AlpnFallback::None,
            source: None,
            client: None,
        }
    }
}

/// Says whether the overload manager lets no connection be made now.
pub(crate) type Shed = Rc<dyn Fn() -> bool>;

/// All pools of a worker.
#[derive(Default)]
pub(crate) struct Pools {
    shed: Option<Shed>,
    /// What they carry, all together.
    tally: Rc<Tally>,
    http: RefCell<HashMap<Key, Rc<HttpPool>, foldhash::quality::RandomState>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    host: u64,
    protocol: Wanted,
    priority: Priority,
    sni: Option<Box<str>>,
    /// Where hosts are told of it: connections are not shared between clients then.
    client: Option<ClientAddresses>,
    source: Option<UpstreamSource>,
    /// What requests share with connections that are for their like only.
    apart: Vec<Object>,
}

/// Which HTTP a pool speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Wanted {
    Http1,
    Http2,
    Auto,
}

impl PoolError {
    /// An error with the transport's word for it.
    pub(crate) fn new(kind: PoolErrorKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
        }
    }

    /// The request's body broke off.
    fn of_body(error: &BodyError) -> Self {
        let kind = if is_malformed(error) {
            PoolErrorKind::MalformedBody
        } else if is_refused(error) {
            PoolErrorKind::RefusedBody
        } else {
            PoolErrorKind::LocalReset
        };
        Self::new(kind, error.to_string())
    }
}

impl From<ConnectError> for PoolError {
    fn from(error: ConnectError) -> Self {
        let kind = if matches!(error, ConnectError::Timeout) {
            PoolErrorKind::ConnectTimeout
        } else {
            PoolErrorKind::ConnectFailure
        };
        Self::new(kind, error.to_string())
    }
}

impl Wanted {
    fn of(cluster: &Cluster, downstream: ::http::Version) -> Self {
        match cluster.config.http.protocol {
            UpstreamProtocol::Http1 => Self::Http1,
            UpstreamProtocol::Http2 => Self::Http2,
            UpstreamProtocol::UseDownstream if downstream == ::http::Version::HTTP_2 => Self::Http2,
            UpstreamProtocol::UseDownstream => Self::Http1,
            UpstreamProtocol::Auto => Self::Auto,
        }
    }

    fn alpn(self) -> AlpnFallback {
        match self {
            Self::Http1 => AlpnFallback::Http1,
            Self::Http2 => AlpnFallback::Http2,
            Self::Auto => AlpnFallback::Auto,
        }
    }
}

impl Pools {
    /// None yet; with `shed` there are times when no connection is made.
    pub(crate) fn new(shed: Option<Shed>) -> Self {
        Self {
            shed,
            ..Self::default()
        }
    }

    /// A connection for one HTTP request to `host`. Waits while the cluster has as many connections as it may; the caller's
    /// deadline applies.
    pub(crate) async fn http(
        &self,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        request: &PoolRequest<'_>,
    ) -> Result<HttpConnection, PoolError> {
        let ratio = cluster.config.preconnect.predictive;
        if ratio > 1.0 {
            self.look_ahead(cluster, request, ratio);
        }
        self.pool(cluster, host, request)?.acquire().await
    }

    /// Makes connections to the hosts that come next, as long as there is room for less than `ratio` times the streams that
    /// there are, the next one among them.
    fn look_ahead(&self, cluster: &Arc<Cluster>, request: &PoolRequest<'_>, ratio: f64) {
        for _ in 0..AT_A_TIME {
            if !self.tally.is_below(ratio, 1) {
                return;
            }
            let Some(host) = cluster.peek_host(rand::random()) else {
                return;
            };
            let pool = self.pool(cluster, &host, request);
            if !pool.is_ok_and(|pool| pool.look_ahead(ratio, 1)) {
                return;
            }
        }
    }

    fn pool(
        &self,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        request: &PoolRequest<'_>,
    ) -> Result<Rc<HttpPool>, PoolError> {
        let key = Key {
            host: host.id,
            protocol: Wanted::of(cluster, request.downstream_protocol),
            priority: request.priority,
            sni: request.sni.map(Into::into),
            client: request.client.filter(|_| host.transport.tells_client()),
            source: request.source,
            apart: request.shared.map(FilterState::apart).unwrap_or_default(),
        };
        let known = self.http.borrow().get(&key).cloned();
        known.map_or_else(|| self.add(cluster, host, key, request.shared), Ok)
    }

    /// A new pool, if the cluster may have one more; pools that nobody uses make room.
    fn add(
        &self,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        key: Key,
        shared: Option<&FilterState>,
    ) -> Result<Rc<HttpPool>, PoolError> {
        let mut pools = self.http.borrow_mut();
        let room = cluster.breakers.pool(key.priority).or_else(|| {
            pools.retain(|_, pool| !pool.is_idle_of(cluster));
            cluster.breakers.pool(key.priority)
        });
        let Some(room) = room else {
            cluster.stats.upstream_cx_pool_overflow.inc();
            return Err(PoolError::new(PoolErrorKind::PoolOverflow, ""));
        };
        let pool = Rc::new(HttpPool::new(
            cluster.clone(),
            host.clone(),
            key.clone(),
            shared.cloned().unwrap_or_default(),
            room,
            self.shed.clone(),
            &self.tally,
        ));
        pools.insert(key, pool.clone());
        Ok(pool)
    }

    /// A TCP connection to `host`.
    pub(crate) async fn tcp(
        &self,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        priority: Priority,
    ) -> Result<TcpConnection, PoolError> {
        self.tcp_with(cluster, host, priority, TcpOptions::default())
            .await
    }

    /// A TCP connection to `host` that is more particular.
    pub(crate) async fn tcp_with(
        &self,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        priority: Priority,
        options: TcpOptions,
    ) -> Result<TcpConnection, PoolError> {
        let stats = &cluster.stats;
        stats.upstream_rq_pending_total.inc();
        let Some(_pending) = cluster.breakers.pending(priority) else {
            stats.upstream_rq_pending_overflow.inc();
            return Err(PoolError::new(PoolErrorKind::Overflow, "overflow"));
        };
        refuse_if(self.shed.as_ref(), cluster)?;
        let Some(room) = cluster
            .breakers
            .connection(priority, host.stats.cx_active.value())
        else {
            stats.upstream_cx_overflow.inc();
            return Err(PoolError::new(PoolErrorKind::Overflow, "overflow"));
        };
        let aim = Aim {
            sni: None,
            source: options.source,
            client: options.client,
        };
        let mut stream = connect(cluster, host, room, options.alpn, aim).await?;
        stream.set_load(Load::Busy);
        Ok(TcpConnection { stream })
    }

    /// Lets go of connections that have been idle too long, or whose host has left, for ever. Runs on the worker.
    pub(crate) async fn run_sweep(&self) {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tick.tick().await;
            self.http.borrow_mut().retain(|_, pool| pool.sweep());
        }
    }

    /// Lets go of every idle connection.
    pub(crate) fn clear(&self) {
        self.http.borrow_mut().clear();
    }
}
