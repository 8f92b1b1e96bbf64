//! Route configurations by name. A slot is made when a listener names it and filled when RDS delivers it.

use super::Raw;
use crate::{
    invalid::{At as _, Invalid},
    router::RouteTable,
    xds::{Source, fetch_timeout},
};
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use prost_types::Any;
use proto::envoy::{
    config::route::v3::RouteConfiguration,
    extensions::filters::network::http_connection_manager::v3::Rds,
};
use std::{
    collections::BTreeMap,
    mem,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::watch;

/// The newest value of a route configuration.
pub(crate) struct RouteSlot {
    table: ArcSwapOption<RouteTable>,
    source: Mutex<Option<RouteSource>>,
    changed: watch::Sender<u64>,
    fetch_timeout: Duration,
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
#[derive(Default)]
pub(crate) struct RouteSlots(Mutex<Slots>);

#[derive(Default)]
struct Slots {
    by_name: BTreeMap<(Source, Arc<str>), Arc<RouteSlot>>,
    /// Whether one was made since it was last told which there are.
    has_new: bool,
}

impl RouteSlot {
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
    ) -> Result<(), Invalid> {
        let table = RouteTable::try_from(wire)?;
        self.table.store(Some(Arc::new(table)));
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

    /// How long the first delivery is waited for.
    pub(crate) fn fetch_timeout(&self) -> Duration {
        self.fetch_timeout
    }

    /// It does not exist, says the control plane: nobody need wait any longer.
    pub(crate) fn set_missing(&self) {
        self.changed.send_modify(|count| *count += 1);
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
        let key = (source, Arc::from(rds.route_config_name.as_str()));
        let mut slots = self.0.lock();
        let Slots { by_name, has_new } = &mut *slots;
        let slot = by_name.entry(key).or_insert_with(|| {
            *has_new = true;
            Arc::new(RouteSlot {
                table: ArcSwapOption::empty(),
                source: Mutex::new(None),
                changed: watch::channel(0).0,
                fetch_timeout: fetch_timeout(wire),
            })
        });
        Ok(slot.clone())
    }

    /// The slot of `name` from `source`, if anybody wants it.
    pub(crate) fn get(&self, source: &Source, name: &str) -> Option<Arc<RouteSlot>> {
        let key = (source.clone(), Arc::from(name));
        self.0.lock().by_name.get(&key).cloned()
    }

    /// Every slot.
    pub(crate) fn all(&self) -> Vec<Arc<RouteSlot>> {
        self.0.lock().by_name.values().cloned().collect()
    }

    /// Name and version of every one that came from `from`.
    pub(super) fn held(&self, from: &Source) -> Vec<(String, String)> {
        let slots = self.0.lock();
        let of = slots
            .by_name
            .iter()
            .filter(|((source, _), _)| source == from);
        of.filter_map(|((_, name), slot)| {
            let source = slot.source.lock();
            Some((name.to_string(), source.as_ref()?.version.to_string()))
        })
        .collect()
    }

    /// Drops slots that no listener holds any more; source and name of all, if they are others than at the last call.
    pub(super) fn prune(&self) -> Option<Vec<(Source, Arc<str>)>> {
        let mut slots = self.0.lock();
        let before = slots.by_name.len();
        slots.by_name.retain(|_, slot| Arc::strong_count(slot) > 1);
        let has_changed = mem::take(&mut slots.has_new) || slots.by_name.len() != before;
        has_changed.then(|| slots.by_name.keys().cloned().collect())
    }
}
