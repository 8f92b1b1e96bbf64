//! The HTTP pool of one host: idle HTTP/1.1 connections, shared HTTP/2 connections, and those who wait for one.

use super::{
    HttpConnection, Key, PoolError, PoolErrorKind, Shed, Wanted, http1::Http1, http2, refuse_if,
};
use crate::{
    filter_state::FilterState,
    http::{
        h1::HeadLimits,
        h2::{Connection, Requests},
    },
    stream_info::UpstreamConnection,
    transport::UpstreamStream,
    upstream::{Aim, Cluster, Host, Load, circuit_breaker::Guard, connect},
};
use ::http::Version;
use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};
use tokio::{sync::Notify, time::Instant};

/// The head of a response may not be longer. (Envoy bounds the number of its fields only; something must bound it.)
pub(super) const MAX_RESPONSE_HEAD: usize = 1 << 20;

/// Connections to one host.
pub(super) struct HttpPool {
    cluster: Arc<Cluster>,
    host: Arc<Host>,
    key: Key,
    /// What its connections have of the request that it was made for.
    filter_state: FilterState,
    idle: RefCell<Vec<Idle>>,
    shared: RefCell<Vec<Http2>>,
    /// Connections that are being made for who waits. Of HTTP/2 there is one at most: others wait for it too.
    connecting: Cell<u32>,
    open: Rc<Cell<u32>>,
    /// Connections in use.
    lent: Cell<u32>,
    /// Connections that are being made before they are needed.
    ahead: Cell<u32>,
    changed: Notify,
    shed: Option<Shed>,
    _room: Guard,
}

struct Idle {
    connection: Box<Http1>,
    open: Open,
    life: Life,
}

struct Http2 {
    sender: Requests,
    /// How many it carries.
    streams: Arc<AtomicU32>,
    life: Life,
}

#[derive(Clone)]
struct Life {
    facts: Rc<UpstreamConnection>,
    born: Instant,
    idle_since: Instant,
    requests: u32,
}

/// What sends a request.
pub(super) enum Sender {
    Http1(Box<Http1>),
    Http2(Requests),
}

/// A connection, or a stream of one, in use; counts the request while it lives.
pub(super) struct Lease {
    /// Of an HTTP/1 connection, which the lease has to itself.
    open: Option<Open>,
    life: Life,
    count: Count,
}

struct Count {
    pool: Rc<HttpPool>,
    streams: Option<Arc<AtomicU32>>,
}

/// A connection that is being made, also when the attempt is given up.
struct Connecting<'a>(&'a HttpPool);

impl<'a> Connecting<'a> {
    fn begin(pool: &'a HttpPool) -> Self {
        pool.connecting.set(pool.connecting.get() + 1);
        Self(pool)
    }
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        self.0.connecting.set(self.0.connecting.get() - 1);
        self.0.changed.notify_waiters();
    }
}

struct PendingGauge<'a>(&'a Cluster, &'a Host);

impl<'a> PendingGauge<'a> {
    fn raise(cluster: &'a Cluster, host: &'a Host) -> Self {
        cluster.stats.upstream_rq_pending_active.inc();
        host.stats.rq_pending_active.inc();
        Self(cluster, host)
    }
}

impl Drop for PendingGauge<'_> {
    fn drop(&mut self) {
        self.0.stats.upstream_rq_pending_active.dec();
        self.1.stats.rq_pending_active.dec();
    }
}

impl HttpPool {
    pub(super) fn new(
        cluster: Arc<Cluster>,
        host: Arc<Host>,
        key: Key,
        filter_state: FilterState,
        room: Guard,
        shed: Option<Shed>,
    ) -> Self {
        Self {
            cluster,
            host,
            key,
            filter_state,
            idle: RefCell::default(),
            shared: RefCell::default(),
            connecting: Cell::new(0),
            open: Rc::default(),
            lent: Cell::new(0),
            ahead: Cell::new(0),
            changed: Notify::new(),
            shed,
            _room: room,
        }
    }

    /// Whether it is one of the cluster's that nobody uses or waits for.
    pub(super) fn is_idle_of(self: &Rc<Self>, cluster: &Arc<Cluster>) -> bool {
        Arc::ptr_eq(&self.cluster, cluster) && Rc::strong_count(self) == 1
    }

    /// A connection: one that is there, else a new one, else the next that comes free.
    pub(super) async fn acquire(self: &Rc<Self>) -> Result<HttpConnection, PoolError> {
        let connection = match self.reuse() {
            Some(connection) => connection,
            None => Box::pin(self.acquire_new()).await?,
        };
        if let Sender::Http2(requests) = &connection.sender {
            requests.ready().await.map_err(http2::classify)?;
        }
        if self.cluster.config.preconnect_ratio > 1.0 {
            self.preconnect();
        }
        Ok(connection)
    }

    /// Makes connections before they are needed, so that there are `preconnect_ratio` for each one in use. One of HTTP/2 has
    /// room for all that is to come.
    fn preconnect(self: &Rc<Self>) {
        if self.key.protocol != Wanted::Http1 || self.shed.as_ref().is_some_and(|shed| shed()) {
            return;
        }
        let wanted = f64::from(self.lent.get()) * self.cluster.config.preconnect_ratio;
        while wanted > f64::from(self.open.get() + self.ahead.get()) {
            // Those that were begun here may not be among the host's yet.
            let has = self.host.stats.cx_active.value() + u64::from(self.ahead.get());
            let Some(room) = self.cluster.breakers.connection(self.key.priority, has) else {
                return;
            };
            self.ahead.set(self.ahead.get() + 1);
            let pool = self.clone();
            tokio::task::spawn_local(async move {
                // One that fails will fail again when it is needed.
                let opened = pool.open(room).await;
                pool.ahead.set(pool.ahead.get().saturating_sub(1));
                let Ok((stream, life)) = opened else {
                    return;
                };
                let connection = Box::new(pool.http1(stream));
                pool.idle.borrow_mut().push(Idle {
                    connection,
                    open: pool.opened(),
                    life,
                });
                pool.changed.notify_one();
            });
        }
    }

    fn http1(&self, stream: UpstreamStream) -> Http1 {
        self.cluster.stats.upstream_cx_http1_total.inc();
        Http1::new(stream)
    }

    fn opened(self: &Rc<Self>) -> Open {
        self.open.set(self.open.get() + 1);
        Open(self.open.clone(), Rc::downgrade(self))
    }

    async fn open(&self, room: Guard) -> Result<(UpstreamStream, Life), PoolError> {
        let alpn = self.key.protocol.alpn();
        let aim = Aim {
            sni: self.key.sni.as_deref(),
            source: self.key.source,
            client: self.key.client,
        };
        let stream = connect(&self.cluster, &self.host, room, alpn, aim).await?;
        let now = Instant::now();
        let life = Life {
            facts: Rc::new(stream.facts(self.filter_state.clone())),
            born: now,
            idle_since: now,
            requests: 0,
        };
        Ok((stream, life))
    }

    /// As [`Self::acquire`], for a request that waits.
    pub(super) async fn acquire_new(self: &Rc<Self>) -> Result<HttpConnection, PoolError> {
        let stats = &self.cluster.stats;
        stats.upstream_rq_pending_total.inc();
        let Some(_pending) = self.cluster.breakers.pending(self.key.priority) else {
            stats.upstream_rq_pending_overflow.inc();
            return Err(PoolError::new(PoolErrorKind::Overflow, "overflow"));
        };
        let _gauge = PendingGauge::raise(&self.cluster, &self.host);
        let mut was_full = false;
        loop {
            // Asked to be woken before looking, so that nothing is missed between the two.
            let changed = self.changed.notified();
            let freed = self.cluster.breakers.connection_freed.notified();
            if !(self.key.protocol == Wanted::Http2 && self.connecting.get() > 0) {
                if let Some(room) = self.room() {
                    refuse_if(self.shed.as_ref(), &self.cluster)?;
                    return self.connect(room).await;
                }
                if !std::mem::replace(&mut was_full, true) {
                    stats.upstream_cx_overflow.inc();
                }
            }
            tokio::select! {
                () = changed => {}
                () = freed => {}
            }
            if let Some(connection) = self.reuse() {
                return Ok(connection);
            }
        }
    }

    fn room(&self) -> Option<Guard> {
        let breakers = &self.cluster.breakers;
        // As in Envoy: a host without any connection may have one, whatever the limit, so that nobody waits for ever.
        breakers
            .connection(self.key.priority, self.host.stats.cx_active.value())
            .or_else(|| {
                (self.open.get() + self.connecting.get() == 0)
                    .then(|| breakers.first_connection(self.key.priority))
            })
    }

    fn reuse(self: &Rc<Self>) -> Option<HttpConnection> {
        let limits = &self.cluster.config.http;
        {
            let mut shared = self.shared.borrow_mut();
            shared.retain_mut(|one| one.sender.is_usable() && !self.is_too_old(&one.life));
            if let Some(connection) = shared
                .iter_mut()
                .find(|one| one.streams.load(Relaxed) < limits.max_concurrent_streams)
            {
                connection.life.requests += 1;
                let (sender, life, streams) = (
                    connection.sender.clone(),
                    connection.life.clone(),
                    connection.streams.clone(),
                );
                if self.is_used_up(&life) {
                    // It takes no more requests; those under way end on their own senders.
                    shared.retain(|one| !Arc::ptr_eq(&one.streams, &streams));
                }
                drop(shared);
                return Some(self.lend(Sender::Http2(sender), life, Some(streams), None));
            }
        }
        loop {
            // The one used last is the likeliest to live.
            let mut idle = self.idle.borrow_mut().pop()?;
            if idle.connection.is_usable() && !self.is_too_old(&idle.life) {
                idle.life.requests += 1;
                let sender = Sender::Http1(idle.connection);
                return Some(self.lend(sender, idle.life, None, Some(idle.open)));
            }
        }
    }

    fn is_used_up(&self, life: &Life) -> bool {
        let limits = &self.cluster.config.http;
        let is_spent = limits.max_requests_per_connection > 0
            && life.requests >= limits.max_requests_per_connection;
        if is_spent {
            self.cluster.stats.upstream_cx_max_requests.inc();
        }
        is_spent || self.is_too_old(life) || self.host.is_removed()
    }

    /// Whether a connection takes no more requests because of its age; counted when that is found.
    fn is_too_old(&self, life: &Life) -> bool {
        let most = self.cluster.config.http.max_connection_duration;
        let is_old = most.is_some_and(|most| life.born.elapsed() >= most);
        if is_old {
            self.cluster.stats.upstream_cx_max_duration_reached.inc();
        }
        is_old
    }

    async fn connect(self: &Rc<Self>, room: Guard) -> Result<HttpConnection, PoolError> {
        let _connecting = Connecting::begin(self);
        let (mut stream, mut life) = self.open(room).await?;
        life.requests = 1;
        let is_http2 = match self.key.protocol {
            Wanted::Http1 => false,
            Wanted::Http2 => true,
            Wanted::Auto => stream.alpn() == Some(b"h2"),
        };
        let limits = &self.cluster.config.http;
        let open = self.opened();
        if !is_http2 {
            self.cluster.codecs.http1(&self.cluster.scope);
            let sender = Sender::Http1(Box::new(self.http1(stream)));
            return Ok(self.lend(sender, life, None, Some(open)));
        }
        let stats = self.cluster.codecs.http2(&self.cluster.scope).clone();
        let streams = Arc::new(AtomicU32::new(0));
        stream.set_load(Load::Streams(streams.clone()));
        let (connection, sender) = Connection::client(stream, http2::options(limits), stats);
        self.cluster.stats.upstream_cx_http2_total.inc();
        let keepalive = limits.keepalive;
        tokio::task::spawn_local(async move {
            let _open = open;
            if let Err(error) = connection.run(keepalive).await {
                tracing::debug!(target: "pool", %error, "upstream connection ended");
            }
        });
        if !self.is_used_up(&life) {
            self.shared.borrow_mut().push(Http2 {
                sender: sender.clone(),
                streams: streams.clone(),
                life: life.clone(),
            });
        }
        Ok(self.lend(Sender::Http2(sender), life, Some(streams), None))
    }

    fn lend(
        self: &Rc<Self>,
        sender: Sender,
        life: Life,
        streams: Option<Arc<AtomicU32>>,
        open: Option<Open>,
    ) -> HttpConnection {
        if let Some(streams) = &streams {
            streams.fetch_add(1, Relaxed);
        }
        self.lent.set(self.lent.get() + 1);
        for active in [
            &self.cluster.stats.upstream_rq_active,
            &self.host.stats.rq_active,
        ] {
            active.inc();
        }
        self.cluster.stats.upstream_rq_total.inc();
        self.host.stats.rq_total.inc();
        let protocol = if streams.is_some() {
            Version::HTTP_2
        } else {
            Version::HTTP_11
        };
        let facts = life.facts.clone();
        let lease = Lease {
            open,
            life,
            count: Count {
                pool: self.clone(),
                streams,
            },
        };
        HttpConnection {
            facts,
            protocol,
            sender,
            lease,
            limits: HeadLimits {
                bytes: MAX_RESPONSE_HEAD,
                count: self.cluster.config.http.max_headers_count as usize,
                allows_chunked_length: self.cluster.config.http.allows_chunked_length,
                allows_any_method: false,
            },
            http1: self.cluster.config.http.http1,
        }
    }

    /// Closes what has been idle too long; `false` when the pool itself can go.
    pub(super) fn sweep(&self) -> bool {
        let timeout = self.cluster.config.http.idle_timeout;
        let is_removed = self.host.is_removed();
        let mut expired = 0;
        let mut is_kept = |is_closed: bool, is_idle: bool, life: &Life| {
            if is_closed || is_idle && (is_removed || self.is_too_old(life)) {
                return false;
            }
            let is_expired = is_idle && !timeout.is_zero() && life.idle_since.elapsed() >= timeout;
            expired += u64::from(is_expired);
            !is_expired
        };
        let mut idle = self.idle.borrow_mut();
        idle.retain_mut(|one| is_kept(!one.connection.is_usable(), true, &one.life));
        let mut shared = self.shared.borrow_mut();
        shared.retain_mut(|one| {
            let is_closed = !one.sender.is_usable();
            is_kept(is_closed, one.streams.load(Relaxed) == 0, &one.life)
        });
        self.cluster.stats.upstream_cx_idle_timeout.add(expired);
        !(idle.is_empty() && shared.is_empty() && self.open.get() == 0)
    }
}

/// Counts an open connection of the pool until it is closed.
struct Open(Rc<Cell<u32>>, Weak<HttpPool>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
        if let Some(pool) = self.1.upgrade() {
            pool.changed.notify_one();
        }
    }
}

impl Lease {
    /// The response has been read to its end: the connection, if it lives, may serve another request.
    pub(super) fn finish(self, connection: Option<Box<Http1>>) {
        let Self {
            open,
            mut life,
            count,
        } = self;
        let (Some(connection), Some(open)) = (connection, open) else {
            return;
        };
        let pool = &count.pool;
        if pool.is_used_up(&life) {
            return;
        }
        life.idle_since = Instant::now();
        pool.idle.borrow_mut().push(Idle {
            connection,
            open,
            life,
        });
        pool.changed.notify_one();
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.pool.lent.set(self.pool.lent.get().saturating_sub(1));
        self.pool.cluster.stats.upstream_rq_active.dec();
        self.pool.host.stats.rq_active.dec();
        if let Some(streams) = &self.streams {
            streams.fetch_sub(1, Relaxed);
            let mut shared = self.pool.shared.borrow_mut();
            if let Some(one) = shared
                .iter_mut()
                .find(|one| Arc::ptr_eq(&one.streams, streams))
            {
                one.life.idle_since = Instant::now();
            }
            self.pool.changed.notify_one();
        }
    }
}
