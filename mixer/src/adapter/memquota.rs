//! `memquota`: quotas counted in this process's memory, by rolling or fixed windows or for good.
//!
//! A rolling window is a ring of slots, ten a second: an allocation is charged to the current slot, and its capacity comes back
//! when the slot scrolls out. A fixed one (`rateLimitAlgorithm: FIXED_WINDOW`, which the 1.4 line has for `redisquota` only) begins
//! with the first allocation after the last one has ended, and all of it comes back at its end. QUIRK: the status is OK even when
//! nothing is granted.

mod window;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::RandomState;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value as Json;
use tokio::time::Instant;

use super::{Adapter, AdapterConfig, AdapterError, BuildContext, QuotaRequest, QuotaResult};
use crate::config::params;
use crate::lang::Val;
use crate::template::{Dimensions, Payload, Values};
use window::Cell;

/// Cells and remembered calls are bounded: dimensions come from requests.
const MAX_CELLS: usize = 100_000;
const MAX_REMEMBERED: usize = 100_000;
/// How often cells that hold nothing are dropped.
const SWEEP: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Params {
    #[serde(default)]
    quotas: Vec<Quota>,
    #[serde(
        default = "one_second",
        alias = "min_deduplication_duration",
        deserialize_with = "params::duration"
    )]
    min_deduplication_duration: Duration,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Quota {
    name: String,
    #[serde(default, alias = "max_amount", deserialize_with = "params::int64")]
    max_amount: i64,
    #[serde(
        default,
        alias = "valid_duration",
        deserialize_with = "params::duration"
    )]
    valid_duration: Duration,
    #[serde(default = "rolling_window", alias = "rate_limit_algorithm")]
    rate_limit_algorithm: Algorithm,
    #[serde(default)]
    overrides: Vec<Override>,
}

/// When what was taken comes back.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum Algorithm {
    /// All of it when the window ends.
    FixedWindow,
    /// Each part as it gets older than the window.
    RollingWindow,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Override {
    #[serde(default)]
    dimensions: BTreeMap<String, String>,
    #[serde(default, alias = "max_amount", deserialize_with = "params::int64")]
    max_amount: i64,
    #[serde(
        default,
        alias = "valid_duration",
        deserialize_with = "params::duration"
    )]
    valid_duration: Duration,
}

#[derive(Debug)]
struct MemQuota {
    quotas: HashMap<String, Quota, RandomState>,
    deduplication: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    begun: Instant,
    /// Seeded anew in every process: dimensions come from requests.
    cells: HashMap<String, Cell, RandomState>,
    /// Grants by deduplication id: those of this interval and of the one before.
    recent: HashMap<String, Grant>,
    old: HashMap<String, Grant>,
    swapped: Instant,
    swept: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Grant {
    amount: i64,
    /// When it ends; never for a quota without a duration.
    until: Option<Instant>,
}

fn rolling_window() -> Algorithm {
    Algorithm::RollingWindow
}

fn one_second() -> Duration {
    Duration::from_secs(1)
}

pub(super) fn configure(json: &Json) -> Result<Box<dyn AdapterConfig>, String> {
    let params: Params = params::read(json)?;
    if params.min_deduplication_duration.is_zero() {
        return Err("minDeduplicationDuration: must be above 0".into());
    }
    Ok(Box::new(params))
}

impl AdapterConfig for Params {
    fn build(&self, _: &BuildContext) -> Result<Arc<dyn Adapter>, AdapterError> {
        let now = Instant::now();
        let quotas = self
            .quotas
            .iter()
            .map(|quota| (quota.name.clone(), quota.clone()));
        Ok(Arc::new(MemQuota {
            quotas: quotas.collect(),
            deduplication: self.min_deduplication_duration,
            state: Mutex::new(State {
                begun: now,
                cells: HashMap::default(),
                recent: HashMap::new(),
                old: HashMap::new(),
                swapped: now,
                swept: now,
            }),
        }))
    }
}

impl Adapter for MemQuota {
    fn allocate(
        &self,
        instance: &Values<'_>,
        request: &QuotaRequest<'_>,
    ) -> Result<QuotaResult, AdapterError> {
        let Payload::Quota { dimensions } = &instance.payload else {
            return Err(AdapterError::unsupported());
        };
        let Some(quota) = self.quotas.get(instance.name) else {
            return Err(AdapterError::new(format!(
                "unknown quota: {}",
                instance.name
            )));
        };
        let (max, duration) = quota.limit(dimensions);
        let key = cell_key(instance.name, dimensions);
        let now = Instant::now();
        let mut state = self.state.lock();
        state.turn(now, self.deduplication);
        if let Some(grant) = state.remembered(request.deduplication_id) {
            return Ok(QuotaResult {
                granted: grant.amount,
                valid_duration: grant
                    .until
                    .map_or(Duration::ZERO, |until| until.saturating_duration_since(now)),
                ..QuotaResult::default()
            });
        }
        let since = now.saturating_duration_since(state.begun);
        let tick = window::tick(since);
        let (amount, best_effort) = (request.amount, request.best_effort);
        let (granted, valid) = if let Some(cell) = state.cells.get_mut(&key) {
            let granted = cell.allocate(amount, best_effort, tick);
            (granted, cell.left(since).unwrap_or(duration))
        } else {
            if state.cells.len() >= MAX_CELLS {
                state.sweep(now, tick);
            }
            if state.cells.len() >= MAX_CELLS {
                return Err(AdapterError::new("too many different quota dimensions"));
            }
            let cell = state.cells.entry(key);
            let cell = cell.or_insert_with(|| Cell::new(max, duration, quota.rate_limit_algorithm));
            let granted = cell.allocate(amount, best_effort, tick);
            (granted, cell.left(since).unwrap_or(duration))
        };
        let until = (!duration.is_zero()).then(|| now + valid);
        if !request.deduplication_id.is_empty() && state.recent.len() < MAX_REMEMBERED {
            let grant = Grant {
                amount: granted,
                until,
            };
            state
                .recent
                .insert(request.deduplication_id.to_owned(), grant);
        }
        Ok(QuotaResult {
            granted,
            valid_duration: valid,
            ..QuotaResult::default()
        })
    }
}

impl Quota {
    /// The limit of the first override whose dimensions all agree, or the quota's own.
    fn limit(&self, dimensions: &Dimensions<'_>) -> (i64, Duration) {
        self.overrides
            .iter()
            .find(|over| agrees(&over.dimensions, dimensions))
            .map_or((self.max_amount, self.valid_duration), |over| {
                (over.max_amount, over.valid_duration)
            })
    }
}

/// Whether an override is meant: all that it names agrees, as text.
pub(super) fn agrees(wanted: &BTreeMap<String, String>, dimensions: &Dimensions<'_>) -> bool {
    wanted.iter().all(|(name, want)| {
        let mut known = dimensions.iter();
        known.any(|(known, value)| known == name && value.to_text() == want.as_str())
    })
}

impl State {
    /// Forgets deduplication ids that are two intervals old, and cells that hold nothing.
    fn turn(&mut self, now: Instant, interval: Duration) {
        let age = now.saturating_duration_since(self.swapped);
        if age >= interval {
            self.old = std::mem::take(&mut self.recent);
            if age >= interval * 2 {
                self.old.clear();
            }
            self.swapped = now;
        }
        if now.saturating_duration_since(self.swept) >= SWEEP {
            let tick = window::tick(now.saturating_duration_since(self.begun));
            self.sweep(now, tick);
        }
    }

    fn sweep(&mut self, now: Instant, tick: u64) {
        self.swept = now;
        self.cells.retain(|_, cell| !cell.is_idle(tick));
    }

    fn remembered(&self, id: &str) -> Option<Grant> {
        if id.is_empty() {
            return None;
        }
        self.recent.get(id).or_else(|| self.old.get(id)).copied()
    }
}

/// The instance's name, then `;name=value` for every dimension.
fn cell_key(name: &str, dimensions: &Dimensions<'_>) -> String {
    let mut key = String::with_capacity(128);
    key.push_str(name);
    for (name, value) in dimensions {
        key.push(';');
        key.push_str(name);
        key.push('=');
        match value {
            Val::Int64(number) => {
                // Writing to a string does not fail.
                let _ = write!(key, "{number:x}");
            }
            other => key.push_str(&other.to_text()),
        }
    }
    key
}

#[cfg(test)]
mod tests;
