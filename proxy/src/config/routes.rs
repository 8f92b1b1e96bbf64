//! Route configurations by name. A slot is made when a listener names it and filled when RDS delivers it.

use super::{Demand, Key, Raw, slots::Slots};
use crate::{
    invalid::{At as _, Invalid},
    router::{DiscoveredHost, HostDiscovery, RouteTable},
    xds::{Source, fetch_timeout},
};
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use prost_types::Any;
use proto::envoy::{
    config::route::v3::{RouteConfiguration, VirtualHost},
    extensions::filters::network::http_connection_manager::v3::Rds,
};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::watch;

/// The newest value of a route configuration.
pub(crate) struct RouteSlot {
    table: ArcSwapOption<RouteTable>,
    source: Mutex<Option<RouteSource>>,
    hosts: Mutex<Hosts>,
    changed: watch::Sender<u64>,
    /// Whether the source of virtual hosts has said anything.
    has_hosts: watch::Sender<bool>,
    fetch_timeout: Duration,
}

/// Virtual hosts that a route configuration has discovered (VHDS).
#[derive(Clone, Default)]
struct Hosts {
    /// The configuration that they are added to; none where that asks for none.
    base: Option<RouteConfiguration>,
    by_name: BTreeMap<Arc<str>, Host>,
}

/// A virtual host as it is held.
#[derive(Clone)]
struct Host {
    version: Arc<str>,
    host: Arc<DiscoveredHost>,
}

/// What an update says of the virtual hosts of a route configuration.
#[derive(Default)]
pub(super) struct HostChanges {
    /// Name, version and message of those that are new or others than before.
    pub(super) changed: Vec<(Arc<str>, Arc<str>, VirtualHost)>,
    /// Names of those that are gone.
    pub(super) removed: Vec<String>,
}

/// What a route configuration came from, for dumps.
#[derive(Clone)]
pub(crate) struct RouteSource {
    /// The message.
    pub(crate) raw: Raw,
    /// Its version.
    pub(crate) version: Arc<str>,
    /// When it came.
    pub(crate) updated: SystemTime,
}

/// Every slot by name.
pub(crate) type RouteSlots = Slots<RouteSlot>;

impl RouteSlot {
    fn new(fetch_timeout: Duration) -> Self {
        Self {
            table: ArcSwapOption::empty(),
            source: Mutex::new(None),
            hosts: Mutex::default(),
            changed: watch::channel(0).0,
            has_hosts: watch::channel(false).0,
            fetch_timeout,
        }
    }

    /// The table in force; `None` before the first delivery.
    pub(crate) fn load(&self) -> Option<Arc<RouteTable>> {
        self.table.load_full()
    }

    /// What it came from.
    pub(crate) fn source(&self) -> Option<RouteSource> {
        self.source.lock().clone()
    }

    /// Puts a new table in force.
    pub(crate) fn store(
        &self,
        wire: RouteConfiguration,
        any: &Any,
        version: &str,
        demand: &Demand,
    ) -> Result<(), Invalid> {
        let mut hosts = self.hosts.lock();
        // What was asked for stays asked for as long as that is the same, however it is written.
        let source_of = |wire: &RouteConfiguration| HostDiscovery::try_new(wire).ok().flatten();
        let (old, new) = (hosts.base.as_ref().and_then(source_of), source_of(&wire));
        let is_same_source = old.zip(new).is_some_and(|(old, new)| old.is_of(&new));
        let mut by_name = BTreeMap::new();
        if is_same_source {
            // They may depend on what is configured for all.
            for (name, Host { version, host }) in &hosts.by_name {
                let host = Arc::new(DiscoveredHost::try_new(host.wire.clone(), &wire)?);
                let version = version.clone();
                by_name.insert(name.clone(), Host { version, host });
            }
        }
        let table = build(&wire, &by_name)?;
        if let Some(discovery) = &table.discovery {
            demand.check(&discovery.source).at("vhds.config_source")?;
        }
        let has_none = table.discovery.is_none();
        self.table.store(Some(Arc::new(table)));
        *hosts = Hosts {
            base: wire.vhds.is_some().then_some(wire),
            by_name,
        };
        drop(hosts);
        if !is_same_source {
            self.has_hosts.send_replace(has_none);
        }
        *self.source.lock() = Some(RouteSource {
            raw: Raw::new(any),
            version: version.into(),
            updated: SystemTime::now(),
        });
        self.changed.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Whether it is what is in force already; the version is noted then.
    pub(crate) fn confirm(&self, any: &Any, version: &str) -> bool {
        let mut source = self.source.lock();
        let Some(source) = source.as_mut().filter(|source| source.raw.is(any)) else {
            return false;
        };
        source.version = version.into();
        true
    }

    /// Where virtual hosts are asked for, if they are.
    pub(crate) fn discovery(&self) -> Option<HostDiscovery> {
        self.table.load().as_ref()?.discovery.clone()
    }

    /// Adds and takes away discovered virtual hosts, all or none.
    pub(super) fn change_hosts(&self, changes: &HostChanges) -> Result<(), Invalid> {
        let mut hosts = self.hosts.lock();
        let Some(base) = &hosts.base else {
            return Ok(());
        };
        let mut by_name = hosts.by_name.clone();
        let count = by_name.len();
        for name in &changes.removed {
            by_name.remove(name.as_str());
        }
        let mut has_changed = by_name.len() != count;
        for (name, version, wire) in &changes.changed {
            let before = by_name.get(name).map(|held| &held.host);
            let host = match before.filter(|before| before.wire == *wire) {
                Some(before) => before.clone(),
                None => {
                    has_changed = true;
                    let host = DiscoveredHost::try_new(wire.clone(), base);
                    Arc::new(host.at(format_args!("'{name}'"))?)
                }
            };
            let version = version.clone();
            by_name.insert(name.clone(), Host { version, host });
        }
        if has_changed {
            self.table.store(Some(Arc::new(build(base, &by_name)?)));
        }
        hosts.by_name = by_name;
        Ok(())
    }

    /// The source of virtual hosts has answered.
    pub(super) fn hosts_answered(&self) {
        self.has_hosts.send_replace(true);
    }

    /// Names and versions of the virtual hosts of a subscription.
    pub(super) fn held_hosts(&self, key: &Key) -> Vec<(String, String)> {
        let discovery = self.discovery();
        if discovery.is_none_or(|discovery| discovery.source.key() != key) {
            return Vec::new();
        }
        let hosts = self.hosts.lock();
        let held = hosts.by_name.iter();
        held.map(|(name, held)| (name.to_string(), held.version.to_string()))
            .collect()
    }

    /// The configuration with the virtual hosts that were discovered.
    pub(crate) fn whole(&self) -> Option<RouteConfiguration> {
        let hosts = self.hosts.lock();
        let mut whole = hosts.base.clone()?;
        let more = hosts.by_name.values().map(|held| held.host.wire.clone());
        whole.virtual_hosts.extend(more);
        Some(whole)
    }

    /// How long the first delivery is waited for.
    pub(crate) fn fetch_timeout(&self) -> Duration {
        self.fetch_timeout
    }

    /// It does not exist, says the control plane: nobody need wait any longer.
    pub(crate) fn set_missing(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Whether it is there, with the first virtual hosts if it asks for them.
    pub(crate) fn is_ready(&self) -> bool {
        self.table.load().is_some() && *self.has_hosts.borrow()
    }

    /// Waits for the first word about its virtual hosts, as long as their source says; `false` if that did not come in time.
    pub(crate) async fn has_hosts(&self) -> bool {
        let Some(discovery) = self.discovery() else {
            return true;
        };
        let mut told = self.has_hosts.subscribe();
        // The sender lives in this very slot.
        let answered = told.wait_for(|has_hosts| *has_hosts);
        tokio::time::timeout(discovery.fetch_timeout, answered)
            .await
            .is_ok()
    }

    /// Waits for the first word about it.
    pub(crate) async fn ready(&self) {
        let mut changed = self.changed.subscribe();
        // The sender lives in this very slot.
        let _ = changed.wait_for(|count| *count > 0).await;
    }
}

impl RouteSlots {
    /// The slot that `rds` means, made if it is new.
    pub(crate) fn subscribe(&self, rds: &Rds) -> Result<Arc<RouteSlot>, Invalid> {
        let wire = rds
            .config_source
            .as_ref()
            .ok_or_else(|| Invalid::new("it is needed").at("config_source"))?;
        let source = Source::try_from(wire).at("config_source")?;
        Ok(self.named(source, &rds.route_config_name, || {
            RouteSlot::new(fetch_timeout(wire))
        }))
    }

    /// A slot with a configuration that is there, though its virtual hosts are not.
    pub(crate) fn with(
        &self,
        wire: RouteConfiguration,
        demand: &Demand,
    ) -> Result<Arc<RouteSlot>, Invalid> {
        let slot = RouteSlot::new(Duration::ZERO);
        if let Some(discovery) = HostDiscovery::try_new(&wire)? {
            let known = self.everywhere().into_iter().find(|other| {
                let other = other.discovery();
                other.is_some_and(|other| other.is_of(&discovery))
            });
            // What was found is not asked for again.
            if let Some(known) = known {
                *slot.hosts.lock() = known.hosts.lock().clone();
                slot.has_hosts.send_replace(*known.has_hosts.borrow());
            }
        }
        let any = proto::any::pack(&wire);
        slot.store(wire, &any, "", demand)?;
        Ok(self.in_place(slot))
    }
}

/// The table of a configuration and its discovered virtual hosts.
fn build(
    base: &RouteConfiguration,
    hosts: &BTreeMap<Arc<str>, Host>,
) -> Result<RouteTable, Invalid> {
    let more: Vec<&DiscoveredHost> = hosts.values().map(|held| &*held.host).collect();
    RouteTable::with_hosts(base, &more)
}

#[cfg(test)]
mod tests;
