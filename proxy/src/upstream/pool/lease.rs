//! Connections of an HTTP pool: idle, shared, lent; each counted while it is open, and each stream while it lasts.

use super::{
    http::HttpPool,
    http1::Http1,
    tally::{Capacity, Carried},
};
use crate::{http::h2::Requests, stream_info::UpstreamConnection};
use std::{
    rc::{Rc, Weak},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};
use tokio::time::Instant;

/// An HTTP/1 connection that waits for a request.
pub(super) struct Idle {
    pub(super) connection: Box<Http1>,
    pub(super) open: Open,
    pub(super) life: Life,
}

/// An HTTP/2 connection that takes more streams.
pub(super) struct Http2 {
    pub(super) sender: Requests,
    /// How many it carries.
    pub(super) streams: Arc<AtomicU32>,
    pub(super) capacity: Rc<Capacity>,
    pub(super) life: Life,
}

/// What is known of a connection.
#[derive(Clone)]
pub(super) struct Life {
    pub(super) facts: Rc<UpstreamConnection>,
    pub(super) born: Instant,
    pub(super) idle_since: Instant,
    pub(super) requests: u32,
}

/// What sends a request.
pub(super) enum Sender {
    Http1(Box<Http1>),
    Http2(Requests),
}

/// A connection, or a stream of one, in use; counts the request while it lives.
pub(super) struct Lease {
    /// Of an HTTP/1 connection, which the lease has to itself.
    pub(super) open: Option<Open>,
    pub(super) life: Life,
    pub(super) count: Count,
}

/// Counts a request.
pub(super) struct Count {
    pub(super) pool: Rc<HttpPool>,
    pub(super) streams: Option<Arc<AtomicU32>>,
    pub(super) _carried: Carried,
}

/// Counts an open connection of the pool until it is closed.
pub(super) struct Open {
    pub(super) capacity: Rc<Capacity>,
    pool: Weak<HttpPool>,
}

impl Open {
    pub(super) fn new(pool: &Rc<HttpPool>, capacity: Rc<Capacity>) -> Self {
        pool.open.set(pool.open.get() + 1);
        Self {
            capacity,
            pool: Rc::downgrade(pool),
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.capacity.retire();
        if let Some(pool) = self.pool.upgrade() {
            pool.open.set(pool.open.get().saturating_sub(1));
            pool.changed.notify_one();
        }
    }
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.capacity.retire();
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
