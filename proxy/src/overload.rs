//! The overload manager: resource monitors say how much of a resource is in use, actions begin where their triggers say, and
//! whoever is concerned asks here before taking on work.
//!
//! ```text
//! monitor (every refresh_interval) → pressure 0…1 → triggers → action 0…1 → listeners, connection manager
//! ```
//! The number of downstream connections is not polled but counted as they come, so that its limit is exact.

mod action;
mod config;
mod monitor;
mod streams;
mod timer;

pub(crate) use action::Action;
pub(crate) use config::OverloadConfig;
pub(crate) use proto::envoy::config::overload::v3::scale_timers_overload_action_config::TimerType;
pub(crate) use streams::StreamClasses;
pub(crate) use timer::Reduction;

use crate::{stat_group, stats::Scope};
use action::ActionState;
use monitor::Monitor;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

stat_group! {
    /// `overload.…`
    pub(crate) struct OverloadStats { refresh_interval_delay: Histogram }
}

stat_group! {
    /// `envoy.overload_actions.reset_high_memory_stream.…`
    pub(crate) struct ResetStats { count: Counter }
}

stat_group! {
    /// `overload.<resource>.…`
    pub(crate) struct ResourceStats { failed_updates: Counter, pressure: Gauge, skipped_updates: Counter }
}

/// The overload manager of a process; without a configuration nothing is ever overloaded.
#[derive(Default)]
pub(crate) struct Overload {
    /// By [`Action`], as everybody who is given work asks; empty without a configuration.
    actions: Vec<Option<ActionState>>,
    resources: Vec<Resource>,
    interval: Duration,
    connections: Option<ConnectionLimit>,
    streams: Option<StreamClasses>,
    reduction: Option<Arc<Reduction>>,
    stats: Arc<OverloadStats>,
    resets: Arc<ResetStats>,
    /// Told when an action that listeners or streams wait for begins or ends.
    changed: watch::Sender<u64>,
}

struct Resource {
    name: String,
    monitor: Monitor,
    stats: Arc<ResourceStats>,
}

/// The cap on downstream connections of the whole process.
struct ConnectionLimit {
    most: u64,
    open: Arc<AtomicU64>,
    stats: Arc<ResourceStats>,
}

/// One downstream connection under the cap, until it is dropped.
pub(crate) struct GlobalSlot(Arc<AtomicU64>, u64, Arc<ResourceStats>);

impl Overload {
    /// The manager that `config` asks for; its statistics are below `root`.
    pub(crate) fn new(config: OverloadConfig, root: &Scope) -> Self {
        let scope = root.scope("overload");
        let mut actions = Vec::new();
        for (action, triggers) in config.actions {
            let place = action as usize;
            actions.resize_with(actions.len().max(place + 1), || None);
            actions[place] = Some(ActionState::new(action, triggers, &scope));
        }
        let resources = config
            .resources
            .into_iter()
            .map(|(name, monitor)| Resource {
                stats: scope.scope(&name).group(),
                name,
                monitor,
            })
            .collect();
        Self {
            actions,
            resources,
            interval: config.interval,
            connections: config.connections.map(|(name, most)| ConnectionLimit {
                most,
                open: Arc::default(),
                stats: scope.scope(&name).group(),
            }),
            streams: config.streams,
            reduction: config.minimums.map(Reduction::new).map(Arc::new),
            stats: scope.group(),
            resets: root.scope(Action::ResetStreams.name()).group(),
            changed: watch::channel(0).0,
        }
    }

    /// Whether `action` is in force for one piece of work; an action that is half in force concerns every second one.
    pub(crate) fn is_active(&self, action: Action, random: impl FnOnce() -> u64) -> bool {
        self.state(action)
            .is_some_and(|state| state.is_active(random))
    }

    /// How far `action` is in force, 0 to 1.
    pub(crate) fn value(&self, action: Action) -> f64 {
        self.state(action).map_or(0.0, ActionState::value)
    }

    /// Whether `action` is fully in force.
    pub(crate) fn is_saturated(&self, action: Action) -> bool {
        self.value(action) >= 1.0
    }

    /// Whether anything is configured for `action`.
    pub(crate) fn has(&self, action: Action) -> bool {
        self.state(action).is_some()
    }

    fn state(&self, action: Action) -> Option<&ActionState> {
        self.actions.get(action as usize)?.as_ref()
    }

    /// Waits until `action` is fully in force (or not any more).
    pub(crate) async fn until(&self, action: Action, is_saturated: bool) {
        let mut changed = self.changed.subscribe();
        while self.is_saturated(action) != is_saturated {
            if changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Which time limits are shorter under pressure, if any.
    pub(crate) fn reduction(&self) -> Option<Arc<Reduction>> {
        self.reduction.clone()
    }

    /// How streams are told apart by what they hold, if the action that resets them is configured.
    pub(crate) fn stream_classes(&self) -> Option<StreamClasses> {
        self.streams.filter(|_| self.has(Action::ResetStreams))
    }

    /// Has a worker's streams reset (`reset` says how many were) whenever the action becomes more or less, as Envoy does it.
    pub(crate) async fn run_resets(&self, reset: impl Fn(f64) -> usize) {
        if self.stream_classes().is_none() {
            return;
        }
        let mut changed = self.changed.subscribe();
        let mut before = 0.0;
        loop {
            let value = self.value(Action::ResetStreams);
            if value > 0.0 && value.total_cmp(&before).is_ne() {
                self.resets.count.add(reset(value) as u64);
            }
            before = value;
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Room for one more downstream connection; `Err` when the process has as many as it may, `None` without a cap.
    pub(crate) fn connection(&self) -> Result<Option<GlobalSlot>, ()> {
        let Some(limit) = &self.connections else {
            return Ok(None);
        };
        let before = limit.open.fetch_add(1, Relaxed);
        if before >= limit.most {
            limit.open.fetch_sub(1, Relaxed);
            return Err(());
        }
        let slot = GlobalSlot(limit.open.clone(), limit.most, limit.stats.clone());
        slot.show();
        Ok(Some(slot))
    }

    /// Looks at every resource again and again; ends at once where there is none.
    pub(crate) async fn run(&self) {
        if self.resources.is_empty() {
            return;
        }
        loop {
            let began = Instant::now();
            self.refresh();
            tokio::time::sleep_until(began + self.interval).await;
            let late = began.elapsed().saturating_sub(self.interval);
            self.stats
                .refresh_interval_delay
                .record(u64::try_from(late.as_millis()).unwrap_or(u64::MAX));
        }
    }

    fn refresh(&self) {
        for resource in &self.resources {
            match resource.monitor.pressure() {
                Ok(pressure) => {
                    resource.stats.pressure.set(percent(pressure));
                    for state in self.actions.iter().flatten() {
                        let is_changed = state.update(&resource.name, pressure);
                        if is_changed {
                            tracing::info!(target: "overload", action = state.action.name(), value = state.value(), resource = resource.name, pressure, "overload action changed");
                            self.changed.send_modify(|version| *version += 1);
                            if let (Action::ReduceTimeouts, Some(reduction)) =
                                (state.action, &self.reduction)
                            {
                                reduction.set(state.value());
                            }
                        }
                    }
                }
                Err(error) => {
                    resource.stats.failed_updates.inc();
                    tracing::debug!(target: "overload", resource = resource.name, %error, "cannot measure");
                }
            }
        }
    }
}

impl GlobalSlot {
    fn show(&self) {
        // The cap is checked at configuration: it is not zero.
        let open = self.0.load(Relaxed);
        self.2.pressure.set(open * 100 / self.1.max(1));
    }
}

impl Drop for GlobalSlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
        self.show();
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to what fits"
)]
fn percent(value: f64) -> u64 {
    (value * 100.0).clamp(0.0, 1e9) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Store;
    use proto::envoy::config::overload::v3::OverloadManager as Wire;

    fn overload(file: &std::path::Path) -> Overload {
        let wire: Wire = proto::yaml::from_str(&format!(
            r#"{{refresh_interval: 0.01s, resource_monitors: [
                {{name: envoy.resource_monitors.injected_resource, typed_config: {{"@type": type.googleapis.com/envoy.extensions.resource_monitors.injected_resource.v3.InjectedResourceConfig, filename: {}}}}},
                {{name: envoy.resource_monitors.global_downstream_max_connections, typed_config: {{"@type": type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig, max_active_downstream_connections: 2}}}}],
              actions: [
                {{name: envoy.overload_actions.stop_accepting_requests, triggers: [{{name: envoy.resource_monitors.injected_resource, threshold: {{value: 0.9}}}}]}},
                {{name: envoy.overload_actions.disable_http_keepalive, triggers: [{{name: envoy.resource_monitors.injected_resource, scaled: {{scaling_threshold: 0.5, saturation_threshold: 0.9}}}}]}}]}}"#,
            file.display()
        ))
        .unwrap();
        let root = Arc::new(Store::default()).root();
        Overload::new(OverloadConfig::try_from(&wire).unwrap(), &root)
    }

    #[test]
    fn actions_follow_the_pressure_by_threshold_or_by_scale() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pressure");
        let overload = overload(&file);
        let stop = Action::StopAcceptingRequests;
        let close = Action::DisableHttpKeepalive;
        // No file yet: the measurement fails, nothing changes.
        overload.refresh();
        assert_eq!(overload.resources[0].stats.failed_updates.value(), 1);
        for (pressure, is_stopped, scale) in [
            ("0.4", false, 0.0),
            ("0.7", false, 0.5),
            ("0.95", true, 1.0),
            ("0.1", false, 0.0),
        ] {
            std::fs::write(&file, pressure).unwrap();
            overload.refresh();
            assert_eq!(overload.is_saturated(stop), is_stopped, "{pressure}");
            assert!((overload.value(close) - scale).abs() < 0.02, "{pressure}");
        }
        assert!(!overload.is_active(Action::ShrinkHeap, || 0));
    }

    #[test]
    fn the_cap_on_connections_is_exact() {
        let overload = overload(std::path::Path::new("/nowhere"));
        let first = overload.connection().unwrap();
        let second = overload.connection().unwrap();
        assert!(overload.connection().is_err());
        drop(first);
        assert!(overload.connection().is_ok());
        drop(second);
    }
}
