//! Pilot's metrics, under Istio's names.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

use crate::jwks::Counters;
use crate::push_context::status::{Metric, PushStatus};
use crate::xds::ResourceType;
use crate::xds::resource_type::TYPES;

/// All of them; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Connected proxies.
    pub xds: IntGauge,
    /// Responses sent by type (`cds`, …) and failures (`cds_senderr`).
    pub pushes: IntCounterVec,
    /// Seconds to make and send a type's resources.
    pub push_time: HistogramVec,
    /// Seconds from a change to the beginning of a proxy's push.
    pub queue_time: Histogram,
    /// Seconds from a change to the end of a proxy's push.
    pub convergence_time: Histogram,
    /// Proxies that refuse, by type, node and code; gone once they accept.
    pub rejects: [IntGaugeVec; TYPES],
    /// Refusals.
    pub total_rejects: IntCounter,
    /// RDS requests that answered an old response.
    pub expired_nonce: IntCounter,
    /// Pushes that a proxy did not read in time.
    pub write_timeout: IntCounter,
    /// Failures of our own.
    pub internal_errors: IntCounter,
    /// Changes that came in, by type: config, eds, svc.
    pub inbound_updates: IntCounterVec,
    /// Services known.
    pub services: IntGauge,
    /// Virtual services known.
    pub virtual_services: IntGauge,
    /// Seconds to make a push context.
    pub push_context_time: Histogram,
    /// Key sets that were fetched, and failures.
    pub jwks: Counters,
    /// What the API server tells, by kind and event.
    pub cluster_events: IntCounterVec,
}

/// What is wrong in the newest push context, counted when somebody asks.
struct Troubles<F> {
    gauges: Vec<(Metric, IntGauge)>,
    newest: F,
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| IntGauge::new(name, help);
        let counter = |name: &str, help: &str| IntCounter::new(name, help);
        let counters = |name: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(name, help), labels)
        };
        let times = vec![0.001, 0.01, 0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0];
        let histogram = |name: &str, help: &str| {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(times.clone()))
        };
        let metrics = Metrics {
            xds: gauge("pilot_xds", "Connected proxies.")?,
            pushes: counters(
                "pilot_xds_pushes",
                "Responses and failures by type.",
                &["type"],
            )?,
            push_time: HistogramVec::new(
                HistogramOpts::new(
                    "pilot_xds_push_time",
                    "Seconds to make and send a type's resources.",
                )
                .buckets(times.clone()),
                &["type"],
            )?,
            queue_time: histogram(
                "pilot_proxy_queue_time",
                "Seconds from a change to the beginning of a proxy's push.",
            )?,
            convergence_time: histogram(
                "pilot_proxy_convergence_time",
                "Seconds from a change to the end of a proxy's push.",
            )?,
            rejects: rejects()?,
            total_rejects: counter("pilot_total_xds_rejects", "Refused responses.")?,
            expired_nonce: counter(
                "pilot_rds_expired_nonce",
                "RDS requests that answered an old response.",
            )?,
            write_timeout: counter(
                "pilot_xds_write_timeout",
                "Pushes that were not read in time.",
            )?,
            internal_errors: counter(
                "pilot_total_xds_internal_errors",
                "Failures of Pilot itself.",
            )?,
            inbound_updates: counters(
                "pilot_inbound_updates",
                "Changes that came in, by type.",
                &["type"],
            )?,
            services: gauge("pilot_services", "Services known.")?,
            virtual_services: gauge("pilot_virt_services", "Virtual services known.")?,
            push_context_time: histogram(
                "pilot_push_context_init_seconds",
                "Seconds to make a push context.",
            )?,
            jwks: jwks_counters()?,
            cluster_events: cluster_events()?,
        };
        metrics.add_to(registry)?;
        register_info(registry)?;
        Ok(metrics)
    }

    fn add_to(&self, registry: &Registry) -> prometheus::Result<()> {
        let collectors: Vec<Box<dyn Collector>> = vec![
            Box::new(self.xds.clone()),
            Box::new(self.pushes.clone()),
            Box::new(self.push_time.clone()),
            Box::new(self.queue_time.clone()),
            Box::new(self.convergence_time.clone()),
            Box::new(self.total_rejects.clone()),
            Box::new(self.expired_nonce.clone()),
            Box::new(self.write_timeout.clone()),
            Box::new(self.internal_errors.clone()),
            Box::new(self.inbound_updates.clone()),
            Box::new(self.services.clone()),
            Box::new(self.virtual_services.clone()),
            Box::new(self.push_context_time.clone()),
            Box::new(self.cluster_events.clone()),
            Box::new(self.jwks.success.clone()),
            Box::new(self.jwks.failure.clone()),
        ];
        for collector in collectors {
            registry.register(collector)?;
        }
        for reject in &self.rejects {
            registry.register(Box::new(reject.clone()))?;
        }
        Ok(())
    }
}

/// Counts the troubles of the push context that `newest` gives, whenever metrics are read.
///
/// # Errors
/// When a name is taken.
pub fn count_troubles(
    registry: &Registry,
    newest: impl Fn() -> Option<Arc<PushStatus>> + Send + Sync + 'static,
) -> prometheus::Result<()> {
    let gauge = |metric: Metric| Ok((metric, IntGauge::new(metric.name(), metric.help())?));
    let gauges: prometheus::Result<_> = Metric::ALL.into_iter().map(gauge).collect();
    registry.register(Box::new(Troubles {
        gauges: gauges?,
        newest,
    }))
}

impl<F: Fn() -> Option<Arc<PushStatus>> + Send + Sync> Collector for Troubles<F> {
    fn desc(&self) -> Vec<&Desc> {
        let gauges = self.gauges.iter();
        gauges.flat_map(|(_, gauge)| gauge.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let newest = (self.newest)().unwrap_or_default();
        let gauges = self.gauges.iter();
        let counted = gauges.flat_map(|(metric, gauge)| {
            gauge.set(i64::try_from(newest.count(*metric)).unwrap_or(i64::MAX));
            gauge.collect()
        });
        counted.collect()
    }
}

/// By [`ResourceType::index`].
fn rejects() -> prometheus::Result<[IntGaugeVec; TYPES]> {
    let gauge = |kind: ResourceType| {
        let name = format!("pilot_xds_{}_reject", kind.short_name());
        let help = "Proxies that refuse what they were sent.";
        IntGaugeVec::new(Opts::new(name, help), &["node", "err"])
    };
    let [a, b, c, d, e, f, g, h] = ResourceType::ALL.map(gauge);
    Ok([a?, b?, c?, d?, e?, f?, g?, h?])
}

fn cluster_events() -> prometheus::Result<IntCounterVec> {
    let opts = Opts::new("pilot_k8s_reg_events", "What the API server tells.");
    IntCounterVec::new(opts, &["type", "event"])
}

fn jwks_counters() -> prometheus::Result<Counters> {
    Ok(Counters {
        success: IntCounter::new(
            "pilot_jwks_resolver_network_fetch_success_total",
            "Key sets that were fetched.",
        )?,
        failure: IntCounter::new(
            "pilot_jwks_resolver_network_fetch_fail_total",
            "Key sets that could not be fetched.",
        )?,
    })
}

/// The version, as a label.
fn register_info(registry: &Registry) -> prometheus::Result<()> {
    let info = GaugeVec::new(Opts::new("pilot_info", "Pilot's version."), &["version"])?;
    info.with_label_values(&[env!("CARGO_PKG_VERSION")])
        .set(1.0);
    registry.register(Box::new(info))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn troubles_are_those_of_the_moment() {
        let registry = Registry::new();
        let status = Arc::new(PushStatus::default());
        let newest = Arc::clone(&status);
        count_troubles(&registry, move || Some(Arc::clone(&newest))).unwrap();
        let count = || {
            let families = registry.gather();
            let found = families
                .iter()
                .find(|family| family.name() == Metric::InvalidRoute.name());
            found.unwrap().get_metric()[0].get_gauge().get_value()
        };
        assert!(count().abs() < f64::EPSILON);
        status.record(Metric::InvalidRoute, "a", "", "leads nowhere");
        assert!((count() - 1.0).abs() < f64::EPSILON);
    }
}
