//! Outlier detection as configured.

use crate::{invalid::Invalid, runtime::RuntimeView, wire::duration_or};
use proto::envoy::config::cluster::v3::OutlierDetection as Wire;
use std::{borrow::Cow, time::Duration};

/// A checked configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct OutlierConfig {
    /// The answers that are failures, instead of those from 500 on.
    pub(crate) error_statuses: Option<Vec<u16>>,
    pub(super) consecutive_5xx: u32,
    pub(super) consecutive_gateway: u32,
    pub(super) consecutive_local: u32,
    pub(super) enforcing_5xx: u32,
    pub(super) enforcing_gateway: u32,
    pub(super) enforcing_local: u32,
    pub(super) enforcing_success_rate: u32,
    pub(super) enforcing_local_success_rate: u32,
    pub(super) enforcing_failure_percentage: u32,
    pub(super) enforcing_local_failure_percentage: u32,
    /// Hosts with enough requests that a success rate needs, and how many requests are enough.
    pub(super) success_hosts: u32,
    pub(super) success_volume: u32,
    /// Standard deviations below the mean that are too many.
    pub(super) deviations: f64,
    /// The same for the failure percentage, and the percentage that is too much.
    pub(super) failure_hosts: u32,
    pub(super) failure_volume: u32,
    pub(super) failure_threshold: u32,
    /// What happens before the host can answer is counted apart.
    pub(super) split_local: bool,
    pub(super) interval: Duration,
    pub(super) base: Duration,
    pub(super) most: Duration,
    pub(super) jitter: Duration,
    pub(super) max_percent: u32,
    pub(super) always_one: bool,
    /// A good health check ends an ejection.
    pub(super) checks_bring_back: bool,
}

impl TryFrom<&Wire> for OutlierConfig {
    type Error = Invalid;

    fn try_from(wire: &Wire) -> Result<Self, Invalid> {
        if !wire.monitors.is_empty() {
            return Err(Invalid::new("not supported").at("monitors"));
        }
        let mut config = Self::rows(wire)?;
        config.add_rates(wire)?;
        config.add_times(wire)?;
        Ok(config)
    }
}

fn percent(value: Option<u32>, default: u32, field: &str) -> Result<u32, Invalid> {
    match value.unwrap_or(default) {
        value @ 0..=100 => Ok(value),
        value => Err(Invalid::new(format!("{value} is not a percentage")).at(field)),
    }
}

impl OutlierConfig {
    /// It with what the runtime says now in the place of what is configured.
    pub(super) fn now(&self, runtime: &RuntimeView) -> Cow<'_, Self> {
        if !runtime.has("outlier_detection") {
            return Cow::Borrowed(self);
        }
        let mut now = self.clone();
        let read = |key: &str| runtime.get::<u64>(&format!("outlier_detection.{key}"));
        for (key, value) in now.numbers() {
            if let Some(read) = read(key).and_then(|read| u32::try_from(read).ok()) {
                *value = read;
            }
        }
        for (key, value) in now.times() {
            if let Some(read) = read(key) {
                *value = Duration::from_millis(read);
            }
        }
        if let Some(factor) = runtime.get::<f64>("outlier_detection.success_rate_stdev_factor") {
            now.deviations = factor / 1000.0;
        }
        Cow::Owned(now)
    }

    fn numbers(&mut self) -> [(&'static str, &mut u32); 16] {
        [
            ("consecutive_5xx", &mut self.consecutive_5xx),
            ("consecutive_gateway_failure", &mut self.consecutive_gateway),
            (
                "consecutive_local_origin_failure",
                &mut self.consecutive_local,
            ),
            ("enforcing_consecutive_5xx", &mut self.enforcing_5xx),
            (
                "enforcing_consecutive_gateway_failure",
                &mut self.enforcing_gateway,
            ),
            (
                "enforcing_consecutive_local_origin_failure",
                &mut self.enforcing_local,
            ),
            ("enforcing_success_rate", &mut self.enforcing_success_rate),
            (
                "enforcing_local_origin_success_rate",
                &mut self.enforcing_local_success_rate,
            ),
            (
                "enforcing_failure_percentage",
                &mut self.enforcing_failure_percentage,
            ),
            (
                "enforcing_failure_percentage_local_origin",
                &mut self.enforcing_local_failure_percentage,
            ),
            ("success_rate_minimum_hosts", &mut self.success_hosts),
            ("success_rate_request_volume", &mut self.success_volume),
            ("failure_percentage_minimum_hosts", &mut self.failure_hosts),
            (
                "failure_percentage_request_volume",
                &mut self.failure_volume,
            ),
            ("failure_percentage_threshold", &mut self.failure_threshold),
            ("max_ejection_percent", &mut self.max_percent),
        ]
    }

    fn times(&mut self) -> [(&'static str, &mut Duration); 4] {
        [
            ("interval_ms", &mut self.interval),
            ("base_ejection_time_ms", &mut self.base),
            ("max_ejection_time_ms", &mut self.most),
            ("max_ejection_time_jitter_ms", &mut self.jitter),
        ]
    }

    /// Failures in a row, and what is done in general.
    fn rows(wire: &Wire) -> Result<Self, Invalid> {
        Ok(Self {
            consecutive_5xx: wire.consecutive_5xx.unwrap_or(5),
            consecutive_gateway: wire.consecutive_gateway_failure.unwrap_or(5),
            consecutive_local: wire.consecutive_local_origin_failure.unwrap_or(5),
            enforcing_5xx: percent(
                wire.enforcing_consecutive_5xx,
                100,
                "enforcing_consecutive_5xx",
            )?,
            enforcing_gateway: percent(
                wire.enforcing_consecutive_gateway_failure,
                0,
                "enforcing_consecutive_gateway_failure",
            )?,
            enforcing_local: percent(
                wire.enforcing_consecutive_local_origin_failure,
                100,
                "enforcing_consecutive_local_origin_failure",
            )?,
            split_local: wire.split_external_local_origin_errors,
            max_percent: percent(wire.max_ejection_percent, 10, "max_ejection_percent")?,
            always_one: wire.always_eject_one_host.unwrap_or(false),
            checks_bring_back: wire
                .successful_active_health_check_uneject_host
                .unwrap_or(true),
            ..Self::default()
        })
    }

    fn add_rates(&mut self, wire: &Wire) -> Result<(), Invalid> {
        self.enforcing_success_rate =
            percent(wire.enforcing_success_rate, 100, "enforcing_success_rate")?;
        self.enforcing_local_success_rate = percent(
            wire.enforcing_local_origin_success_rate,
            100,
            "enforcing_local_origin_success_rate",
        )?;
        self.enforcing_failure_percentage = percent(
            wire.enforcing_failure_percentage,
            0,
            "enforcing_failure_percentage",
        )?;
        self.enforcing_local_failure_percentage = percent(
            wire.enforcing_failure_percentage_local_origin,
            0,
            "enforcing_failure_percentage_local_origin",
        )?;
        self.success_hosts = wire.success_rate_minimum_hosts.unwrap_or(5);
        self.success_volume = wire.success_rate_request_volume.unwrap_or(100);
        self.deviations = f64::from(wire.success_rate_stdev_factor.unwrap_or(1900)) / 1000.0;
        self.failure_hosts = wire.failure_percentage_minimum_hosts.unwrap_or(5);
        self.failure_volume = wire.failure_percentage_request_volume.unwrap_or(50);
        self.failure_threshold = percent(
            wire.failure_percentage_threshold,
            85,
            "failure_percentage_threshold",
        )?;
        Ok(())
    }

    fn add_times(&mut self, wire: &Wire) -> Result<(), Invalid> {
        let seconds = Duration::from_secs;
        self.interval = duration_or(wire.interval.as_ref(), seconds(10), "interval")?
            .max(Duration::from_millis(10));
        self.base = duration_or(
            wire.base_ejection_time.as_ref(),
            seconds(30),
            "base_ejection_time",
        )?;
        self.most = duration_or(
            wire.max_ejection_time.as_ref(),
            seconds(300).max(self.base),
            "max_ejection_time",
        )?;
        if self.most < self.base {
            return Err(
                Invalid::new("it must be at least base_ejection_time").at("max_ejection_time")
            );
        }
        self.jitter = duration_or(
            wire.max_ejection_time_jitter.as_ref(),
            Duration::ZERO,
            "max_ejection_time_jitter",
        )?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{runtime::Runtime, stats::Store};
    use std::sync::Arc;

    #[test]
    fn runtime_says_otherwise() {
        let runtime = Runtime::new(&Arc::new(Store::default()).root());
        runtime.configure(None).unwrap();
        let config = OutlierConfig::try_from(&Wire::default()).unwrap();
        assert_eq!(*config.now(&runtime.view()), config);
        let values = [
            ("outlier_detection.consecutive_5xx", "2"),
            ("outlier_detection.interval_ms", "100"),
            ("outlier_detection.success_rate_stdev_factor", "500"),
            ("outlier_detection.max_ejection_percent", "-1"),
        ];
        runtime.modify(values.into_iter()).unwrap();
        let want = OutlierConfig {
            consecutive_5xx: 2,
            interval: Duration::from_millis(100),
            deviations: 0.5,
            ..config.clone()
        };
        assert_eq!(*config.now(&runtime.view()), want);
    }
}
