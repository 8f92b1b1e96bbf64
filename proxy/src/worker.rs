//! One worker: a thread with a single-threaded runtime, its own pools and its own random state.
//!
//! Nothing here is shared with other workers but what is immutable or counted.

use crate::{
    http::{stream::Accounts, timer::TimerPool},
    network::{CopySpace, RedisClients, Tunnels},
    overload::Action,
    server::ServerContext,
    upstream::{ClusterManager, Pools},
};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use std::{cell::RefCell, rc::Rc, sync::Arc};

/// What every connection on this worker shares; passed as `Rc<Worker>`.
pub(crate) struct Worker {
    /// From 0.
    pub(crate) index: usize,
    /// The process's parts that all workers share.
    pub(crate) server: Arc<ServerContext>,
    /// Clusters by name.
    pub(crate) clusters: Arc<ClusterManager>,
    /// Upstream connections of this worker.
    pub(crate) pools: Pools,
    /// Timers that requests use one after the other.
    pub(crate) timers: Rc<TimerPool>,
    /// What TCP connections copy with.
    pub(crate) copying: CopySpace,
    /// Connections that TCP tunnels share.
    pub(crate) tunnels: Tunnels,
    /// Connections to Redis servers.
    pub(crate) redis: RedisClients,
    /// What its streams hold.
    pub(crate) accounts: Accounts,
    random: RefCell<SmallRng>,
}

impl Worker {
    /// A worker's state; `index` counts from 0.
    pub(crate) fn new(index: usize, server: Arc<ServerContext>) -> Self {
        let clusters = server.clusters.clone();
        let random = RefCell::new(SmallRng::from_rng(&mut rand::rng()));
        let shed = server.overload.has(Action::ShedPool).then(|| {
            let server = server.clone();
            Rc::new(move || server.overload.is_active(Action::ShedPool, rand::random)) as Rc<_>
        });
        let timers = Rc::new(TimerPool::new(server.overload.reduction()));
        let accounts = Accounts::new(server.overload.stream_classes());
        Self {
            index,
            accounts,
            server,
            clusters,
            pools: Pools::new(shed),
            timers,
            copying: CopySpace::default(),
            tunnels: Tunnels::default(),
            redis: RedisClients::default(),
            random,
        }
    }

    /// Whether a load shed point (or another action) concerns this piece of work.
    pub(crate) fn sheds(&self, action: Action) -> bool {
        self.server.overload.is_active(action, || self.random())
    }

    /// A random number.
    pub(crate) fn random(&self) -> u64 {
        self.random.borrow_mut().random()
    }
}
