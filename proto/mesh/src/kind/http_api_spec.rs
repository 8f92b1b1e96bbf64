//! Rules of HTTPAPISpec: operations of an API and their attributes.

use proto::istio::mixer::v1::Attributes;
use proto::istio::mixer::v1::attributes::attribute_value::Value;
use proto::istio::mixer::v1::config::client::api_key::Key;
use proto::istio::mixer::v1::config::client::httpapi_spec_pattern::Pattern;
use proto::istio::mixer::v1::config::client::{HttpapiSpec, HttpapiSpecPattern};

use crate::finding::Report;
use crate::re2;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(spec: &HttpapiSpec, _meta: &Metadata, report: &mut Report) {
    if let Some(attributes) = &spec.attributes {
        report.at("attributes", |report| check_attributes(attributes, report));
    }
    if spec.patterns.is_empty() {
        report.error_at(
            "patterns",
            "the API has no operations: give at least one pattern",
        );
    }
    report.each("patterns", &spec.patterns, check_pattern);
    report.each("apiKeys", &spec.api_keys, |report, key| {
        let (field, name) = match &key.key {
            Some(Key::Query(name)) => ("query", name),
            Some(Key::Header(name)) => ("header", name),
            Some(Key::Cookie(name)) => ("cookie", name),
            None => {
                return report
                    .error("the place of the key is missing: give query, header or cookie");
            }
        };
        if name.is_empty() {
            report.error_at(field, "the name is missing");
        }
    });
}

fn check_pattern(report: &mut Report, pattern: &HttpapiSpecPattern) {
    if let Some(attributes) = &pattern.attributes {
        report.at("attributes", |report| check_attributes(attributes, report));
    }
    if pattern.http_method.is_empty() {
        report.error_at("httpMethod", "the method is missing");
    }
    match &pattern.pattern {
        Some(Pattern::UriTemplate(template)) if template.is_empty() => {
            report.error_at("uriTemplate", "the template is empty");
        }
        Some(Pattern::UriTemplate(_)) => {}
        Some(Pattern::Regex(expression)) => report.require_at("regex", re2::check(expression)),
        None => report.error("the path is missing: give uriTemplate or regex"),
    }
}

fn check_attributes(attributes: &Attributes, report: &mut Report) {
    if attributes.attributes.is_empty() {
        report.error("there are no attributes: give at least one");
    }
    report.entries(
        "attributes",
        &attributes.attributes,
        |report, name, attribute| {
            if name.is_empty() {
                report.error("the attribute has no name");
            }
            let is_empty = match &attribute.value {
                None => true,
                Some(Value::StringValue(text)) => text.is_empty(),
                Some(Value::BytesValue(bytes)) => bytes.is_empty(),
                Some(Value::StringMapValue(map)) => map.entries.is_empty(),
                Some(
                    Value::Int64Value(_)
                    | Value::DoubleValue(_)
                    | Value::BoolValue(_)
                    | Value::TimestampValue(_)
                    | Value::DurationValue(_),
                ) => false,
            };
            if is_empty {
                report.error("the attribute has no value");
            }
        },
    );
}
