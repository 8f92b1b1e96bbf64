//! Route configurations by name. A slot is made when a listener names it and filled when RDS delivers it.

use crate::{invalid::Invalid, router::RouteTable};
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use prost_types::Any;
use proto::envoy::config::route::v3::RouteConfiguration;
use std::{collections::BTreeMap, sync::Arc, time::SystemTime};
use tokio::sync::watch;

/// The newest value of a route configuration.
pub(crate) struct RouteSlot {
    table: ArcSwapOption<RouteTable>,
    source: Mutex<Option<RouteSource>>,
    changed: watch::Sender<u64>,
}

/// What a route configuration came from, for dumps.
#[derive(Clone)]
pub(crate) struct RouteSource {
    /// The message.
    pub(crate) any: Any,
    /// Its version.
    pub(crate) version: String,
    /// When it came.
    pub(crate) updated: SystemTime,
}

/// Every slot by name.
#[derive(Default)]
pub(crate) struct RouteSlots {
    slots: Mutex<BTreeMap<String, Arc<RouteSlot>>>,
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
        any: Any,
        version: String,
    ) -> Result<(), Invalid> {
        let table = RouteTable::try_from(wire)?;
        self.table.store(Some(Arc::new(table)));
        *self.source.lock() = Some(RouteSource {
            any,
            version,
            updated: SystemTime::now(),
        });
        self.changed.send_modify(|count| *count += 1);
        Ok(())
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
    /// The slot of `name`, made if it is new.
    pub(crate) fn subscribe(&self, name: &str) -> Arc<RouteSlot> {
        let mut slots = self.slots.lock();
        slots
            .entry(name.to_owned())
            .or_insert_with(|| {
                Arc::new(RouteSlot {
                    table: ArcSwapOption::empty(),
                    source: Mutex::new(None),
                    changed: watch::channel(0).0,
                })
            })
            .clone()
    }

    /// The slot of `name`, if anybody wants it.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<RouteSlot>> {
        self.slots.lock().get(name).cloned()
    }

    /// Every slot.
    pub(crate) fn all(&self) -> Vec<Arc<RouteSlot>> {
        self.slots.lock().values().cloned().collect()
    }

    /// Drops slots that no listener holds any more; the names of those that stay.
    pub(crate) fn prune(&self) -> Vec<String> {
        let mut slots = self.slots.lock();
        slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        slots.keys().cloned().collect()
    }
}
