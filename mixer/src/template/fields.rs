//! The expressions of each template's fields: read, type-checked, compiled; evaluated in the order in which they are declared.

use std::borrow::Cow;
use std::collections::BTreeMap;

use proto_mesh::attribute::ValueType;
use serde::Deserialize;
use serde_json::Value as Json;

use super::record::RecordFields;
use super::remote::RemoteFields;
use super::{Dimensions, InstanceKind, Payload, Peer, SharedSets, Template};
use crate::attributes::{Bag, Record, Vocabulary};
use crate::config::params;
use crate::lang::{self, EvalError, Expression, Val};

/// Compiled fields.
#[derive(Debug)]
pub(crate) enum Fields {
    Nothing,
    Record(RecordFields),
    Remote(RemoteFields),
    ListEntry {
        value: Expression,
    },
    Quota {
        dimensions: Named,
    },
    LogEntry {
        variables: Named,
        timestamp: Option<Expression>,
        severity: Option<Expression>,
        resource: Resource,
    },
    Metric {
        value: Expression,
        dimensions: Named,
        resource: Resource,
    },
    Workloads {
        source: PeerFields,
        destination: PeerFields,
        destination_port: Option<Expression>,
    },
}

/// One end of a request.
#[derive(Debug)]
pub(crate) struct PeerFields {
    uid: Option<Expression>,
    ip: Option<Expression>,
}

/// Expressions by name, sorted.
pub(crate) type Named = Vec<(Box<str>, Expression)>;

/// What is monitored; no adapter here looks at it, but its expressions must hold.
#[derive(Debug)]
pub(crate) struct Resource {
    kind: Option<Expression>,
    dimensions: Named,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct NothingParams {}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct ListEntryParams {
    value: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct QuotaParams {
    dimensions: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct LogEntryParams {
    variables: BTreeMap<String, String>,
    timestamp: String,
    severity: String,
    #[serde(alias = "monitored_resource_type")]
    monitored_resource_type: String,
    #[serde(alias = "monitored_resource_dimensions")]
    monitored_resource_dimensions: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct MetricParams {
    value: Json,
    dimensions: BTreeMap<String, String>,
    #[serde(alias = "monitored_resource_type")]
    monitored_resource_type: String,
    #[serde(alias = "monitored_resource_dimensions")]
    monitored_resource_dimensions: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct WorkloadsParams {
    #[serde(alias = "source_uid")]
    source_uid: String,
    #[serde(alias = "source_ip")]
    source_ip: String,
    #[serde(alias = "destination_uid")]
    destination_uid: String,
    #[serde(alias = "destination_ip")]
    destination_ip: String,
    #[serde(alias = "destination_port")]
    destination_port: String,
}

/// What failed, by field name.
pub(super) type Failed<'a> = (&'a str, EvalError);

/// The two peers whose workloads are looked up.
fn workloads(params: &WorkloadsParams, vocabulary: &Vocabulary) -> Result<Fields, String> {
    let text = ValueType::String;
    let address = ValueType::IpAddress;
    let expression = |field, text: &str, want| optional(field, text, want, vocabulary);
    Ok(Fields::Workloads {
        source: PeerFields {
            uid: expression("source_uid", &params.source_uid, text)?,
            ip: expression("source_ip", &params.source_ip, address)?,
        },
        destination: PeerFields {
            uid: expression("destination_uid", &params.destination_uid, text)?,
            ip: expression("destination_ip", &params.destination_ip, address)?,
        },
        destination_port: expression(
            "destination_port",
            &params.destination_port,
            ValueType::Int64,
        )?,
    })
}

impl Fields {
    pub(super) fn compile(
        kind: &InstanceKind,
        json: &Json,
        vocabulary: &Vocabulary,
    ) -> Result<Self, String> {
        let template = match kind {
            InstanceKind::Compiled(template) => *template,
            InstanceKind::Remote(template) => {
                let fields = RemoteFields::compile(template, json, vocabulary)?;
                return Ok(Fields::Remote(fields));
            }
        };
        Ok(match template {
            Template::ApiKey | Template::Authorization | Template::Edge | Template::TraceSpan => {
                Fields::Record(RecordFields::compile(template, json, vocabulary)?)
            }
            Template::CheckNothing | Template::ReportNothing => {
                params::read::<NothingParams>(json)?;
                Fields::Nothing
            }
            Template::Kubernetes => workloads(&params::read(json)?, vocabulary)?,
            Template::ListEntry => {
                let params: ListEntryParams = params::read(json)?;
                Fields::ListEntry {
                    value: any("value", &params.value, vocabulary)?,
                }
            }
            Template::Quota => {
                let params: QuotaParams = params::read(json)?;
                Fields::Quota {
                    dimensions: named("dimensions", params.dimensions, vocabulary)?,
                }
            }
            Template::LogEntry => {
                let params: LogEntryParams = params::read(json)?;
                Fields::LogEntry {
                    variables: named("variables", params.variables, vocabulary)?,
                    timestamp: optional(
                        "timestamp",
                        &params.timestamp,
                        ValueType::Timestamp,
                        vocabulary,
                    )?,
                    severity: optional(
                        "severity",
                        &params.severity,
                        ValueType::String,
                        vocabulary,
                    )?,
                    resource: resource(
                        &params.monitored_resource_type,
                        params.monitored_resource_dimensions,
                        vocabulary,
                    )?,
                }
            }
            Template::Metric => {
                let params: MetricParams = params::read(json)?;
                // `value: 1` is a number in YAML and an expression all the same.
                let value = match &params.value {
                    Json::String(text) => text.clone(),
                    Json::Null => String::new(),
                    other => other.to_string(),
                };
                Fields::Metric {
                    value: any("value", &value, vocabulary)?,
                    dimensions: named("dimensions", params.dimensions, vocabulary)?,
                    resource: resource(
                        &params.monitored_resource_type,
                        params.monitored_resource_dimensions,
                        vocabulary,
                    )?,
                }
            }
        })
    }

    pub(super) fn eval<'a, R: Record>(
        &'a self,
        bag: &Bag<'a>,
        record: &mut R,
        sets: &mut SharedSets<'a>,
        set: usize,
    ) -> Result<Payload<'a>, Failed<'a>> {
        let value = |expression: &'a Expression, record: &mut R| {
            expression
                .eval(bag, record)
                .map_err(|error| ("value", error))
        };
        Ok(match self {
            Fields::Nothing => Payload::Nothing,
            Fields::Record(fields) => Payload::Record(fields.eval(bag, record)?),
            Fields::Remote(fields) => fields.eval(bag, record)?,
            Fields::Workloads {
                source,
                destination,
                destination_port,
            } => {
                let port = destination_port.as_ref();
                Payload::Workloads {
                    source: source.eval("source", bag, record)?,
                    destination: destination.eval("destination", bag, record)?,
                    destination_port: match eval_optional("destination_port", port, bag, record)? {
                        Some(Val::Int64(port)) => port,
                        _ => 0,
                    },
                }
            }
            Fields::ListEntry { value: entry } => Payload::ListEntry {
                value: value(entry, record)?,
            },
            Fields::Quota { dimensions } => Payload::Quota {
                dimensions: eval_named(dimensions, bag, record)?,
            },
            Fields::LogEntry {
                variables,
                timestamp,
                severity,
                resource,
            } => {
                let variables = eval_named(variables, bag, record)?;
                let timestamp = match eval_optional("timestamp", timestamp.as_ref(), bag, record)? {
                    Some(Val::Timestamp(time)) => Some(time),
                    _ => None,
                };
                let severity = match eval_optional("severity", severity.as_ref(), bag, record)? {
                    Some(Val::String(text)) => text,
                    _ => Cow::Borrowed(""),
                };
                resource.eval(bag, record)?;
                Payload::LogEntry {
                    variables,
                    timestamp,
                    severity,
                }
            }
            Fields::Metric {
                value: expression,
                dimensions,
                resource,
            } => {
                let value = value(expression, record)?;
                let dimensions = sets.get(set, || eval_named(dimensions, bag, record))?;
                resource.eval(bag, record)?;
                Payload::Metric { value, dimensions }
            }
        })
    }
}

impl PeerFields {
    fn eval<'a, R: Record>(
        &'a self,
        field: &'a str,
        bag: &Bag<'a>,
        record: &mut R,
    ) -> Result<Peer<'a>, Failed<'a>> {
        let uid = eval_optional(field, self.uid.as_ref(), bag, record)?;
        let ip = eval_optional(field, self.ip.as_ref(), bag, record)?;
        Ok(Peer {
            uid: match uid {
                Some(Val::String(uid)) => uid,
                _ => Cow::Borrowed(""),
            },
            ip: match ip {
                Some(Val::Ip(ip)) => Some(ip),
                _ => None,
            },
        })
    }
}

impl Resource {
    fn eval<'a, R: Record>(&'a self, bag: &Bag<'a>, record: &mut R) -> Result<(), Failed<'a>> {
        eval_optional("monitoredResourceType", self.kind.as_ref(), bag, record)?;
        eval_named(&self.dimensions, bag, record)?;
        Ok(())
    }
}

pub(super) fn any(field: &str, text: &str, vocabulary: &Vocabulary) -> Result<Expression, String> {
    if text.is_empty() {
        return Err(format!("{field}: an expression is needed"));
    }
    lang::compile(text, vocabulary).map_err(|error| format!("{field}: {error}"))
}

pub(super) fn optional(
    field: &str,
    text: &str,
    want: ValueType,
    vocabulary: &Vocabulary,
) -> Result<Option<Expression>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    lang::compile_as(text, want, vocabulary)
        .map(Some)
        .map_err(|error| format!("{field}: {error}"))
}

pub(super) fn named(
    field: &str,
    expressions: BTreeMap<String, String>,
    vocabulary: &Vocabulary,
) -> Result<Named, String> {
    expressions
        .into_iter()
        .map(|(name, text)| {
            let expression = any(&format!("{field}[{name}]"), &text, vocabulary)?;
            Ok((name.into_boxed_str(), expression))
        })
        .collect()
}

fn resource(
    kind: &str,
    dimensions: BTreeMap<String, String>,
    vocabulary: &Vocabulary,
) -> Result<Resource, String> {
    Ok(Resource {
        kind: optional("monitoredResourceType", kind, ValueType::String, vocabulary)?,
        dimensions: named("monitoredResourceDimensions", dimensions, vocabulary)?,
    })
}

pub(super) fn eval_optional<'a, R: Record>(
    field: &'a str,
    expression: Option<&'a Expression>,
    bag: &Bag<'a>,
    record: &mut R,
) -> Result<Option<Val<'a>>, Failed<'a>> {
    expression
        .map(|expression| expression.eval(bag, record).map_err(|error| (field, error)))
        .transpose()
}

pub(super) fn eval_named<'a, R: Record>(
    expressions: &'a Named,
    bag: &Bag<'a>,
    record: &mut R,
) -> Result<Dimensions<'a>, Failed<'a>> {
    let mut values = Vec::with_capacity(expressions.len());
    for (name, expression) in expressions {
        let name: &'a str = name;
        let value = expression
            .eval(bag, record)
            .map_err(|error| (name, error))?;
        values.push((name, value));
    }
    Ok(values)
}
