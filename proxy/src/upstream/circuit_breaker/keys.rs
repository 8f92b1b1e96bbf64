//! The keys that change thresholds while the proxy runs: `circuit_breakers.CLUSTER.PRIORITY.THRESHOLD`.

use super::Priority;
use crate::runtime::{RuntimeView, Setting};
use std::sync::Arc;

/// What they begin with.
const FAMILY: &str = "circuit_breakers";

/// The keys of one cluster's thresholds.
#[derive(Clone, Default)]
pub(crate) struct LimitKeys {
    cluster: Arc<str>,
    runtime: RuntimeView,
}

impl LimitKeys {
    /// Those of a cluster called `cluster`.
    pub(crate) fn new(cluster: &Arc<str>, runtime: &RuntimeView) -> Self {
        Self {
            cluster: cluster.clone(),
            runtime: runtime.clone(),
        }
    }

    /// What the runtime says of a threshold.
    pub(super) fn read<T: Setting>(&self, priority: Priority, threshold: &str) -> Option<T> {
        // Asked for each request: keys are made only where there may be some.
        if !self.runtime.has(FAMILY) {
            return None;
        }
        let (cluster, priority) = (&self.cluster, priority.name());
        let key = format!("{FAMILY}.{cluster}.{priority}.{threshold}");
        self.runtime.get(&key)
    }
}
