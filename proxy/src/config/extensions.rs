//! Extensions whose configuration comes by itself (ECDS), by source and name. A slot is made when a filter chain names it and
//! filled when the resource comes; everybody who uses it must take a configuration before it is in force for any.

use super::{Raw, discovered::ExtensionUser};
use crate::{
    invalid::Invalid,
    xds::{Source, fetch_timeout},
};
use parking_lot::Mutex;
use prost_types::Any;
use proto::envoy::config::core::v3::{ConfigSource, TypedExtensionConfig};
use std::{
    collections::BTreeMap,
    mem,
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
#[derive(Default)]
pub(crate) struct ExtensionSlots(Mutex<Slots>);

#[derive(Default)]
struct Slots {
    by_name: BTreeMap<(Source, Arc<str>), Arc<ExtensionSlot>>,
    /// Whether one was made since it was last told which there are.
    has_new: bool,
}

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
        let mut slots = self.0.lock();
        let Slots { by_name, has_new } = &mut *slots;
        let slot = by_name.entry((source, Arc::from(name))).or_insert_with(|| {
            *has_new = true;
            Arc::new(ExtensionSlot {
                users: Mutex::default(),
                delivered: Mutex::new(None),
                changed: watch::channel(0).0,
                fetch_timeout: fetch_timeout(wire),
            })
        });
        Ok(slot.clone())
    }

    /// The slot of `name` from `source`, if anybody wants it.
    pub(super) fn get(&self, source: &Source, name: &str) -> Option<Arc<ExtensionSlot>> {
        let key = (source.clone(), Arc::from(name));
        self.0.lock().by_name.get(&key).cloned()
    }

    /// Every slot.
    pub(crate) fn all(&self) -> Vec<Arc<ExtensionSlot>> {
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
            let delivered = slot.delivered.lock();
            Some((name.to_string(), delivered.as_ref()?.version.to_string()))
        })
        .collect()
    }

    /// Drops slots that no filter holds any more; source and name of all, if they are others than at the last call.
    pub(super) fn prune(&self) -> Option<Vec<(Source, Arc<str>)>> {
        let mut slots = self.0.lock();
        let before = slots.by_name.len();
        slots.by_name.retain(|_, slot| Arc::strong_count(slot) > 1);
        let has_changed = mem::take(&mut slots.has_new) || slots.by_name.len() != before;
        has_changed.then(|| slots.by_name.keys().cloned().collect())
    }
}
