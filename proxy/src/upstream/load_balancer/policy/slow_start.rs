//! Slow start: a host that is new, or healthy again, gets its share little by little.

use crate::{
    invalid::{At as _, Invalid},
    wire::duration,
};
use std::time::Duration;

/// New hosts get their share little by little.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SlowStart {
    /// How long a host is new.
    pub(crate) window: Duration,
    /// Above one faster at first.
    pub(crate) aggression: f64,
    /// The least share, as a fraction.
    pub(crate) least: f64,
}

impl SlowStart {
    pub(super) fn new(
        window: Option<&prost_types::Duration>,
        aggression: Option<f64>,
        least: Option<f64>,
    ) -> Result<Option<Self>, Invalid> {
        let window = window
            .map(duration)
            .transpose()
            .at("slow_start_config.slow_start_window")?
            .unwrap_or_default();
        let aggression = aggression.unwrap_or(1.0);
        if !(aggression > 0.0 && aggression.is_finite()) {
            return Err(Invalid::new("it must be above zero").at("slow_start_config.aggression"));
        }
        Ok((!window.is_zero()).then_some(Self {
            window,
            aggression,
            least: least.unwrap_or(10.0).clamp(0.0, 100.0) / 100.0,
        }))
    }

    /// The share of its weight that a host gets after `age`: `max(least, (age / window)^(1 / aggression))`.
    pub(crate) fn share(&self, age: Duration) -> f64 {
        if age >= self.window {
            return 1.0;
        }
        let time = age.as_secs_f64().max(0.001) / self.window.as_secs_f64();
        time.powf(1.0 / self.aggression).max(self.least)
    }
}
