//! The HTTP pool of one host: idle HTTP/1.1 connections, shared HTTP/2 connections, and those who wait for one.

use super::{HttpConnection, Key, PoolError, PoolErrorKind, Wanted};
use crate::{
    http::body::Body,
    upstream::{Cluster, Host, Priority, circuit_breaker::Guard, connect},
};
use ::http::Version;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::{Rc, Weak},
    sync::Arc,
};
use tokio::{sync::Notify, time::Instant};

/// Connections to one host.
pub(super) struct HttpPool {
    cluster: Arc<Cluster>,
    host: Arc<Host>,
    wanted: Wanted,
    priority: Priority,
    sni: Option<Box<str>>,
    idle: RefCell<Vec<Http1>>,
    shared: RefCell<Vec<Http2>>,
    /// An HTTP/2 connection is being made; others wait for it instead of making their own.
    is_connecting: Cell<bool>,
    open: Rc<Cell<u32>>,
    changed: Notify,
}

struct Http1 {
    sender: http1::SendRequest<Body>,
    life: Life,
}

struct Http2 {
    sender: http2::SendRequest<Body>,
    streams: Rc<Cell<u32>>,
    life: Life,
}

#[derive(Clone)]
struct Life {
    local_address: Option<SocketAddr>,
    born: Instant,
    idle_since: Instant,
    requests: u32,
}

/// What sends a request.
pub(super) enum Sender {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

/// A connection, or a stream of one, in use; counts the request while it lives.
pub(super) struct Lease {
    pub(super) sender: Sender,
    life: Life,
    count: Count,
}

struct Count {
    pool: Rc<HttpPool>,
    streams: Option<Rc<Cell<u32>>>,
}

/// Runs connection tasks on the worker's own thread.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor
where
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Lowers the flag again, also when the attempt is given up.
struct Connecting<'a>(&'a HttpPool);

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        self.0.is_connecting.set(false);
        self.0.changed.notify_waiters();
    }
}

struct PendingGauge<'a>(&'a Cluster);

impl Drop for PendingGauge<'_> {
    fn drop(&mut self) {
        self.0.stats.upstream_rq_pending_active.dec();
    }
}

impl HttpPool {
    pub(super) fn new(cluster: Arc<Cluster>, host: Arc<Host>, key: &Key) -> Self {
        Self {
            cluster,
            host,
            wanted: key.protocol,
            priority: key.priority,
            sni: key.sni.clone(),
            idle: RefCell::default(),
            shared: RefCell::default(),
            is_connecting: Cell::new(false),
            open: Rc::default(),
            changed: Notify::new(),
        }
    }

    /// A connection: one that is there, else a new one, else the next that comes free.
    pub(super) async fn acquire(self: &Rc<Self>) -> Result<HttpConnection, PoolError> {
        if let Some(connection) = self.reuse() {
            return Ok(connection);
        }
        self.acquire_new().await
    }

    /// As [`Self::acquire`], for a request that waits.
    pub(super) async fn acquire_new(self: &Rc<Self>) -> Result<HttpConnection, PoolError> {
        let stats = &self.cluster.stats;
        stats.upstream_rq_pending_total.inc();
        let Some(_pending) = self.cluster.breakers.pending(self.priority) else {
            stats.upstream_rq_pending_overflow.inc();
            return Err(PoolError::new(PoolErrorKind::Overflow, "overflow"));
        };
        stats.upstream_rq_pending_active.inc();
        let _gauge = PendingGauge(&self.cluster);
        let mut was_full = false;
        loop {
            // Asked to be woken before looking, so that nothing is missed between the two.
            let changed = self.changed.notified();
            let freed = self.cluster.breakers.connection_freed.notified();
            if !(self.wanted == Wanted::Http2 && self.is_connecting.get()) {
                if let Some(room) = self.room() {
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
            .connection(self.priority)
            .or_else(|| (self.open.get() == 0).then(|| breakers.first_connection(self.priority)))
    }

    fn reuse(self: &Rc<Self>) -> Option<HttpConnection> {
        let limits = &self.cluster.config.http;
        {
            let mut shared = self.shared.borrow_mut();
            shared.retain(|connection| !connection.sender.is_closed());
            if let Some(connection) = shared
                .iter_mut()
                .find(|one| one.streams.get() < limits.max_concurrent_streams)
            {
                connection.life.requests += 1;
                let (sender, life, streams) = (
                    connection.sender.clone(),
                    connection.life.clone(),
                    connection.streams.clone(),
                );
                if self.is_used_up(&life) {
                    // It takes no more requests; those under way end on their own senders.
                    shared.retain(|one| !Rc::ptr_eq(&one.streams, &streams));
                }
                drop(shared);
                return Some(self.lend(Sender::Http2(sender), life, Some(streams), true));
            }
        }
        let mut idle = self.idle.borrow_mut();
        idle.retain(|connection| !connection.sender.is_closed());
        let index = idle
            .iter()
            .rposition(|connection| connection.sender.is_ready())?;
        let mut connection = idle.swap_remove(index);
        drop(idle);
        connection.life.requests += 1;
        Some(self.lend(
            Sender::Http1(connection.sender),
            connection.life,
            None,
            true,
        ))
    }

    fn is_used_up(&self, life: &Life) -> bool {
        let limits = &self.cluster.config.http;
        let is_spent = limits.max_requests_per_connection > 0
            && life.requests >= limits.max_requests_per_connection;
        if is_spent {
            self.cluster.stats.upstream_cx_max_requests.inc();
        }
        let is_old = limits
            .max_connection_duration
            .is_some_and(|most| life.born.elapsed() >= most);
        is_spent || is_old || self.host.is_removed()
    }

    async fn connect(self: &Rc<Self>, room: Guard) -> Result<HttpConnection, PoolError> {
        let _connecting = (self.wanted == Wanted::Http2).then(|| {
            self.is_connecting.set(true);
            Connecting(self)
        });
        let stream = connect(
            &self.cluster,
            &self.host,
            room,
            self.wanted.alpn(),
            self.sni.as_deref(),
        )
        .await?;
        let is_http2 = match self.wanted {
            Wanted::Http1 => false,
            Wanted::Http2 => true,
            Wanted::Auto => stream.alpn() == Some(b"h2"),
        };
        let now = Instant::now();
        let life = Life {
            local_address: stream.local_address(),
            born: now,
            idle_since: now,
            requests: 1,
        };
        let failed =
            |error: hyper::Error| PoolError::new(PoolErrorKind::ConnectFailure, error.to_string());
        let limits = &self.cluster.config.http;
        self.open.set(self.open.get() + 1);
        let closed = Closed(self.open.clone(), Rc::downgrade(self));
        if !is_http2 {
            let (sender, connection) = http1::Builder::new()
                .max_headers(limits.max_headers_count as usize)
                .handshake(TokioIo::new(stream))
                .await
                .map_err(failed)?;
            self.cluster.stats.upstream_cx_http1_total.inc();
            tokio::task::spawn_local(async move {
                let _closed = closed;
                if let Err(error) = connection.with_upgrades().await {
                    tracing::debug!(target: "pool", %error, "upstream connection ended");
                }
            });
            return Ok(self.lend(Sender::Http1(sender), life, None, false));
        }
        let mut builder = http2::Builder::new(LocalExecutor);
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(limits.initial_stream_window)
            .initial_connection_window_size(limits.initial_connection_window);
        if let Some((interval, timeout)) = limits.keepalive {
            builder
                .keep_alive_interval(interval)
                .keep_alive_timeout(timeout);
        }
        let (sender, connection) = builder
            .handshake(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        self.cluster.stats.upstream_cx_http2_total.inc();
        tokio::task::spawn_local(async move {
            let _closed = closed;
            if let Err(error) = connection.await {
                tracing::debug!(target: "pool", %error, "upstream connection ended");
            }
        });
        let streams = Rc::new(Cell::new(0));
        if !self.is_used_up(&life) {
            self.shared.borrow_mut().push(Http2 {
                sender: sender.clone(),
                streams: streams.clone(),
                life: life.clone(),
            });
        }
        Ok(self.lend(Sender::Http2(sender), life, Some(streams), false))
    }

    fn lend(
        self: &Rc<Self>,
        sender: Sender,
        life: Life,
        streams: Option<Rc<Cell<u32>>>,
        is_reused: bool,
    ) -> HttpConnection {
        if let Some(streams) = &streams {
            streams.set(streams.get() + 1);
        }
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
        let local_address = life.local_address;
        let lease = Lease {
            sender,
            life,
            count: Count {
                pool: self.clone(),
                streams,
            },
        };
        HttpConnection {
            local_address,
            protocol,
            pool: self.clone(),
            lease,
            is_reused,
        }
    }

    /// Closes what has been idle too long; `false` when the pool itself can go.
    pub(super) fn sweep(&self) -> bool {
        let timeout = self.cluster.config.http.idle_timeout;
        let is_removed = self.host.is_removed();
        let mut expired = 0;
        let mut is_kept = |is_closed: bool, is_idle: bool, life: &Life| {
            if is_closed || (is_removed && is_idle) {
                return false;
            }
            let is_expired = is_idle && !timeout.is_zero() && life.idle_since.elapsed() >= timeout;
            expired += u64::from(is_expired);
            !is_expired
        };
        let mut idle = self.idle.borrow_mut();
        idle.retain(|one| is_kept(one.sender.is_closed(), true, &one.life));
        let mut shared = self.shared.borrow_mut();
        shared.retain(|one| is_kept(one.sender.is_closed(), one.streams.get() == 0, &one.life));
        self.cluster.stats.upstream_cx_idle_timeout.add(expired);
        !(idle.is_empty() && shared.is_empty() && self.open.get() == 0)
    }
}

/// Counts an open connection of the pool until its task ends.
struct Closed(Rc<Cell<u32>>, Weak<HttpPool>);

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
        if let Some(pool) = self.1.upgrade() {
            pool.changed.notify_one();
        }
    }
}

impl Lease {
    /// The response has been read to its end: the connection may serve another request.
    pub(super) fn finish(self) {
        let Self {
            sender,
            mut life,
            count,
        } = self;
        let Sender::Http1(sender) = sender else {
            return;
        };
        let pool = &count.pool;
        if pool.is_used_up(&life) {
            return;
        }
        life.idle_since = Instant::now();
        pool.idle.borrow_mut().push(Http1 { sender, life });
        pool.changed.notify_one();
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.pool.cluster.stats.upstream_rq_active.dec();
        self.pool.host.stats.rq_active.dec();
        if let Some(streams) = &self.streams {
            streams.set(streams.get().saturating_sub(1));
            let mut shared = self.pool.shared.borrow_mut();
            if let Some(one) = shared
                .iter_mut()
                .find(|one| Rc::ptr_eq(&one.streams, streams))
            {
                one.life.idle_since = Instant::now();
            }
            self.pool.changed.notify_one();
        }
    }
}
