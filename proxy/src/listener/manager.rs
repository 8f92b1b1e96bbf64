//! The listeners of the process: added, updated in place, removed; the workers follow.

use super::{
    ListenerConfig,
    balance::Balancer,
    socket::{self, BoundSocket},
};
use crate::{
    filter_chain::FilterChain,
    server::ServerContext,
    stat_group,
    stats::Gauge,
    transport::{DownstreamTransport, TlsStats},
    wire::AnyAddress,
};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use proto_component::task;
use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, OnceLock, atomic::AtomicU64},
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

stat_group! {
    /// `listener.<address>.…`
    pub(crate) struct ListenerStats {
        connections_accepted_per_socket_event: Histogram, downstream_cx_active: Gauge, downstream_cx_destroy: Counter,
        downstream_cx_length_ms: Histogram, downstream_cx_overflow: Counter, downstream_cx_overload_reject: Counter,
        downstream_cx_total: Counter, downstream_cx_transport_socket_connect_timeout: Counter,
        downstream_global_cx_overflow: Counter, downstream_listener_filter_error: Counter,
        downstream_listener_filter_remote_close: Counter, downstream_pre_cx_active: Gauge, downstream_pre_cx_timeout: Counter,
        extension_config_missing: Counter, network_extension_config_missing: Counter, no_filter_chain_match: Counter,
    }
}

stat_group! {
    /// `listener.<address>.worker_<index>.…`
    pub(crate) struct WorkerListenerStats { downstream_cx_active: Gauge, downstream_cx_total: Counter }
}

stat_group! {
    /// `listener_manager.…`
    pub(crate) struct ListenerManagerStats {
        listener_added: Counter, listener_create_failure: Counter, listener_create_success: Counter,
        listener_in_place_updated: Counter, listener_modified: Counter, listener_removed: Counter, listener_stopped: Counter,
        total_filter_chains_draining: Gauge, total_listeners_active: Gauge, total_listeners_draining: Gauge,
        total_listeners_warming: Gauge, workers_started: Gauge,
    }
}

/// A listener at work.
pub(crate) struct Listener {
    /// Its name.
    pub(crate) name: Arc<str>,
    /// The configuration in force.
    pub(crate) config: ArcSwap<ListenerConfig>,
    /// Where it really listens (port 0 resolved), the configuration's own address first.
    pub(crate) local_addresses: Vec<AnyAddress>,
    /// What it counts.
    pub(crate) stats: Arc<ListenerStats>,
    /// What each worker counts of it.
    pub(crate) worker_stats: Vec<Arc<WorkerListenerStats>>,
    /// Connections that are open, over all workers.
    pub(crate) open: Arc<AtomicU64>,
    /// The runtime key that limits them.
    pub(crate) limit_key: String,
    /// Spreads connections evenly, where that is asked for.
    pub(super) balancer: Option<Balancer>,
    /// Cancelled when it stops accepting.
    pub(crate) closed: CancellationToken,
    /// By worker.
    sockets: Mutex<Vec<Vec<BoundSocket>>>,
    tls: OnceLock<Arc<TlsStats>>,
}

/// Listeners, frozen.
#[derive(Default)]
pub(crate) struct ListenerMap {
    /// By name.
    pub(crate) by_name: BTreeMap<Arc<str>, Arc<Listener>>,
    by_address: HashMap<SocketAddr, Arc<Listener>>,
}

/// All listeners.
pub(crate) struct Listeners {
    map: ArcSwap<ListenerMap>,
    writer: Mutex<()>,
    changed: watch::Sender<u64>,
    /// What the manager counts.
    pub(crate) stats: Arc<ListenerManagerStats>,
    server: Arc<ServerContext>,
}

/// A listener that could not be put in force.
#[derive(Debug, thiserror::Error)]
#[error("cannot bind '{address}': {source}")]
pub(crate) struct BindError {
    address: String,
    source: std::io::Error,
}

impl Listener {
    /// The sockets of worker `index`, one an address; taken once.
    pub(crate) fn take_sockets(&self, index: usize) -> Vec<BoundSocket> {
        let mut sockets = self.sockets.lock();
        sockets
            .get_mut(index)
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// What its TLS counts; shown from the first use on.
    pub(crate) fn tls_stats(&self) -> &TlsStats {
        self.tls.get_or_init(|| {
            let config = self.config.load();
            TlsStats::new(&config.scope, "server_ssl_socket_factory")
        })
    }

    /// Shows the TLS statistics as soon as a chain terminates TLS.
    fn show_tls(&self) {
        let is_tls =
            |chain: &Arc<FilterChain>| matches!(chain.transport, DownstreamTransport::Tls(_));
        if self.config.load().chains.iter().any(is_tls) {
            self.tls_stats();
        }
    }
}

impl ListenerMap {
    /// The listener for a connection to `address` that is no socket's own: exact address first, then any address with its port.
    pub(crate) fn for_destination(&self, address: SocketAddr) -> Option<&Arc<Listener>> {
        let any: IpAddr = if address.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        self.by_address
            .get(&address)
            .or_else(|| self.by_address.get(&SocketAddr::new(any, address.port())))
            .or_else(|| {
                self.by_address.get(&SocketAddr::new(
                    Ipv6Addr::UNSPECIFIED.into(),
                    address.port(),
                ))
            })
    }

    fn index(by_name: BTreeMap<Arc<str>, Arc<Listener>>) -> Self {
        let by_address = by_name
            .values()
            .flat_map(|listener| {
                let all = listener.local_addresses.iter();
                all.filter_map(|address| match address {
                    AnyAddress::Socket(address) => Some((*address, listener.clone())),
                    AnyAddress::Name(..) | AnyAddress::Pipe(_) => None,
                })
            })
            .collect();
        Self {
            by_name,
            by_address,
        }
    }
}

impl Listeners {
    /// None yet.
    pub(crate) fn new(server: Arc<ServerContext>) -> Self {
        let stats = server.stats.scope("listener_manager").group();
        Self {
            map: ArcSwap::default(),
            writer: Mutex::new(()),
            changed: watch::channel(0).0,
            stats,
            server,
        }
    }

    /// The listeners of the moment.
    pub(crate) fn map(&self) -> Arc<ListenerMap> {
        self.map.load_full()
    }

    /// Told after every change.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Puts a listener in force: a new one, or in place of the one of that name.
    pub(crate) fn set(&self, config: Arc<ListenerConfig>) -> Result<(), BindError> {
        let _writer = self.writer.lock();
        let mut by_name = self.map.load().by_name.clone();
        let before = by_name.get(&config.name).cloned();
        if let Some(before) = &before
            && is_same_socket(&before.config.load(), &config)
        {
            let old = before.config.swap(config);
            let gone = self.drain_chains(&old, Some(&before.config.load()));
            self.count_draining(gone, |stats| &stats.total_filter_chains_draining);
            before.show_tls();
            self.stats.listener_in_place_updated.inc();
            self.changed.send_modify(|version| *version += 1);
            return Ok(());
        }
        // Both hold the port for a moment (SO_REUSEPORT), so that no connection is refused in between.
        let listener = self.open(config)?;
        by_name.insert(listener.name.clone(), listener);
        match &before {
            Some(before) => {
                before.closed.cancel();
                self.stats.listener_modified.inc();
                self.drain_chains(&before.config.load(), None);
                self.count_draining(1, |stats| &stats.total_listeners_draining);
            }
            None => self.stats.listener_added.inc(),
        }
        self.publish(by_name);
        Ok(())
    }

    fn open(&self, config: Arc<ListenerConfig>) -> Result<Arc<Listener>, BindError> {
        let workers = self.server.concurrency;
        let mut sockets: Vec<Vec<BoundSocket>> = (0..workers).map(|_| Vec::new()).collect();
        let mut local_addresses = Vec::new();
        for (address, options) in config.addresses() {
            let bound = if config.is_bound {
                socket::bind(address, options, workers).map_err(|source| {
                    self.stats.listener_create_failure.inc();
                    BindError {
                        address: address.to_string(),
                        source,
                    }
                })?
            } else {
                Vec::new()
            };
            let local = bound.first().and_then(BoundSocket::local_address);
            local_addresses.push(local.map_or_else(|| address.clone(), AnyAddress::Socket));
            for (of_worker, socket) in sockets.iter_mut().zip(bound) {
                of_worker.push(socket);
            }
        }
        self.stats.listener_create_success.add(workers as u64);
        tracing::info!(target: "config", listener = %config.name, addresses = ?local_addresses, bound = config.is_bound, "listener added");
        let listener = Arc::new(Listener {
            name: config.name.clone(),
            stats: config.scope.group(),
            worker_stats: (0..workers)
                .map(|index| config.scope.scope(&format!("worker_{index}")).group())
                .collect(),
            open: Arc::default(),
            limit_key: format!(
                "envoy.resource_limits.listener.{}.connection_limit",
                config.name
            ),
            balancer: config.is_balanced.then(|| Balancer::new(workers)),
            local_addresses,
            closed: CancellationToken::new(),
            sockets: Mutex::new(sockets),
            tls: OnceLock::new(),
            config: ArcSwap::new(config),
        });
        listener.show_tls();
        Ok(listener)
    }

    /// Takes a listener out; its connections are drained.
    pub(crate) fn remove(&self, name: &str) {
        let _writer = self.writer.lock();
        let mut by_name = self.map.load().by_name.clone();
        let Some(gone) = by_name.remove(name) else {
            return;
        };
        gone.closed.cancel();
        self.drain_chains(&gone.config.load(), None);
        self.count_draining(1, |stats| &stats.total_listeners_draining);
        self.stats.listener_removed.inc();
        tracing::info!(target: "config", listener = name, "listener removed");
        self.publish(by_name);
    }

    /// Stops accepting on all listeners (or the inbound ones) and drains their connections within `patience`.
    pub(crate) fn stop(&self, inbound_only: bool, patience: Duration) {
        for listener in self.map().by_name.values() {
            let config = listener.config.load();
            if inbound_only && config.direction != super::Direction::Inbound {
                continue;
            }
            if !listener.closed.is_cancelled() {
                listener.closed.cancel();
                self.stats.listener_stopped.inc();
            }
            for chain in config.chains.iter() {
                chain.start_drain(patience);
            }
        }
    }

    /// Tells connections to find their end within `patience`; new ones are still accepted.
    pub(crate) fn start_graceful_drain(&self, inbound_only: bool, patience: Duration) {
        for listener in self.map().by_name.values() {
            let config = listener.config.load();
            if !inbound_only || config.direction == super::Direction::Inbound {
                config
                    .chains
                    .iter()
                    .for_each(|chain| chain.start_drain(patience));
            }
        }
    }

    /// Drains the connections of `old`'s chains that `new` does not have; returns how many chains these are.
    fn drain_chains(&self, old: &ListenerConfig, new: Option<&ListenerConfig>) -> usize {
        let is_kept = |chain: &Arc<FilterChain>| {
            new.is_some_and(|new| new.chains.iter().any(|other| Arc::ptr_eq(other, chain)))
        };
        let gone = old.chains.iter().filter(|chain| !is_kept(chain));
        gone.inspect(|chain| chain.start_drain(self.server.drain_time))
            .count()
    }

    /// Shows that so many drain, as long as they may take for it.
    fn count_draining(&self, count: usize, gauge: fn(&ListenerManagerStats) -> &Gauge) {
        if count == 0 {
            return;
        }
        let (stats, patience) = (self.stats.clone(), self.server.drain_time);
        gauge(&stats).add(count as u64);
        task::spawn("listener-drain", async move {
            tokio::time::sleep(patience).await;
            gauge(&stats).sub(count as u64);
        });
    }

    fn publish(&self, by_name: BTreeMap<Arc<str>, Arc<Listener>>) {
        self.stats.total_listeners_active.set(by_name.len() as u64);
        self.map.store(Arc::new(ListenerMap::index(by_name)));
        self.changed.send_modify(|version| *version += 1);
    }
}

fn is_same_socket(old: &ListenerConfig, new: &ListenerConfig) -> bool {
    old.addresses().eq(new.addresses())
        && old.is_bound == new.is_bound
        && old.is_balanced == new.is_balanced
}
