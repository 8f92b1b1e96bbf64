//! Route configurations by name. A slot is made when a listener names it and filled when RDS delivers it.

use super::{Raw, slots::Slots};
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
pub(crate) type RouteSlots = Slots<RouteSlot>;

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
        Ok(self.named(source, &rds.route_config_name, || RouteSlot {
            table: ArcSwapOption::empty(),
            source: Mutex::new(None),
            changed: watch::channel(0).0,
            fetch_timeout: fetch_timeout(wire),
        }))
    }
}
