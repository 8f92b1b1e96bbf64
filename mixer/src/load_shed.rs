//! Load shedding: requests beyond a rate, or while the average latency is too high, are refused with UNAVAILABLE.
//!
//! Refusal is fair: while the latency is too high, a share of the requests is refused that grows with it, spread evenly over
//! all that come, so that no caller is shut out.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::seldom::Seldom;

/// What happens to requests that are too many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Nothing is measured.
    #[default]
    Disabled,
    /// They are logged and served.
    #[value(name = "logonly")]
    LogOnly,
    /// They are refused.
    Enforce,
}

/// When requests are too many.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) mode: Mode,
    /// 0: no limit.
    pub(crate) requests_per_second: f64,
    /// Requests at once; 0: as many as in a second.
    pub(crate) burst: u32,
    /// 0: no limit.
    pub(crate) average_latency: Duration,
    pub(crate) half_life: Duration,
    /// Latency counts only above this rate of requests.
    pub(crate) enforcement_rate: f64,
}

/// Decides request by request.
#[derive(Debug)]
pub(crate) struct LoadShedder {
    limits: Limits,
    state: Mutex<State>,
    said: Seldom,
}

#[derive(Debug)]
struct State {
    tokens: f64,
    refilled: Instant,
    /// Seconds, decaying.
    latency: f64,
    sampled: Instant,
    /// Requests of the current second, and the rate of the one before.
    second: Instant,
    requests: f64,
    rate: f64,
    /// What the refusals so far owe to the share that is to be refused.
    owed: f64,
}

impl LoadShedder {
    pub(crate) fn new(limits: Limits) -> Self {
        let now = Instant::now();
        let state = State {
            tokens: limits.burst(),
            refilled: now,
            latency: 0.0,
            sampled: now,
            second: now,
            requests: 0.0,
            rate: 0.0,
            owed: 0.0,
        };
        Self {
            limits,
            state: Mutex::new(state),
            said: Seldom::default(),
        }
    }

    /// True when the request is to be refused.
    pub(crate) fn throttles(&self) -> bool {
        if self.limits.mode == Mode::Disabled {
            return false;
        }
        let is_too_much = self.state.lock().is_too_much(&self.limits, Instant::now());
        if is_too_much && let Some(times) = self.said.times() {
            tracing::warn!(target: "loadshedding", mode = ?self.limits.mode, times, "too many requests");
        }
        is_too_much && self.limits.mode == Mode::Enforce
    }

    /// Learns how long a request took.
    pub(crate) fn observe(&self, latency: Duration) {
        if self.limits.mode != Mode::Disabled && !self.limits.average_latency.is_zero() {
            let mut state = self.state.lock();
            state.sample(latency, self.limits.half_life, Instant::now());
        }
    }
}

impl Limits {
    fn burst(&self) -> f64 {
        if self.burst == 0 {
            self.requests_per_second.max(1.0)
        } else {
            f64::from(self.burst)
        }
    }
}

impl State {
    fn is_too_much(&mut self, limits: &Limits, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.second).as_secs_f64();
        if since >= 1.0 {
            self.rate = self.requests / since;
            self.requests = 0.0;
            self.second = now;
        }
        self.requests += 1.0;
        if limits.requests_per_second > 0.0 {
            let since = now.saturating_duration_since(self.refilled).as_secs_f64();
            self.refilled = now;
            self.tokens = (self.tokens + since * limits.requests_per_second).min(limits.burst());
            if self.tokens < 1.0 {
                return true;
            }
            self.tokens -= 1.0;
        }
        let threshold = limits.average_latency.as_secs_f64();
        if limits.average_latency.is_zero()
            || self.rate < limits.enforcement_rate
            || self.latency <= threshold
        {
            self.owed = 0.0;
            return false;
        }
        self.owed += 1.0 - threshold / self.latency;
        let refuses = self.owed >= 1.0;
        if refuses {
            self.owed -= 1.0;
        }
        refuses
    }

    fn sample(&mut self, latency: Duration, half_life: Duration, now: Instant) {
        let since = now.saturating_duration_since(self.sampled).as_secs_f64();
        self.sampled = now;
        let half_life = half_life.as_secs_f64().max(0.001);
        // Samples that come together still move the average a little.
        let keep = 0.5f64.powf((since / half_life).max(0.01));
        self.latency = self.latency * keep + latency.as_secs_f64() * (1.0 - keep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            mode: Mode::Enforce,
            requests_per_second: 0.0,
            burst: 0,
            average_latency: Duration::ZERO,
            half_life: Duration::from_secs(1),
            enforcement_rate: 0.0,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_kept() {
        let shedder = LoadShedder::new(Limits {
            requests_per_second: 10.0,
            burst: 2,
            ..limits()
        });
        assert!(!shedder.throttles() && !shedder.throttles());
        assert!(shedder.throttles());
        tokio::time::advance(Duration::from_millis(100)).await;
        assert!(!shedder.throttles());
    }

    #[tokio::test(start_paused = true)]
    async fn slow_answers_shed_load_until_they_are_forgotten() {
        let shedder = LoadShedder::new(Limits {
            average_latency: Duration::from_millis(100),
            ..limits()
        });
        assert!(!shedder.throttles());
        for _ in 0..10 {
            tokio::time::advance(Duration::from_secs(1)).await;
            shedder.observe(Duration::from_millis(300));
        }
        // Three times too slow: two of three are refused, and never many in a row.
        let refused: Vec<bool> = (0..300).map(|_| shedder.throttles()).collect();
        let count = refused.iter().filter(|refused| **refused).count();
        assert!((190..=201).contains(&count), "{count}");
        assert!(refused.windows(4).all(|some| some.contains(&false)));
        for _ in 0..10 {
            tokio::time::advance(Duration::from_secs(1)).await;
            shedder.observe(Duration::from_millis(1));
        }
        assert!(!shedder.throttles());
        let off = LoadShedder::new(Limits {
            mode: Mode::Disabled,
            ..limits()
        });
        assert!(!off.throttles());
    }
}
