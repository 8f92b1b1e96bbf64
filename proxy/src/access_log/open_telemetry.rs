//! Access logs as OTLP log records, over gRPC or HTTP.

use std::rc::Rc;
use std::sync::Arc;

use prost::Message as _;
use proto::envoy::extensions::access_loggers::open_telemetry::v3 as wire;
use proto::opentelemetry::proto::collector::logs::v1::{
    ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use proto::opentelemetry::proto::common::v1::{
    AnyValue, ArrayValue, KeyValue, KeyValueList, any_value::Value,
};
use proto::opentelemetry::proto::logs::v1 as otlp;
use proto::opentelemetry::proto::resource::v1::Resource;

use crate::http::export::{Batch, BatchRules, Lease, current_worker};
use crate::http::otlp::OtlpTarget;
use crate::invalid::{At as _, Invalid, try_all};
use crate::server::ServerContext;
use crate::tracing::{CustomTag, attribute, nanoseconds};
use crate::worker::Worker;

use super::grpc::batch_rules;
use super::{Format, FormatContext};

const EXPORT: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";

/// A checked OpenTelemetry access log.
#[derive(Debug)]
pub(super) struct OpenTelemetryLog {
    exporter: Arc<Exporter>,
    lease: Arc<Lease>,
    rules: BatchRules,
    body: Option<Node>,
    attributes: Vec<(String, Node)>,
    tags: Vec<CustomTag>,
}

#[derive(Debug)]
struct Exporter {
    target: OtlpTarget,
    resource: Resource,
}

/// A value with formats in its strings.
#[derive(Debug)]
enum Node {
    Fixed(AnyValue),
    Text(Format),
    List(Vec<Node>),
    Fields(Vec<(String, Node)>),
}

impl OpenTelemetryLog {
    #[allow(
        deprecated,
        reason = "control planes still send the service in common_config"
    )]
    pub(super) fn try_new(
        config: &wire::OpenTelemetryAccessLogConfig,
        server: &Arc<ServerContext>,
    ) -> Result<Self, Invalid> {
        if !config.resource_detectors.is_empty() {
            return Err(Invalid::unsupported("resource_detectors"));
        }
        let common = config.common_config.clone().unwrap_or_default();
        let grpc = config
            .grpc_service
            .as_ref()
            .or(common.grpc_service.as_ref());
        let target = OtlpTarget::try_new(grpc, config.http_service.as_ref())?
            .ok_or_else(|| Invalid::new("grpc_service or http_service is needed"))?;
        let name = match config.log_name.as_str() {
            "" => &common.log_name,
            name => name,
        };
        let mut resource = Vec::new();
        if !config.disable_builtin_labels {
            let zone = server.node.locality.as_ref();
            for (key, value) in [
                ("log_name", name),
                ("zone_name", zone.map_or("", |locality| &locality.zone)),
                ("cluster_name", &server.node.cluster),
                ("node_name", &server.node.id),
            ] {
                resource.push(attribute(key, value));
            }
        }
        if let Some(more) = &config.resource_attributes {
            resource.extend(more.values.iter().cloned());
        }
        let mut tags = common
            .custom_tags
            .iter()
            .chain(&config.custom_tags)
            .peekable();
        let tags = if tags.peek().is_some() {
            try_all("custom_tags", tags, CustomTag::try_from)?
        } else {
            Vec::new()
        };
        let interval = config.buffer_flush_interval.as_ref();
        Ok(OpenTelemetryLog {
            exporter: Arc::new(Exporter {
                target,
                resource: Resource {
                    attributes: resource,
                    dropped_attributes_count: 0,
                },
            }),
            lease: Arc::default(),
            rules: batch_rules(
                interval.or(common.buffer_flush_interval.as_ref()),
                config.buffer_size_bytes.or(common.buffer_size_bytes),
            )?,
            body: config.body.as_ref().map(node).transpose().at("body")?,
            attributes: fields(config.attributes.as_ref()).at("attributes")?,
            tags,
        })
    }

    /// Adds the record of a stream that is over.
    pub(super) fn log(&self, context: &FormatContext<'_>) {
        let Some(worker) = current_worker() else {
            return;
        };
        let info = context.info;
        let mut attributes: Vec<KeyValue> = self
            .attributes
            .iter()
            .map(|(key, node)| pair(key, node.value(context)))
            .collect();
        for tag in &self.tags {
            if let Some(value) = tag.value(context) {
                attributes.push(attribute(tag.name.to_string(), value));
            }
        }
        let time = nanoseconds(info.start_time);
        let ids = info.span.as_ref().map(|span| span.ids());
        let (trace_id, span_id) = ids.unwrap_or_default();
        let record = otlp::LogRecord {
            time_unix_nano: time,
            observed_time_unix_nano: time,
            body: self.body.as_ref().map(|body| body.value(context)),
            attributes,
            trace_id,
            span_id,
            ..otlp::LogRecord::default()
        };
        let bytes = record.encoded_len();
        let batch = Batch::of(&self.lease, &worker, self.rules, || {
            let exporter = self.exporter.clone();
            Box::new(move |worker, records| Box::pin(exporter.clone().send(worker, records)))
        });
        batch.push(record, bytes);
    }
}

impl Exporter {
    async fn send(self: Arc<Self>, worker: Rc<Worker>, records: Vec<otlp::LogRecord>) {
        let count = records.len();
        let request = ExportLogsServiceRequest {
            resource_logs: vec![otlp::ResourceLogs {
                resource: Some(self.resource.clone()),
                scope_logs: vec![otlp::ScopeLogs {
                    scope: None,
                    log_records: records,
                    schema_url: String::new(),
                }],
                schema_url: String::new(),
            }],
        };
        let outcome = self
            .target
            .export::<ExportLogsServiceResponse>(&worker, EXPORT, &request)
            .await;
        if let Err(error) = outcome {
            tracing::debug!(target: "access_log", %error, count, "log records were lost");
        }
    }
}

impl Node {
    fn value(&self, context: &FormatContext<'_>) -> AnyValue {
        let value = match self {
            Node::Fixed(value) => return value.clone(),
            Node::Text(format) => Value::StringValue(format.text(context, "-")),
            Node::List(items) => Value::ArrayValue(ArrayValue {
                values: items.iter().map(|item| item.value(context)).collect(),
            }),
            Node::Fields(fields) => Value::KvlistValue(KeyValueList {
                values: fields
                    .iter()
                    .map(|(key, node)| pair(key, node.value(context)))
                    .collect(),
            }),
        };
        AnyValue { value: Some(value) }
    }
}

fn pair(key: &str, value: AnyValue) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(value),
        ..KeyValue::default()
    }
}

fn fields(list: Option<&KeyValueList>) -> Result<Vec<(String, Node)>, Invalid> {
    let list = list.map(|list| list.values.as_slice()).unwrap_or_default();
    try_all("values", list, |pair| {
        let empty = AnyValue::default();
        let value = node(pair.value.as_ref().unwrap_or(&empty)).at(&pair.key)?;
        Ok((pair.key.clone(), value))
    })
}

fn node(value: &AnyValue) -> Result<Node, Invalid> {
    Ok(match &value.value {
        Some(Value::StringValue(text)) => Node::Text(Format::parse(text)?),
        Some(Value::ArrayValue(list)) => Node::List(try_all("values", &list.values, node)?),
        Some(Value::KvlistValue(list)) => Node::Fields(fields(Some(list))?),
        _ => Node::Fixed(value.clone()),
    })
}
