//! Rules of Telemetry: metrics, tracing, access logs.

use proto::istio::telemetry::v1alpha1::metric_selector::MetricMatch;
use proto::istio::telemetry::v1alpha1::metrics_overrides::tag_override::Operation;
use proto::istio::telemetry::v1alpha1::tracing::custom_tag::Type;
use proto::istio::telemetry::v1alpha1::{
    Metrics, MetricsOverrides, ProviderRef, Telemetry, Tracing,
};

use crate::finding::Report;
use crate::kind::selector;
use crate::resource::Metadata;

mod expression;

/// Reports what is wrong.
pub(super) fn check(spec: &Telemetry, _meta: &Metadata, report: &mut Report) {
    selector::check_target(
        spec.selector.as_ref(),
        spec.target_ref.as_ref(),
        &spec.target_refs,
        report,
    );
    report.each("metrics", &spec.metrics, check_metrics);
    if spec.tracing.len() > 1 {
        report.warning_at("tracing", "only the first entry is used");
    }
    report.each("tracing", &spec.tracing, check_tracing);
    report.each("accessLogging", &spec.access_logging, |report, logging| {
        if let Some(filter) = &logging.filter {
            report.require_at("filter.expression", expression::check(&filter.expression));
        }
        check_providers(&logging.providers, report);
    });
}

fn check_providers(providers: &[ProviderRef], report: &mut Report) {
    report.each("providers", providers, |report, provider| {
        if provider.name.is_empty() {
            report.error_at("name", "the provider's name is missing");
        }
    });
}

fn check_metrics(report: &mut Report, metrics: &Metrics) {
    check_providers(&metrics.providers, report);
    report.each("overrides", &metrics.overrides, check_override);
}

fn check_override(report: &mut Report, change: &MetricsOverrides) {
    report.entries(
        "tagOverrides",
        &change.tag_overrides,
        |report, name, tag| {
            if name.is_empty() {
                report.warning("the tag has no name");
            }
            match (tag.operation(), tag.value.is_empty()) {
                (Operation::Upsert, true) => report.error_at("value", "UPSERT needs a value"),
                (Operation::Remove, false) => report.error_at("value", "REMOVE takes no value"),
                (Operation::Upsert, false) | (Operation::Remove, true) => {}
            }
        },
    );
    if let Some(MetricMatch::CustomMetric(name)) = change
        .r#match
        .as_ref()
        .and_then(|selector| selector.metric_match.as_ref())
        && name.is_empty()
    {
        report.error_at("match.customMetric", "the metric's name is missing");
    }
}

fn check_tracing(report: &mut Report, tracing: &Tracing) {
    if tracing.providers.len() > 1 {
        report.warning_at("providers", "only the first provider is used");
    }
    check_providers(&tracing.providers, report);
    if let Some(percent) = tracing.random_sampling_percentage
        && !(0.0..=100.0).contains(&percent)
    {
        report.error_at(
            "randomSamplingPercentage",
            format!("the percentage {percent} is not in 0..=100"),
        );
    }
    report.entries("customTags", &tracing.custom_tags, |report, name, tag| {
        if name.is_empty() {
            report.error("the tag has no name");
        }
        let (field, value) = match &tag.r#type {
            Some(Type::Literal(literal)) => ("literal.value", &literal.value),
            Some(Type::Environment(variable)) => ("environment.name", &variable.name),
            Some(Type::Header(header)) => ("header.name", &header.name),
            Some(Type::Formatter(formatter)) => ("formatter.value", &formatter.value),
            None => return,
        };
        if value.is_empty() {
            report.error_at(field, "the value is missing");
        }
    });
}
