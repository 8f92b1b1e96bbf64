//! Dynamic forward proxy: hosts made of the names that requests ask for, resolved when they are first asked for, refreshed while
//! they are used and forgotten afterwards.
#![allow(
    deprecated,
    reason = "control planes still send the fields that Envoy has deprecated"
)]

use super::{
    Cluster, Discovery, Host, HostAddress, LoadBalancerContext,
    cluster::NoHost,
    dns::{DnsFamily, DnsOptions, Found, Resolver, failure_refresh},
    host::{HealthCheckTarget, HostParts},
};
use crate::{
    invalid::{At as _, Invalid},
    stat_group,
    stats::Scope,
    wire::duration_or,
};
use parking_lot::{Mutex, RwLock};
use proto::envoy::extensions::{
    clusters::{
        common::dns::v3::DnsLookupFamily as Family,
        dynamic_forward_proxy::v3::{
            ClusterConfig, cluster_config::ClusterImplementationSpecifier,
        },
    },
    common::dynamic_forward_proxy::v3::DnsCacheConfig as Wire,
};
use proto_component::{backoff::Backoff, task};
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// Lookups at once, unless the configuration says otherwise.
const MOST_PENDING: usize = 1024;

stat_group! {
    /// `dns_cache.<name>.…`
    pub(crate) struct DnsCacheStats {
        cache_load: Counter, dns_query_attempt: Counter, dns_query_failure: Counter, dns_query_success: Counter,
        dns_query_timeout: Counter, dns_rq_pending_overflow: Counter, host_added: Counter, host_address_changed: Counter,
        host_overflow: Counter, host_removed: Counter, num_hosts: Gauge,
    }
}

/// A checked cache configuration.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DnsCacheConfig {
    /// Its name, which a filter and a cluster must agree on.
    pub(crate) name: String,
    options: DnsOptions,
    /// The shortest time between two questions.
    least: Duration,
    host_ttl: Duration,
    max_hosts: usize,
    query_timeout: Duration,
    max_pending: usize,
    preresolved: Vec<(String, u16)>,
    refreshes_after_failure: bool,
}

/// Names and their hosts.
pub(super) struct DnsCache {
    config: Arc<DnsCacheConfig>,
    names: RwLock<HashMap<String, Arc<Name>>>,
    pending: AtomicUsize,
    stats: Arc<DnsCacheStats>,
}

struct Name {
    host: String,
    port: u16,
    used: Mutex<Instant>,
    /// `None` until the first answer, then the host of the newest good one.
    state: watch::Sender<Option<Option<Arc<Host>>>>,
}

/// A wait that counts until it is over, or given up.
struct Pending<'a>(&'a AtomicUsize);

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Why a name has no host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unresolved {
    /// The resolver has no address.
    Failed,
    /// There are too many names, or too many lookups.
    Overflow,
}

impl Name {
    /// The last good answer stays; if there was none, those who wait for it have waited long enough.
    fn keep_host(&self) {
        self.state.send_if_modified(|state| {
            let is_first = state.is_none();
            state.get_or_insert(None);
            is_first
        });
    }
}

#[allow(deprecated, reason = "control planes still send the older fields")]
impl TryFrom<&Wire> for DnsCacheConfig {
    type Error = Invalid;

    fn try_from(wire: &Wire) -> Result<Self, Invalid> {
        if wire.name.is_empty() {
            return Err(Invalid::new("it is needed").at("name"));
        }
        if wire.key_value_config.is_some() {
            return Err(Invalid::new("not supported").at("key_value_config"));
        }
        let seconds = Duration::from_secs;
        let refresh = duration_or(
            wire.dns_refresh_rate.as_ref(),
            seconds(60),
            "dns_refresh_rate",
        )?;
        let least = duration_or(
            wire.dns_min_refresh_rate.as_ref(),
            seconds(5),
            "dns_min_refresh_rate",
        )?;
        let failure = failure_refresh(wire.dns_failure_refresh_rate.as_ref(), refresh)?;
        let family = match Family::try_from(wire.dns_lookup_family) {
            Ok(Family::V4Only) => DnsFamily::V4Only,
            Ok(Family::V6Only) => DnsFamily::V6Only,
            Ok(Family::V4Preferred) => DnsFamily::V4Preferred,
            Ok(Family::All) => DnsFamily::All,
            _ => DnsFamily::Auto,
        };
        let preresolved = wire.preresolve_hostnames.iter().map(|address| {
            use proto::envoy::config::core::v3::socket_address::PortSpecifier;
            match address.port_specifier {
                Some(PortSpecifier::PortValue(port)) => u16::try_from(port)
                    .map(|port| (address.address.clone(), port))
                    .map_err(|_| Invalid::new(format!("{port} is not a port"))),
                _ => Err(Invalid::new("a port is needed")),
            }
        });
        Ok(Self {
            name: wire.name.clone(),
            options: DnsOptions {
                refresh: refresh.max(least),
                failure_refresh: failure,
                family,
                jitter: Duration::ZERO,
                is_awaited: true,
                respects_ttl: true,
                resolver: Resolver::of(
                    wire.typed_dns_resolver_config.as_ref(),
                    wire.dns_resolution_config.as_ref(),
                    (&[], wire.use_tcp_for_dns_lookups),
                )?,
            },
            least,
            host_ttl: duration_or(wire.host_ttl.as_ref(), seconds(300), "host_ttl")?,
            max_hosts: wire.max_hosts.unwrap_or(1024) as usize,
            query_timeout: duration_or(
                wire.dns_query_timeout.as_ref(),
                seconds(5),
                "dns_query_timeout",
            )?,
            max_pending: wire
                .dns_cache_circuit_breaker
                .as_ref()
                .and_then(|breaker| breaker.max_pending_requests)
                .map_or(MOST_PENDING, |most| most as usize),
            preresolved: preresolved
                .collect::<Result<_, _>>()
                .at("preresolve_hostnames")?,
            refreshes_after_failure: !wire.disable_dns_refresh_on_failure,
        })
    }
}

impl DnsCacheConfig {
    /// How long an answer counts: never so long that a name which nobody uses would stay.
    fn pause(&self, ttl: Duration) -> Duration {
        ttl.min(self.host_ttl).max(self.least)
    }

    /// Of a cluster; whether it may go without checking names in certificates comes with it.
    pub(super) fn of_cluster(any: &prost_types::Any) -> Result<(Self, bool), Invalid> {
        let wire: ClusterConfig = proto::any::unpack(any)?;
        if wire.allow_coalesced_connections {
            return Err(Invalid::unsupported("allow_coalesced_connections"));
        }
        match &wire.cluster_implementation_specifier {
            Some(ClusterImplementationSpecifier::DnsCacheConfig(cache)) => {
                let config = Self::try_from(cache).at("dns_cache_config")?;
                Ok((config, wire.allow_insecure_cluster_options))
            }
            Some(ClusterImplementationSpecifier::SubClustersConfig(_)) => {
                Err(Invalid::unsupported("sub_clusters_config"))
            }
            None => Err(Invalid::new("it is needed").at("dns_cache_config")),
        }
    }
}

impl DnsCache {
    /// Nothing resolved yet.
    pub(super) fn new(config: Arc<DnsCacheConfig>, root: &Scope) -> Self {
        let stats = root.scope("dns_cache").scope(&config.name).group();
        Self {
            config,
            stats,
            names: RwLock::default(),
            pending: AtomicUsize::new(0),
        }
    }

    fn known(&self, key: &str) -> Option<Arc<Name>> {
        let name = self.names.read().get(key).cloned()?;
        *name.used.lock() = Instant::now();
        Some(name)
    }

    pub(super) fn hosts(&self) -> Vec<Arc<Host>> {
        let names = self.names.read();
        let hosts = names
            .values()
            .filter_map(|name| name.state.borrow().clone());
        hosts.flatten().collect()
    }
}

impl Cluster {
    /// The cache's key of a request's host; the port is that of the transport if it has none.
    fn dns_key(&self, authority: &str) -> (String, String, u16) {
        let default = if self.config.transport.is_secure() {
            443
        } else {
            80
        };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !host.ends_with(':') || host.ends_with(']') => {
                match port.parse() {
                    Ok(port) => (host, port),
                    Err(_) => (authority, default),
                }
            }
            _ => (authority, default),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        (format!("{host}:{port}"), host.to_owned(), port)
    }

    /// The host of the request's name, if it has been resolved.
    pub(super) fn choose_resolved(
        &self,
        context: &LoadBalancerContext<'_>,
    ) -> Result<Arc<Host>, NoHost> {
        let (Some(cache), Some(authority)) = (&self.dns_cache, context.authority) else {
            return Err(NoHost::NoDestination);
        };
        let (key, ..) = self.dns_key(authority);
        let name = cache.known(&key).ok_or(NoHost::NoHealthyHost)?;
        let host = name.state.borrow().clone().flatten();
        host.ok_or(NoHost::NoHealthyHost)
    }

    /// Whether a request for `authority` need not wait.
    pub(crate) fn is_resolved(&self, authority: &str) -> bool {
        let Some(cache) = &self.dns_cache else {
            return true;
        };
        let (key, ..) = self.dns_key(authority);
        let name = cache.known(&key);
        name.is_some_and(|name| matches!(&*name.state.borrow(), Some(Some(_))))
    }

    /// Waits until `authority` is resolved, or cannot be.
    pub(crate) async fn resolve(self: Arc<Self>, authority: &str) -> Result<(), Unresolved> {
        let Some(cache) = &self.dns_cache else {
            return Ok(());
        };
        let before = cache.pending.fetch_add(1, Relaxed);
        let _pending = Pending(&cache.pending);
        if before >= cache.config.max_pending {
            cache.stats.dns_rq_pending_overflow.inc();
            return Err(Unresolved::Overflow);
        }
        self.wait_for(authority).await
    }

    async fn wait_for(self: &Arc<Self>, authority: &str) -> Result<(), Unresolved> {
        let (key, host, port) = self.dns_key(authority);
        let name = self.subscribe(&key, &host, port)?;
        let mut state = name.state.subscribe();
        let found = match state.wait_for(Option::is_some).await {
            Ok(found) => matches!(&*found, Some(Some(_))),
            Err(_) => false,
        };
        found.then_some(()).ok_or(Unresolved::Failed)
    }

    /// The entry of a name, made and followed from now on if it is new.
    fn subscribe(
        self: &Arc<Self>,
        key: &str,
        host: &str,
        port: u16,
    ) -> Result<Arc<Name>, Unresolved> {
        let Some(cache) = &self.dns_cache else {
            return Err(Unresolved::Failed);
        };
        if let Some(known) = cache.known(key) {
            return Ok(known);
        }
        let mut names = cache.names.write();
        if let Some(known) = names.get(key) {
            return Ok(known.clone());
        }
        if names.len() >= cache.config.max_hosts {
            cache.stats.host_overflow.inc();
            return Err(Unresolved::Overflow);
        }
        let name = Arc::new(Name {
            host: host.to_owned(),
            port,
            used: Mutex::new(Instant::now()),
            state: watch::channel(None).0,
        });
        names.insert(key.to_owned(), name.clone());
        cache.stats.host_added.inc();
        cache.stats.num_hosts.set(names.len() as u64);
        task::spawn(
            "dns-name",
            follow(self.clone(), key.to_owned(), name.clone()),
        );
        Ok(name)
    }

    fn resolved_host(&self, name: &Name, addresses: Vec<SocketAddr>) -> Option<Arc<Host>> {
        let mut addresses = addresses.into_iter();
        Some(Host::new(HostParts {
            address: HostAddress::Socket(addresses.next()?),
            hostname: name.host.as_str().into(),
            more_addresses: addresses.collect(),
            health_check: HealthCheckTarget::default(),
            locality: Arc::default(),
            metadata: None,
            transport: self.config.transport.of_endpoint(None),
            weight: 1,
            health: 0,
        }))
    }
}

/// Resolves a name again and again until nobody has used it for a while, or the cluster is gone.
async fn follow(cluster: Arc<Cluster>, key: String, name: Arc<Name>) {
    let Some(cache) = &cluster.dns_cache else {
        return;
    };
    let config = cache.config.clone();
    let resolver = cluster.resolver(config.options.resolver.as_ref());
    let mut backoff = Backoff::new(
        config.options.failure_refresh.0,
        config.options.failure_refresh.1,
    );
    loop {
        let answer = look_up(&cluster, cache, &resolver, &name).await;
        let is_unresolved = !matches!(&*name.state.borrow(), Some(Some(_)));
        if is_unresolved && !config.refreshes_after_failure {
            break;
        }
        let pause = match answer {
            Ok(ttl) => {
                backoff.reset();
                ttl.map_or(config.options.refresh, |ttl| config.pause(ttl))
            }
            Err(Unresolved::Failed | Unresolved::Overflow) => backoff.next_delay(),
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = cluster.closed.cancelled() => break,
        }
        if name.used.lock().elapsed() >= config.host_ttl {
            break;
        }
    }
    let mut names = cache.names.write();
    names.remove(&key);
    cache.stats.host_removed.inc();
    cache.stats.num_hosts.set(names.len() as u64);
    drop(names);
    if let Some(Some(host)) = &*name.state.borrow() {
        host.set_removed(true);
    }
}

/// Asks once. How long the answer holds, if that is known.
async fn look_up(
    cluster: &Cluster,
    cache: &DnsCache,
    resolver: &Resolver,
    name: &Name,
) -> Result<Option<Duration>, Unresolved> {
    let config = &cache.config;
    cache.stats.dns_query_attempt.inc();
    let lookup = resolver.resolve(&name.host, name.port, config.options.family);
    let Found {
        addresses: found,
        ttl,
    } = match tokio::time::timeout(config.query_timeout, lookup).await {
        Ok(Ok(found)) => {
            cache.stats.dns_query_success.inc();
            found
        }
        outcome => {
            if outcome.is_err() {
                cache.stats.dns_query_timeout.inc();
            }
            cache.stats.dns_query_failure.inc();
            name.keep_host();
            return Err(Unresolved::Failed);
        }
    };
    if found.is_empty() {
        // QUIRK: a name that does not exist is an answer, but no reason to forget the address that it had.
        name.keep_host();
        return Ok(ttl);
    }
    let before = name.state.borrow().clone().flatten();
    let is_same = before.as_ref().is_some_and(|host| {
        let all = host
            .socket_address()
            .into_iter()
            .chain(host.more_addresses.iter().copied());
        all.eq(found.iter().copied())
    });
    if !is_same {
        if let Some(host) = before {
            cache.stats.host_address_changed.inc();
            host.set_removed(true);
        }
        let host = cluster.resolved_host(name, found);
        name.state.send_replace(Some(host));
    }
    Ok(ttl)
}

/// Resolves the names that are to be known from the start, then says that the cluster is ready.
pub(crate) async fn run_dns_cache(cluster: Arc<Cluster>) {
    let Discovery::DynamicForwardProxy(config) = &cluster.config.discovery else {
        return;
    };
    for (host, port) in &config.preresolved {
        let authority = format!("{host}:{port}");
        if cluster.wait_for(&authority).await.is_err() {
            tracing::warn!(target: "dns", cluster = %cluster.name(), authority, "cannot resolve");
        }
    }
    cluster.set_initialized();
}

#[cfg(test)]
mod tests;
