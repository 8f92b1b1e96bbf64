//! Resources that live only as long as their server says so again and again: what is not renewed in time is gone.

use crate::config::{ConfigStore, Key, Update};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::Instant;

/// When which resource runs out.
#[derive(Default)]
pub(super) struct TimeToLive(HashMap<(Key, String), Instant>);

impl TimeToLive {
    /// A resource has come, or its server says that it lives on; without a time it lives until it is removed.
    pub(super) fn renew(&mut self, key: &Key, name: &str, ttl: Option<Duration>) {
        let entry = (key.clone(), name.to_owned());
        match ttl.and_then(|ttl| Instant::now().checked_add(ttl)) {
            Some(end) => {
                self.0.insert(entry, end);
            }
            None => {
                self.0.remove(&entry);
            }
        }
    }

    /// A resource was removed.
    pub(super) fn forget(&mut self, key: &Key, name: &str) {
        self.0.remove(&(key.clone(), name.to_owned()));
    }

    /// Takes away what runs out, for ever; meant to be one branch of a select.
    pub(super) async fn expire(&mut self, store: &Arc<ConfigStore>) {
        loop {
            let Some(next) = self.0.values().min().copied() else {
                return std::future::pending().await;
            };
            tokio::time::sleep_until(next).await;
            let now = Instant::now();
            let mut over: HashMap<Key, Vec<String>> = HashMap::new();
            self.0.retain(|(key, name), end| {
                if *end <= now {
                    over.entry(key.clone()).or_default().push(name.clone());
                }
                *end > now
            });
            for (key, removed) in over {
                tracing::info!(target: "config", kind = ?key.kind, ?removed, "resources ran out");
                let update = Update {
                    removed,
                    ..Update::default()
                };
                if let Err(error) = store.apply(&key, update) {
                    tracing::warn!(target: "config", error, "removal failed");
                }
            }
        }
    }
}
