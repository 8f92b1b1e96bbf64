//! `prometheus`: metrics of all handlers, kept in one [`Registry`] and served on one port (42422).
//!
//! A metric outlives a configuration change as long as its description stays the same; one whose description changes makes
//! all of them start anew, as it did in Istio.

mod family;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use proto_component::task;
use serde::Deserialize;
use serde_json::Value as Json;
use tokio::time::Instant;

use super::{Adapter, AdapterConfig, AdapterError, BuildContext};
use crate::config::params;
use crate::lang::{Val, time_text};
use crate::template::{Payload, Values};
use family::Family;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Params {
    metrics: Vec<MetricInfo>,
    #[serde(alias = "metrics_expiration_policy")]
    metrics_expiration_policy: Option<ExpirationPolicy>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ExpirationPolicy {
    #[serde(
        alias = "metrics_expiry_duration",
        deserialize_with = "params::duration"
    )]
    metrics_expiry_duration: Duration,
    #[serde(
        default,
        alias = "expiry_check_interval_duration",
        deserialize_with = "params::some_duration"
    )]
    expiry_check_interval_duration: Option<Duration>,
}

/// A metric's description.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct MetricInfo {
    #[serde(default = "default_namespace")]
    namespace: String,
    name: String,
    #[serde(alias = "instance_name")]
    instance_name: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    kind: Kind,
    #[serde(default)]
    buckets: Option<Buckets>,
    #[serde(default, alias = "label_names")]
    label_names: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Kind {
    #[default]
    Unspecified,
    Gauge,
    Counter,
    Distribution,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
enum Buckets {
    #[serde(rename = "linearBuckets", alias = "linear_buckets")]
    Linear {
        #[serde(rename = "numFiniteBuckets", alias = "num_finite_buckets")]
        count: i32,
        width: f64,
        #[serde(default)]
        offset: f64,
    },
    #[serde(rename = "exponentialBuckets", alias = "exponential_buckets")]
    Exponential {
        #[serde(rename = "numFiniteBuckets", alias = "num_finite_buckets")]
        count: i32,
        #[serde(rename = "growthFactor", alias = "growth_factor")]
        growth: f64,
        scale: f64,
    },
    #[serde(rename = "explicitBuckets", alias = "explicit_buckets")]
    Explicit { bounds: Vec<f64> },
}

/// The metrics of every handler of the process.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    families: Mutex<BTreeMap<String, Arc<Family>>>,
}

/// Why something that was counted has no series of its own.
const OVERFLOW_REASON: &str = "too many label sets";

#[derive(Debug)]
struct Prometheus {
    /// By instance name.
    metrics: HashMap<String, Metric, foldhash::fast::RandomState>,
}

#[derive(Debug)]
struct Metric {
    family: Arc<Family>,
    /// Whether the instance's dimensions are known to be the labels.
    is_fitting: bool,
}

fn default_namespace() -> String {
    "istio".into()
}

pub(super) fn configure(json: &Json) -> Result<Box<dyn AdapterConfig>, String> {
    let params: Params = params::read(json)?;
    for (position, metric) in params.metrics.iter().enumerate() {
        metric
            .check()
            .map_err(|problem| format!("metrics[{position}].{problem}"))?;
    }
    if let Some(policy) = &params.metrics_expiration_policy {
        let interval = policy.expiry_check_interval_duration;
        if policy.metrics_expiry_duration.is_zero() {
            return Err("metricsExpirationPolicy.metricsExpiryDuration: must be above 0".into());
        }
        if interval.is_some_and(|interval| interval.is_zero()) {
            let field = "metricsExpirationPolicy.expiryCheckIntervalDuration";
            return Err(format!("{field}: must be above 0"));
        }
    }
    Ok(Box::new(params))
}

impl MetricInfo {
    fn check(&self) -> Result<(), String> {
        if self.instance_name.is_empty() {
            return Err("instanceName: the full name of an instance is needed".into());
        }
        if self.name.is_empty() {
            return Err("name: a name is needed".into());
        }
        if self.kind == Kind::Unspecified {
            return Err("kind: GAUGE, COUNTER or DISTRIBUTION is needed".into());
        }
        self.bounds().map(|_| ())
    }

    /// `namespace_name`, with the characters that a metric's name may have.
    fn full_name(&self) -> String {
        let name = self.name.strip_prefix('/').unwrap_or(&self.name);
        let name: String = name
            .chars()
            .filter(|c| *c != '-')
            .map(|c| if "/. ".contains(c) { '_' } else { c })
            .collect();
        format!("{}_{name}", self.namespace)
    }

    /// The upper bounds of a distribution's buckets, without the last, infinite one.
    fn bounds(&self) -> Result<Vec<f64>, String> {
        let count = |count: i32| match u16::try_from(count) {
            Ok(count @ 1..=1000) => Ok(count),
            _ => Err("buckets.numFiniteBuckets: must be from 1 to 1000".to_owned()),
        };
        let bounds: Vec<f64> = match &self.buckets {
            None => [
                0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
            ]
            .into(),
            Some(Buckets::Linear {
                count: finite,
                width,
                offset,
            }) => (0..=count(*finite)?)
                .map(|at| offset + f64::from(at) * width)
                .collect(),
            Some(Buckets::Exponential {
                count: finite,
                growth,
                scale,
            }) => (0..=count(*finite)?)
                .map(|at| scale * growth.powi(i32::from(at)))
                .collect(),
            Some(Buckets::Explicit { bounds }) => bounds.clone(),
        };
        if bounds.iter().any(|bound| !bound.is_finite())
            || bounds.windows(2).any(|pair| pair[0] >= pair[1])
        {
            return Err("buckets: bounds must be finite and in increasing order".into());
        }
        Ok(bounds)
    }
}

impl AdapterConfig for Params {
    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Adapter>, AdapterError> {
        let families = context
            .prometheus
            .register(&self.metrics, &context.overflowed())?;
        if let Some(policy) = &self.metrics_expiration_policy {
            let expiry = policy.metrics_expiry_duration;
            let interval = policy
                .expiry_check_interval_duration
                .unwrap_or(expiry / 2)
                .max(Duration::from_millis(10));
            let weak: Vec<_> = families.values().map(Arc::downgrade).collect();
            task::spawn("prometheus-expiry", async move {
                loop {
                    tokio::time::sleep(interval).await;
                    let alive: Vec<_> = weak.iter().filter_map(std::sync::Weak::upgrade).collect();
                    if alive.is_empty() {
                        return;
                    }
                    for family in alive {
                        family.expire(Instant::now(), expiry);
                    }
                }
            });
        }
        let is_fitting = |name: &str, family: &Family| {
            let mut instances = context.instances.iter();
            let instance = instances.find(|instance| instance.full_name == name);
            instance.is_some_and(|instance| {
                let (_, dimensions) = instance.dimension_types();
                family.fits(dimensions.iter().map(|(name, _)| *name))
            })
        };
        let metrics = families.into_iter().map(|(name, family)| {
            let is_fitting = is_fitting(&name, &family);
            (name, Metric { family, is_fitting })
        });
        Ok(Arc::new(Prometheus {
            metrics: metrics.collect(),
        }))
    }
}

impl BuildContext {
    fn overflowed(&self) -> ::prometheus::IntCounter {
        let labels = [self.handler.as_str(), OVERFLOW_REASON];
        self.dropped.with_label_values(&labels)
    }
}

impl Registry {
    /// Families for `metrics`, by instance name; those that are there already are kept.
    fn register(
        &self,
        metrics: &[MetricInfo],
        overflowed: &::prometheus::IntCounter,
    ) -> Result<HashMap<String, Arc<Family>>, AdapterError> {
        let mut known = self.families.lock();
        // What no handler uses any more is not shown any more.
        known.retain(|_, family| Arc::strong_count(family) > 1);
        let is_changed = |metric: &MetricInfo| {
            known
                .get(&metric.full_name())
                .is_some_and(|family| family.info() != metric)
        };
        if metrics.iter().any(is_changed) {
            known.clear();
        }
        let mut families = HashMap::new();
        for metric in metrics {
            let name = metric.full_name();
            let family = match known.get(&name) {
                Some(family) if family.info() == metric => family.clone(),
                Some(_) => {
                    let problem = format!("metric {name} is described twice, differently");
                    return Err(AdapterError::new(problem));
                }
                None => {
                    let bounds = metric.bounds().map_err(AdapterError::new)?;
                    let overflowed = overflowed.clone();
                    Arc::new(Family::new(&name, metric.clone(), bounds, overflowed))
                }
            };
            known.insert(name, family.clone());
            families.insert(metric.instance_name.clone(), family);
        }
        Ok(families)
    }

    /// All metrics in Prometheus' text form.
    pub(crate) fn expose(&self) -> String {
        let families: Vec<_> = self.families.lock().values().cloned().collect();
        let mut text = String::new();
        for family in families {
            family.expose(&mut text);
        }
        text
    }
}

impl Adapter for Prometheus {
    fn report(&self, instances: &[Values<'_>]) -> Result<(), AdapterError> {
        let now = Instant::now();
        let mut problem = None;
        for instance in instances {
            if let Err(error) = self.record(instance, now) {
                // The others are counted all the same.
                problem = Some(error);
            }
        }
        problem.map_or(Ok(()), Err)
    }
}

impl Prometheus {
    fn record(&self, instance: &Values<'_>, now: Instant) -> Result<(), AdapterError> {
        let Payload::Metric { value, dimensions } = &instance.payload else {
            return Err(AdapterError::unsupported());
        };
        let Some(metric) = self.metrics.get(instance.name) else {
            return Err(AdapterError::new(format!(
                "no metric is configured for instance {}",
                instance.name
            )));
        };
        let value = number(value).ok_or_else(|| {
            AdapterError::new(format!("the value of {} is no number", instance.name))
        })?;
        if !metric.is_fitting && !metric.family.fits(dimensions.iter().map(|(name, _)| *name)) {
            return Err(AdapterError::new(format!(
                "the dimensions of {} are not the labels of its metric",
                instance.name
            )));
        }
        metric.family.record(value, dimensions, now);
        Ok(())
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "metrics are doubles by definition"
)]
fn number(value: &Val<'_>) -> Option<f64> {
    match value {
        Val::Int64(number) => Some(*number as f64),
        Val::Double(number) => Some(*number),
        Val::Duration(nanos) => Some(*nanos as f64 / 1e9),
        Val::String(text) => text.parse().ok().or_else(|| {
            // A text that spells a duration is one.
            time_text::parse_duration(text).map(|nanos| nanos as f64 / 1e9)
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
