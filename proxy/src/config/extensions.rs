//! Extensions whose configuration comes by itself (ECDS), by source and name. A slot is made when a filter chain names it and
//! filled when the resource comes; everybody who uses it must take a configuration before it is in force for any.

use super::{Raw, discovered::ExtensionUser, slots::Slots};
use crate::{
    invalid::Invalid,
    xds::{Source, fetch_timeout},
};
use parking_lot::Mutex;
use prost_types::Any;
use proto::envoy::config::core::v3::{ConfigSource, TypedExtensionConfig};
use std::{
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};
use tokio::sync::watch;

/// The newest configuration of an extension, and who uses it.
pub(crate) struct ExtensionSlot {
    users: Mutex<Vec<Weak<dyn ExtensionUser>>>,
    delivered: Mutex<Option<DeliveredExtension>>,
    changed: watch::Sender<u64>,
    fetch_timeout: Duration,
}

/// A configuration as it came.
#[derive(Clone)]
pub(crate) struct DeliveredExtension {
    /// The resource, for dumps.
    pub(crate) raw: Raw,
    /// Its version.
    pub(crate) version: Arc<str>,
    /// When it came.
    pub(crate) updated: SystemTime,
    config: Arc<Any>,
}

/// Every slot.
pub(crate) type ExtensionSlots = Slots<ExtensionSlot>;

impl ExtensionSlot {
    /// Adds a user, which has what was delivered before at once.
    pub(super) fn add<U: ExtensionUser + 'static>(&self, user: &Arc<U>) -> Result<(), Invalid> {
        if let Some(delivered) = self.delivered() {
            user.prepare(&delivered.config)?();
        }
        let user: Weak<U> = Arc::downgrade(user);
        let mut users = self.users.lock();
        users.retain(|user| user.strong_count() > 0);
        users.push(user);
        Ok(())
    }

    /// What is in force; `None` before the first delivery.
    pub(crate) fn delivered(&self) -> Option<DeliveredExtension> {
        self.delivered.lock().clone()
    }

    /// Whether there is something in force.
    pub(crate) fn is_ready(&self) -> bool {
        self.delivered.lock().is_some()
    }

    /// How long the first delivery is waited for.
    pub(crate) fn fetch_timeout(&self) -> Duration {
        self.fetch_timeout
    }

    /// Waits for the first word about it.
    pub(crate) async fn ready(&self) {
        let mut changed = self.changed.subscribe();
        // The sender lives in this very slot.
        let _ = changed.wait_for(|count| *count > 0).await;
    }

    /// Puts a configuration in force with all users, or with none.
    pub(super) fn store(
        &self,
        wire: TypedExtensionConfig,
        any: &Any,
        version: &str,
    ) -> Result<(), Invalid> {
        let config = wire.typed_config;
        let config = config.ok_or_else(|| Invalid::new("it is needed").at("typed_config"))?;
        let users = self.users();
        let prepared: Vec<_> = users
            .iter()
            .map(|user| user.prepare(&config))
            .collect::<Result<_, _>>()?;
        for put_in_force in prepared {
            put_in_force();
        }
        *self.delivered.lock() = Some(DeliveredExtension {
            raw: Raw::new(any),
            version: version.into(),
            updated: SystemTime::now(),
            config: Arc::new(config),
        });
        self.changed.send_modify(|count| *count += 1);
        Ok(())
    }

    /// It does not exist (any more): users have their defaults, and nobody need wait.
    pub(super) fn remove(&self) {
        *self.delivered.lock() = None;
        for user in self.users() {
            user.reset();
        }
        self.changed.send_modify(|count| *count += 1);
    }

    fn users(&self) -> Vec<Arc<dyn ExtensionUser>> {
        self.users.lock().iter().filter_map(Weak::upgrade).collect()
    }
}

impl ExtensionSlots {
    /// The slot of `name` from a source, made if it is new.
    pub(crate) fn subscribe(
        &self,
        wire: &ConfigSource,
        name: &str,
    ) -> Result<Arc<ExtensionSlot>, Invalid> {
        let source = Source::try_from(wire)?;
        Ok(self.named(source, name, || ExtensionSlot {
            users: Mutex::default(),
            delivered: Mutex::new(None),
            changed: watch::channel(0).0,
            fetch_timeout: fetch_timeout(wire),
        }))
    }
}
