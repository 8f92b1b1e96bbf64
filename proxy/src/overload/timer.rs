//! Time limits that are shorter the further `envoy.overload_actions.reduce_timeouts` is in force: from what is configured (not at
//! all) down to a minimum (fully). As in Envoy, limits that run already change with it.

use crate::invalid::{Invalid, try_all};
use proto::envoy::config::overload::v3::{
    ScaleTimersOverloadActionConfig as Wire,
    scale_timers_overload_action_config::{ScaleTimer, TimerType, scale_timer::OverloadAdjust},
};
use std::{
    collections::HashSet,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};
use tokio::sync::watch;

/// What a limit can go down to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Minimum {
    Absolute(Duration),
    /// Of what is configured, 0 to 1.
    Share(f64),
}

/// The minimum of each kind of limit that is concerned.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Minimums(Vec<(TimerType, Minimum)>);

/// The limits that are concerned, and how far.
#[derive(Debug)]
pub(crate) struct Reduction {
    minimums: Minimums,
    /// An `f64`, for whoever has a limit.
    value: AtomicU64,
    changed: watch::Sender<()>,
}

impl TryFrom<&Wire> for Minimums {
    type Error = Invalid;

    fn try_from(wire: &Wire) -> Result<Self, Invalid> {
        let minimums = try_all("timer_scale_factors", &wire.timer_scale_factors, minimum)?;
        if minimums.is_empty() {
            return Err(Invalid::new("at least one is needed").at("timer_scale_factors"));
        }
        let mut seen = HashSet::new();
        if let Some((twice, _)) = minimums.iter().find(|(timer, _)| !seen.insert(*timer)) {
            return Err(Invalid::new(format!(
                "Found duplicate entry for timer type {}",
                twice.as_str_name()
            )));
        }
        Ok(Self(minimums))
    }
}

fn minimum(wire: &ScaleTimer) -> Result<(TimerType, Minimum), Invalid> {
    let timer = match TimerType::try_from(wire.timer) {
        Ok(TimerType::Unspecified) | Err(_) => {
            return Err(Invalid::new(format!("Unknown timer type {}", wire.timer)).at("timer"));
        }
        Ok(timer) => timer,
    };
    let minimum = match &wire.overload_adjust {
        Some(OverloadAdjust::MinTimeout(least)) => {
            let least = Duration::try_from(*least)
                .map_err(|_| Invalid::new("it must not be negative").at("min_timeout"))?;
            Minimum::Absolute(least)
        }
        Some(OverloadAdjust::MinScale(percent)) if (0.0..=100.0).contains(&percent.value) => {
            Minimum::Share(percent.value / 100.0)
        }
        Some(OverloadAdjust::MinScale(percent)) => {
            let value = percent.value;
            return Err(Invalid::new(format!("{value} is not between 0 and 100")).at("min_scale"));
        }
        None => return Err(Invalid::new("min_timeout or min_scale is needed")),
    };
    Ok((timer, minimum))
}

impl Reduction {
    pub(super) fn new(minimums: Minimums) -> Self {
        Self {
            minimums,
            value: AtomicU64::default(),
            changed: watch::channel(()).0,
        }
    }

    /// The action is in force so far now, 0 to 1.
    pub(super) fn set(&self, value: f64) {
        self.value.store(value.to_bits(), Relaxed);
        self.changed.send_replace(());
    }

    /// What remains of a configured limit.
    pub(crate) fn limit(&self, timer: TimerType, configured: Duration) -> Duration {
        let Some((_, minimum)) = self.minimums.0.iter().find(|(kind, _)| *kind == timer) else {
            return configured;
        };
        let least = match minimum {
            Minimum::Absolute(least) => configured.min(*least),
            Minimum::Share(share) => configured.mul_f64(*share),
        };
        least + (configured - least).mul_f64(1.0 - f64::from_bits(self.value.load(Relaxed)))
    }

    /// Resolves when limits are other ones than they are now.
    pub(crate) fn changed(&self) -> impl Future<Output = ()> + use<> {
        let mut changed = self.changed.subscribe();
        async move {
            if changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minimums(yaml: &str) -> Result<Minimums, String> {
        let wire: Wire = proto::yaml::from_str(yaml).unwrap();
        Minimums::try_from(&wire).map_err(|error| error.to_string())
    }

    #[test]
    fn limits_go_down_to_their_minimum() {
        let reduction = Reduction::new(
            minimums(
                "timer_scale_factors: [{timer: HTTP_DOWNSTREAM_CONNECTION_IDLE, min_timeout: 2s}, {timer: HTTP_DOWNSTREAM_STREAM_IDLE, min_scale: {value: 10}}]",
            )
            .unwrap(),
        );
        let limits = |seconds| {
            [
                TimerType::HttpDownstreamConnectionIdle,
                TimerType::HttpDownstreamStreamIdle,
                TimerType::TransportSocketConnect,
            ]
            .map(|timer| {
                reduction
                    .limit(timer, Duration::from_secs(seconds))
                    .as_secs()
            })
        };
        assert_eq!(limits(600), [600, 600, 600]);
        reduction.set(0.5);
        assert_eq!(limits(600), [301, 330, 600]);
        reduction.set(1.0);
        assert_eq!(limits(600), [2, 60, 600]);
        // A minimum makes nothing longer.
        assert_eq!(limits(1)[0], 1);
    }

    #[test]
    fn wrong_minimums_are_refused() {
        for (wrong, why) in [
            ("{}", "timer_scale_factors: at least one"),
            ("timer_scale_factors: [{min_timeout: 1s}]", "timer type 0"),
            (
                "timer_scale_factors: [{timer: TRANSPORT_SOCKET_CONNECT}]",
                "min_timeout or min_scale",
            ),
            (
                "timer_scale_factors: [{timer: TRANSPORT_SOCKET_CONNECT, min_scale: {value: 101}}]",
                "not between",
            ),
            (
                "timer_scale_factors: [{timer: TRANSPORT_SOCKET_CONNECT, min_timeout: 1s}, {timer: TRANSPORT_SOCKET_CONNECT, min_timeout: 2s}]",
                "duplicate entry for timer type TRANSPORT_SOCKET_CONNECT",
            ),
        ] {
            let refused = minimums(wrong).unwrap_err();
            assert!(refused.contains(why), "{wrong}: {refused}");
        }
    }
}
