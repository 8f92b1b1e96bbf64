//! How an HTTP pool gets its connections: for who waits, or ahead of who is to come.

use super::{
    HttpConnection, PoolError, Wanted,
    http::HttpPool,
    http1::Http1,
    http2,
    lease::{Http2, Idle, Life, Open, Sender},
    tally::Capacity,
};
use crate::{
    http::h2::Connection,
    upstream::{Aim, Load, circuit_breaker::Guard, connect},
};
use std::{
    rc::Rc,
    sync::{Arc, atomic::AtomicU32},
};
use tokio::time::Instant;

/// So many connections are begun at a time, as in Envoy.
pub(super) const AT_A_TIME: usize = 3;

/// A connection that is being made, also when the attempt is given up.
struct Connecting(Rc<HttpPool>);

/// A connection that was made.
enum Made {
    Http1(Idle),
    Http2(Http2),
}

impl Connecting {
    fn begin(pool: &Rc<HttpPool>) -> Self {
        pool.connecting.set(pool.connecting.get() + 1);
        Self(pool.clone())
    }
}

impl Drop for Connecting {
    fn drop(&mut self) {
        self.0.connecting.set(self.0.connecting.get() - 1);
        self.0.changed.notify_waiters();
    }
}

impl HttpPool {
    /// Room for a connection; of a pool without any also beyond the limit, as in Envoy, so that nobody waits for ever.
    pub(super) fn room(&self) -> Option<Guard> {
        self.usual_room().or_else(|| self.first_room())
    }

    fn usual_room(&self) -> Option<Guard> {
        // Those begun a moment ago are not among the host's yet.
        let has = self.host.stats.cx_active.value() + u64::from(self.begun.get());
        self.cluster.breakers.connection(self.key.priority, has)
    }

    fn first_room(&self) -> Option<Guard> {
        let has_none = self.open.get() + self.connecting.get() == 0;
        has_none.then(|| self.cluster.breakers.first_connection(self.key.priority))
    }

    /// Makes a connection for who waits.
    pub(super) async fn connect(self: &Rc<Self>, room: Guard) -> Result<HttpConnection, PoolError> {
        let made = self.make(room, self.capacity());
        Ok(match made.await? {
            Made::Http1(mut idle) => {
                idle.life.requests = 1;
                self.lend_http1(idle)
            }
            Made::Http2(mut shared) => {
                shared.life.requests = 1;
                let sender = Sender::Http2(shared.sender.clone());
                let (streams, capacity) = (shared.streams.clone(), shared.capacity.clone());
                let life = shared.life.clone();
                // Carried before the connection can be found to be used up, and no longer be shared.
                let lent = self.lend(sender, life, &capacity, Some(streams), None);
                if !self.is_used_up(&shared.life) {
                    self.shared.borrow_mut().push(shared);
                }
                lent
            }
        })
    }

    /// Begins a connection that nobody waits for, if there is room for less than `ratio` times the streams that there are or
    /// are `coming`; whether another one may be asked for.
    pub(super) fn look_ahead(self: &Rc<Self>, ratio: f64, coming: u8) -> bool {
        let is_wanted = if self.host.is_healthy() {
            self.tally.is_below(ratio, coming)
        } else {
            self.tally.is_short()
        };
        if !is_wanted || self.shed.as_ref().is_some_and(|shed| shed()) {
            return false;
        }
        let usual = self.usual_room();
        let goes_on = usual.is_some();
        if !goes_on {
            self.cluster.stats.upstream_cx_overflow.inc();
        }
        let Some(room) = usual.or_else(|| self.first_room()) else {
            return false;
        };
        let (pool, capacity) = (self.clone(), self.capacity());
        let connecting = Connecting::begin(self);
        self.begun.set(self.begun.get() + 1);
        tokio::task::spawn_local(async move {
            pool.begun.set(pool.begun.get() - 1);
            match pool.make(room, capacity).await {
                Ok(Made::Http1(idle)) => pool.idle.borrow_mut().push(idle),
                Ok(Made::Http2(shared)) => pool.shared.borrow_mut().push(shared),
                Err(error) => pool.fail(error),
            }
            pool.changed.notify_one();
            drop(connecting);
        });
        goes_on
    }

    /// What a connection that is begun now will carry, as far as that is known.
    fn capacity(&self) -> Rc<Capacity> {
        let limits = &self.cluster.config.http;
        let limit = match self.key.protocol {
            Wanted::Http2 => limits.max_concurrent_streams,
            Wanted::Http1 | Wanted::Auto => 1,
        };
        Capacity::new(&self.tally, limit, limits.max_requests_per_connection)
    }

    async fn make(self: &Rc<Self>, room: Guard, capacity: Rc<Capacity>) -> Result<Made, PoolError> {
        let _connecting = Connecting::begin(self);
        let aim = Aim {
            sni: self.key.sni.as_deref(),
            source: self.key.source,
            client: self.key.client,
        };
        let alpn = self.key.protocol.alpn();
        let mut stream = connect(&self.cluster, &self.host, room, alpn, aim).await?;
        let now = Instant::now();
        let life = Life {
            facts: Rc::new(stream.facts(self.filter_state.clone())),
            born: now,
            idle_since: now,
            requests: 0,
        };
        let is_http2 = match self.key.protocol {
            Wanted::Http1 => false,
            Wanted::Http2 => true,
            Wanted::Auto => stream.alpn() == Some(b"h2"),
        };
        let open = Open::new(self, capacity.clone());
        if !is_http2 {
            self.cluster.codecs.http1(&self.cluster.scope);
            self.cluster.stats.upstream_cx_http1_total.inc();
            return Ok(Made::Http1(Idle {
                connection: Box::new(Http1::new(stream)),
                open,
                life,
            }));
        }
        let limits = &self.cluster.config.http;
        let stats = self.cluster.codecs.http2(&self.cluster.scope).clone();
        let streams = Arc::new(AtomicU32::new(0));
        stream.set_load(Load::Streams(streams.clone()));
        let (connection, sender) = Connection::client(stream, http2::options(limits), stats);
        self.cluster.stats.upstream_cx_http2_total.inc();
        capacity.set_limit(limits.max_concurrent_streams);
        let keepalive = limits.keepalive;
        tokio::task::spawn_local(async move {
            let _open = open;
            if let Err(error) = connection.run(keepalive).await {
                tracing::debug!(target: "pool", %error, "upstream connection ended");
            }
        });
        Ok(Made::Http2(Http2 {
            sender,
            streams,
            capacity,
            life,
        }))
    }
}
