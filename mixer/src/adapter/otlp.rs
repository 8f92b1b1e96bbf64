//! `otlp`: log entries and spans to an OpenTelemetry collector, over gRPC. The 1.4 line had no such adapter.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use prost::Message as _;
use proto::opentelemetry::proto::collector::logs::v1::ExportLogsServiceRequest;
use proto::opentelemetry::proto::collector::trace::v1::ExportTraceServiceRequest;
use proto::opentelemetry::proto::common::v1::{AnyValue, KeyValue, KeyValueList, any_value};
use proto::opentelemetry::proto::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use proto::opentelemetry::proto::resource::v1::Resource;
use proto::opentelemetry::proto::trace::v1::{ResourceSpans, ScopeSpans, Span as WireSpan, span};
use serde::Deserialize;
use serde_json::Value as Json;

use super::queue::{Queue, Rules};
use super::remote::Caller;
use super::span::Span;
use super::zipkin::check_probability;
use super::{Adapter, AdapterConfig, AdapterError, BuildContext};
use crate::config::params;
use crate::lang::{Val, time_text};
use crate::template::{Payload, Values};

const LOGS: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
const TRACES: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const DEADLINE: Duration = Duration::from_secs(5);
const RULES: Rules = Rules {
    capacity: 10_000,
    batch: 512,
    interval: Duration::from_secs(1),
    deadline: Duration::from_secs(6),
};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Params {
    /// `HOST:PORT` or `unix:///PATH` of the collector.
    address: String,
    #[serde(alias = "service_name")]
    service_name: String,
    #[serde(alias = "sample_probability")]
    sample_probability: f64,
}

#[derive(Debug)]
struct Otlp {
    probability: f64,
    queue: Queue<Item>,
}

/// One of either.
#[derive(Clone, Debug)]
enum Item {
    Log(Box<LogRecord>),
    Span(Box<Span>),
}

impl Default for Params {
    fn default() -> Self {
        Self {
            address: "localhost:4317".into(),
            service_name: "istio-mixer".into(),
            sample_probability: 1.0,
        }
    }
}

pub(super) fn configure(json: &Json) -> Result<Box<dyn AdapterConfig>, String> {
    let params: Params = params::read(json)?;
    Caller::new(&params.address, None)?;
    check_probability(params.sample_probability)?;
    Ok(Box::new(params))
}

impl AdapterConfig for Params {
    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Adapter>, AdapterError> {
        let caller = Caller::new(&self.address, None).map_err(AdapterError::new)?;
        let name = self.service_name.clone();
        let send = Box::new(move |items: Vec<Item>| -> BoxFuture<'static, _> {
            let (caller, name) = (caller.clone(), name.clone());
            Box::pin(async move { export(&caller, &name, items).await })
        });
        Ok(Arc::new(Otlp {
            probability: self.sample_probability,
            queue: Queue::start("otlp", context, RULES, send),
        }))
    }
}

impl Adapter for Otlp {
    fn report(&self, instances: &[Values<'_>]) -> Result<(), AdapterError> {
        for instance in instances {
            if let Payload::LogEntry { .. } = &instance.payload {
                self.queue.push(Item::Log(Box::new(record(instance)?)));
            } else if let Some(span) = Span::read(instance)?
                && span.is_sampled(self.probability)
            {
                self.queue.push(Item::Span(Box::new(span)));
            }
        }
        Ok(())
    }
}

async fn export(caller: &Caller, name: &str, items: Vec<Item>) -> Result<(), String> {
    let (mut logs, mut spans) = (Vec::new(), Vec::new());
    for item in items {
        match item {
            Item::Log(record) => logs.push(*record),
            Item::Span(span) => spans.push(*span),
        }
    }
    if !logs.is_empty() {
        let request = ExportLogsServiceRequest {
            resource_logs: vec![ResourceLogs {
                resource: Some(resource(name)),
                scope_logs: vec![ScopeLogs {
                    log_records: logs,
                    ..ScopeLogs::default()
                }],
                ..ResourceLogs::default()
            }],
        };
        call(caller, LOGS, request.encode_to_vec()).await?;
    }
    if !spans.is_empty() {
        // A span's service is the end that reports it.
        let resource_spans = spans.iter().map(|span| {
            let service = match span.ends().0.name.as_str() {
                "" => name,
                service => service,
            };
            ResourceSpans {
                resource: Some(resource(service)),
                scope_spans: vec![ScopeSpans {
                    spans: vec![wire_span(span)],
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            }
        });
        let request = ExportTraceServiceRequest {
            resource_spans: resource_spans.collect(),
        };
        call(caller, TRACES, request.encode_to_vec()).await?;
    }
    Ok(())
}

async fn call(caller: &Caller, method: &str, message: Vec<u8>) -> Result<(), String> {
    let answered = caller.call(method, message, None, DEADLINE).await;
    answered.map(|_| ()).map_err(|status| status.to_string())
}

fn resource(service: &str) -> Resource {
    Resource {
        attributes: vec![text("service.name", service)],
        ..Resource::default()
    }
}

fn text(key: &str, value: &str) -> KeyValue {
    key_value(key, any_value::Value::StringValue(value.to_owned()))
}

fn key_value(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

/// A log record: the instance's name is its event, its variables are attributes.
fn record(instance: &Values<'_>) -> Result<LogRecord, AdapterError> {
    let Payload::LogEntry {
        variables,
        timestamp,
        severity,
    } = &instance.payload
    else {
        return Err(AdapterError::unsupported());
    };
    let mut attributes: Vec<_> = variables
        .iter()
        .map(|(name, value)| key_value(name, any_value(value)))
        .collect();
    attributes.push(text("instance", instance.name));
    let now = nanos(SystemTime::now().into());
    Ok(LogRecord {
        time_unix_nano: timestamp.map_or(now, nanos),
        observed_time_unix_nano: now,
        severity_number: severity_number(severity),
        severity_text: severity.to_string(),
        attributes,
        ..LogRecord::default()
    })
}

fn nanos(time: prost_types::Timestamp) -> u64 {
    let nanos = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    u64::try_from(nanos).unwrap_or(0)
}

/// The first number of each of OpenTelemetry's ranges; 0 for a word that says nothing.
fn severity_number(severity: &str) -> i32 {
    match severity.to_ascii_lowercase().as_str() {
        "debug" => 5,
        "info" | "informational" | "notice" | "default" => 9,
        "warn" | "warning" => 13,
        "err" | "error" => 17,
        "fatal" | "critical" | "alert" | "emergency" => 21,
        _ => 0,
    }
}

fn any_value(value: &Val<'_>) -> any_value::Value {
    match value {
        Val::Int64(number) => any_value::Value::IntValue(*number),
        Val::Double(number) => any_value::Value::DoubleValue(*number),
        Val::Bool(flag) => any_value::Value::BoolValue(*flag),
        Val::Duration(nanos) => any_value::Value::StringValue(time_text::format_duration(*nanos)),
        Val::StringMap(map) => {
            let values = map.iter().map(|(key, value)| text(key, value)).collect();
            any_value::Value::KvlistValue(KeyValueList { values })
        }
        Val::String(_) | Val::Timestamp(_) | Val::Ip(_) => {
            any_value::Value::StringValue(value.to_text().into_owned())
        }
    }
}

fn wire_span(span: &Span) -> WireSpan {
    let kind = if span.is_client {
        span::SpanKind::Client
    } else {
        span::SpanKind::Server
    };
    let mut attributes: Vec<_> = span.tags.iter().map(|(k, v)| text(k, v)).collect();
    if let Some(ip) = span.ends().1.ip {
        attributes.push(text("network.peer.address", &ip.to_string()));
    }
    WireSpan {
        trace_id: span.trace_id.to_be_bytes().to_vec(),
        span_id: span.id.to_be_bytes().to_vec(),
        parent_span_id: span
            .parent
            .map_or(Vec::new(), |id| id.to_be_bytes().to_vec()),
        name: span.name.clone(),
        kind: kind.into(),
        start_time_unix_nano: span.start,
        end_time_unix_nano: span.end,
        attributes,
        ..WireSpan::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::span::tests::instance;
    use super::*;

    #[test]
    fn entries_and_spans_become_records() {
        let span = wire_span(&Span::read(&instance(false, false)).unwrap().unwrap());
        assert_eq!(span.kind, i32::from(span::SpanKind::Server));
        assert_eq!((span.trace_id.len(), span.span_id.len()), (16, 8));
        let entry = Values {
            name: "log.instance.ns",
            payload: Payload::LogEntry {
                variables: vec![("n", Val::Int64(1)), ("d", Val::Duration(1_500_000))],
                timestamp: None,
                severity: "Warning".into(),
            },
        };
        let record = record(&entry).unwrap();
        assert_eq!(record.severity_number, 13);
        assert_eq!(record.attributes[1], text("d", "1.5ms"));
        assert_eq!(record.attributes[2], text("instance", "log.instance.ns"));
        assert!(record.time_unix_nano > 0);
    }
}
