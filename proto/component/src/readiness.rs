//! Readiness: a component is ready when every condition that it has declared is met.
//! What is missing is named on `/ready`, so that an operator need not guess.

use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::watch;

/// All conditions of one process.
#[derive(Clone, Debug)]
pub struct Readiness {
    conditions: Arc<Mutex<BTreeMap<String, bool>>>,
    changed: Arc<watch::Sender<()>>,
}

/// One condition; unmet until [`Condition::set`].
#[derive(Clone, Debug)]
pub struct Condition {
    name: String,
    readiness: Readiness,
}

impl Default for Readiness {
    fn default() -> Self {
        Self {
            conditions: Arc::default(),
            changed: Arc::new(watch::channel(()).0),
        }
    }
}

impl Readiness {
    /// Declares a condition, unmet.
    pub fn condition(&self, name: impl Into<String>) -> Condition {
        let name = name.into();
        self.conditions.lock().entry(name.clone()).or_insert(false);
        self.changed.send_replace(());
        Condition {
            name,
            readiness: self.clone(),
        }
    }

    /// Names of the conditions that are not met.
    pub fn missing(&self) -> Vec<String> {
        let conditions = self.conditions.lock();
        conditions
            .iter()
            .filter(|(_, met)| !**met)
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Whether nothing is missing.
    pub fn is_ready(&self) -> bool {
        self.missing().is_empty()
    }

    /// Resolves once nothing is missing.
    pub async fn wait(&self) {
        let mut changed = self.changed.subscribe();
        while !self.is_ready() {
            // The sender lives as long as self.
            let _ = changed.changed().await;
        }
    }

    fn put(&self, name: &str, met: bool) {
        let before = self.conditions.lock().insert(name.to_owned(), met);
        if before != Some(met) {
            tracing::debug!(condition = name, met, "readiness condition changed");
            self.changed.send_replace(());
        }
    }
}

impl Condition {
    /// Meets the condition.
    pub fn set(&self) {
        self.readiness.put(&self.name, true);
    }

    /// The condition no longer holds.
    pub fn unset(&self) {
        self.readiness.put(&self.name, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_only_when_every_condition_is_met() {
        let readiness = Readiness::default();
        assert!(readiness.is_ready());
        let (a, b) = (readiness.condition("config"), readiness.condition("xds"));
        a.set();
        assert_eq!(readiness.missing(), ["xds"]);
        b.set();
        readiness.wait().await;
        a.unset();
        assert_eq!(readiness.missing(), ["config"]);
    }
}
