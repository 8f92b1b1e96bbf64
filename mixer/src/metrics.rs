//! Mixer's own metrics, under the names that Istio's dashboards know.

use prometheus::{
    Counter, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry,
};

use crate::config::snapshot::Counts;
use crate::template::Variety;

const DURATIONS: [f64; 13] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 10.0,
];
const COUNTS: [f64; 11] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0];

/// All of them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    config: ConfigMetrics,
    pub(crate) handlers: HandlerMetrics,
    dispatches: IntCounterVec,
    seconds: HistogramVec,
    destinations_per_request: Histogram,
    instances_per_request: Histogram,
    /// By [`Variety`].
    varieties: [IntCounter; 3],
    pub(crate) throttled: IntCounter,
    /// Telemetry that adapters gave up.
    pub(crate) dropped: IntCounterVec,
    /// Kept for dashboards; the server sheds by rate and latency only.
    _predicted_cost_shed: Counter,
}

#[derive(Clone, Debug)]
struct ConfigMetrics {
    attributes: IntGauge,
    handlers: IntGauge,
    handler_errors: IntGauge,
    instances: IntGauge,
    instance_errors: IntGauge,
    rules: IntGauge,
    rule_errors: IntGauge,
    match_errors: IntGauge,
    unsatisfied: IntGauge,
    adapters: IntGauge,
    adapter_errors: IntGauge,
    templates: IntGauge,
    template_errors: IntGauge,
}

/// Lives of handlers.
#[derive(Clone, Debug)]
pub(crate) struct HandlerMetrics {
    pub(crate) new: IntCounter,
    pub(crate) reused: IntCounter,
    pub(crate) closed: IntCounter,
    pub(crate) build_failures: IntCounter,
}

/// Counters of one destination, looked up once.
#[derive(Clone, Debug)]
pub(crate) struct DispatchMetrics {
    good: (IntCounter, Histogram),
    bad: (IntCounter, Histogram),
}

/// What adapters gave up, by handler and reason.
pub(crate) fn dropped() -> IntCounterVec {
    let options = Opts::new(
        "mixer_adapter_dropped_total",
        "Telemetry that was given up: its queue was full, or it could not be sent.",
    );
    IntCounterVec::new(options, &["handler", "reason"])
        .expect("the name and the labels are constants, and valid")
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// When the registry has metrics of these names already.
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let labels = ["meshFunction", "handler", "adapter", "error"];
        let dispatches = IntCounterVec::new(
            Opts::new(
                "mixer_runtime_dispatches_total",
                "Total number of adapter dispatches handled by Mixer.",
            ),
            &labels,
        )?;
        let seconds = HistogramVec::new(
            HistogramOpts::new(
                "mixer_runtime_dispatch_duration_seconds",
                "Duration in seconds for adapter dispatches handled by Mixer.",
            )
            .buckets(DURATIONS.to_vec()),
            &labels,
        )?;
        let destinations_per_variety = IntCounterVec::new(
            Opts::new(
                "mixer_dispatcher_destinations_per_variety_total",
                "Number of Mixer adapter destinations by template variety type.",
            ),
            &["variety"],
        )?;
        registry.register(Box::new(dispatches.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(destinations_per_variety.clone()))?;
        let per_request = |name: &str, help: &str| -> prometheus::Result<Histogram> {
            let options = HistogramOpts::new(name, help).buckets(COUNTS.to_vec());
            let histogram = Histogram::with_opts(options)?;
            registry.register(Box::new(histogram.clone()))?;
            Ok(histogram)
        };
        let shed = Counter::new(
            "mixer_loadshedding_predicted_cost_shed_total",
            "Predicted cost of the requests that were shed.",
        )?;
        registry.register(Box::new(shed.clone()))?;
        let dropped = dropped();
        registry.register(Box::new(dropped.clone()))?;
        Ok(Self {
            dropped,
            config: ConfigMetrics::register(registry)?,
            handlers: HandlerMetrics::register(registry)?,
            destinations_per_request: per_request(
                "mixer_dispatcher_destinations_per_request",
                "Number of handlers dispatched per request by Mixer.",
            )?,
            instances_per_request: per_request(
                "mixer_dispatcher_instances_per_request",
                "Number of instances created per request by Mixer.",
            )?,
            dispatches,
            seconds,
            varieties: [Variety::Check, Variety::Quota, Variety::Report]
                .map(|variety| destinations_per_variety.with_label_values(&[variety.name()])),
            throttled: counter(
                registry,
                "mixer_loadshedding_requests_throttled",
                "The number of requests that have been dropped by the load shedder.",
            )?,
            _predicted_cost_shed: shed,
        })
    }

    /// Shows what the current configuration consists of.
    pub(crate) fn show_config(&self, counts: &Counts) {
        let set = |gauge: &IntGauge, count: usize| {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        let config = &self.config;
        set(&config.attributes, counts.attributes);
        set(&config.handlers, counts.handlers);
        set(&config.handler_errors, counts.handler_errors);
        set(&config.instances, counts.instances);
        set(&config.instance_errors, counts.instance_errors);
        set(&config.rules, counts.rules);
        set(&config.rule_errors, counts.rule_errors);
        set(&config.match_errors, counts.match_errors);
        set(&config.unsatisfied, counts.unsatisfied);
        set(&config.adapters, counts.adapters);
        set(&config.adapter_errors, counts.adapter_errors);
        set(&config.templates, counts.templates);
        set(&config.template_errors, counts.template_errors);
    }

    /// Counts a request's way through the rules of one variety.
    pub(crate) fn count_request(&self, variety: Variety, destinations: u32, instances: u32) {
        self.destinations_per_request
            .observe(f64::from(destinations));
        self.instances_per_request.observe(f64::from(instances));
        if destinations > 0 {
            self.varieties[variety as usize].inc_by(u64::from(destinations));
        }
    }

    /// The counters of a destination.
    pub(crate) fn dispatch(&self, template: &str, handler: &str, adapter: &str) -> DispatchMetrics {
        let of = |error: &str| {
            let labels = [template, handler, adapter, error];
            (
                self.dispatches.with_label_values(&labels),
                self.seconds.with_label_values(&labels),
            )
        };
        DispatchMetrics {
            good: of("false"),
            bad: of("true"),
        }
    }
}

impl DispatchMetrics {
    /// Counts a dispatch.
    pub(crate) fn count(&self, is_error: bool, seconds: f64) {
        let (dispatches, duration) = if is_error { &self.bad } else { &self.good };
        dispatches.inc();
        duration.observe(seconds);
    }
}

impl ConfigMetrics {
    fn register(registry: &Registry) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| -> prometheus::Result<IntGauge> {
            let gauge = IntGauge::new(format!("mixer_config_{name}"), help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        Ok(Self {
            adapters: gauge(
                "adapter_info_configs_total",
                "The number of known adapters in the current config.",
            )?,
            adapter_errors: gauge(
                "adapter_info_config_errors_total",
                "The number of errors encountered during processing of the adapter configuration.",
            )?,
            templates: gauge(
                "template_configs_total",
                "The number of known templates in the current config.",
            )?,
            template_errors: gauge(
                "template_config_errors_total",
                "The number of errors encountered during processing of the template configuration.",
            )?,
            attributes: gauge(
                "attributes_total",
                "The number of known attributes in the current config.",
            )?,
            handlers: gauge(
                "handler_configs_total",
                "The number of known handlers in the current config.",
            )?,
            handler_errors: gauge(
                "handler_validation_error_total",
                "The number of errors encountered because handler validation returned error.",
            )?,
            instances: gauge(
                "instance_configs_total",
                "The number of known instances in the current config.",
            )?,
            instance_errors: gauge(
                "instance_config_errors_total",
                "The number of errors encountered during processing of the instance configuration.",
            )?,
            rules: gauge(
                "rule_configs_total",
                "The number of known rules in the current config.",
            )?,
            rule_errors: gauge(
                "rule_config_errors_total",
                "The number of errors encountered during processing of the rule configuration.",
            )?,
            match_errors: gauge(
                "rule_config_match_error_total",
                "The number of rule conditions that was not parseable.",
            )?,
            unsatisfied: gauge(
                "unsatisfied_action_handler_total",
                "The number of actions that failed due to handlers being unavailable.",
            )?,
        })
    }
}

impl HandlerMetrics {
    fn register(registry: &Registry) -> prometheus::Result<Self> {
        // What dashboards expect of handlers that have workers of their own; ours have none.
        for name in [
            "handler_close_failures_total",
            "workers_total",
            "daemons_total",
        ] {
            counter(
                registry,
                &format!("mixer_handler_{name}"),
                "Nothing of the kind happens here.",
            )?;
        }
        Ok(Self {
            new: counter(
                registry,
                "mixer_handler_new_handlers_total",
                "The number of handlers that were newly created during config transition.",
            )?,
            reused: counter(
                registry,
                "mixer_handler_reused_handlers_total",
                "The number of handlers that were re-used during config transition.",
            )?,
            closed: counter(
                registry,
                "mixer_handler_closed_handlers_total",
                "The number of handlers that were closed during config transition.",
            )?,
            build_failures: counter(
                registry,
                "mixer_handler_handler_build_failures_total",
                "The number of handlers that failed creation during config transition.",
            )?,
        })
    }
}

fn counter(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    let counter = IntCounter::new(name, help)?;
    registry.register(Box::new(counter.clone()))?;
    Ok(counter)
}
