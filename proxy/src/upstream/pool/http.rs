//! The HTTP pool of one host: idle HTTP/1.1 connections, shared HTTP/2 connections, and those who wait for one.

use super::{
    HttpConnection, Key, PoolError, PoolErrorKind, Shed,
    establish::AT_A_TIME,
    http2,
    lease::{Count, Http2, Idle, Lease, Life, Open, Sender},
    refuse_if,
    tally::{Capacity, Tally},
};
use crate::{
    filter_state::FilterState,
    http::h1::HeadLimits,
    upstream::{Cluster, Host, circuit_breaker::Guard},
};
use ::http::Version;
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};
use tokio::sync::Notify;

/// The head of a response may not be longer. (Envoy bounds the number of its fields only; something must bound it.)
pub(super) const MAX_RESPONSE_HEAD: usize = 1 << 20;

/// Connections to one host.
pub(super) struct HttpPool {
    pub(super) cluster: Arc<Cluster>,
    pub(super) host: Arc<Host>,
    pub(super) key: Key,
    /// What its connections have of the request that it was made for.
    pub(super) filter_state: FilterState,
    pub(super) idle: RefCell<Vec<Idle>>,
    pub(super) shared: RefCell<Vec<Http2>>,
    /// Connections that are being made.
    pub(super) connecting: Cell<u32>,
    /// Those among them whose making has not begun to run.
    pub(super) begun: Cell<u32>,
    /// Connections that are open.
    pub(super) open: Cell<u32>,
    /// What they carry.
    pub(super) tally: Rc<Tally>,
    /// How often a connection failed that was made ahead, and why.
    failed: RefCell<(u64, Option<PoolError>)>,
    pub(super) changed: Notify,
    pub(super) shed: Option<Shed>,
    _room: Guard,
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
        worker: &Rc<Tally>,
    ) -> Self {
        Self {
            cluster,
            host,
            key,
            filter_state,
            idle: RefCell::default(),
            shared: RefCell::default(),
            connecting: Cell::new(0),
            begun: Cell::new(0),
            open: Cell::new(0),
            tally: Tally::part_of(worker),
            failed: RefCell::default(),
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
        let ratio = self.cluster.config.preconnect.by_host;
        if ratio > 1.0 {
            (0..AT_A_TIME).all(|_| self.look_ahead(ratio, 0));
        }
        Ok(connection)
    }

    /// A connection that was made ahead has failed: so does who counted on it, as in Envoy.
    pub(super) fn fail(&self, error: PoolError) {
        let mut failed = self.failed.borrow_mut();
        *failed = (failed.0 + 1, Some(error));
        self.changed.notify_waiters();
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
        let _waiting = self.tally.wait();
        let failures = self.failed.borrow().0;
        let mut was_full = false;
        loop {
            // Asked to be woken before looking, so that nothing is missed between the two.
            let changed = self.changed.notified();
            let freed = self.cluster.breakers.connection_freed.notified();
            // Others may wait for a connection of HTTP/2, and anybody for what is made ahead.
            if self.tally.is_short() {
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
            if let (times, Some(error)) = &*self.failed.borrow()
                && *times > failures
            {
                return Err(error.clone());
            }
        }
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
                let capacity = connection.capacity.clone();
                if self.is_used_up(&life) {
                    // It takes no more requests; those under way end on their own senders.
                    shared.retain(|one| !Arc::ptr_eq(&one.streams, &streams));
                }
                drop(shared);
                let sender = Sender::Http2(sender);
                return Some(self.lend(sender, life, &capacity, Some(streams), None));
            }
        }
        loop {
            // The one used last is the likeliest to live.
            let mut idle = self.idle.borrow_mut().pop()?;
            if idle.connection.is_usable() && !self.is_too_old(&idle.life) {
                idle.life.requests += 1;
                return Some(self.lend_http1(idle));
            }
        }
    }

    pub(super) fn is_used_up(&self, life: &Life) -> bool {
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

    pub(super) fn lend_http1(self: &Rc<Self>, idle: Idle) -> HttpConnection {
        let capacity = idle.open.capacity.clone();
        let sender = Sender::Http1(idle.connection);
        self.lend(sender, idle.life, &capacity, None, Some(idle.open))
    }

    pub(super) fn lend(
        self: &Rc<Self>,
        sender: Sender,
        life: Life,
        capacity: &Rc<Capacity>,
        streams: Option<Arc<AtomicU32>>,
        open: Option<Open>,
    ) -> HttpConnection {
        if let Some(streams) = &streams {
            streams.fetch_add(1, Relaxed);
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
        let facts = life.facts.clone();
        let lease = Lease {
            open,
            life,
            count: Count {
                pool: self.clone(),
                streams,
                _carried: capacity.carry(),
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
