//! `bypass`: hands instances of compiled templates to an adapter out of process, without declaring either. For trying an
//! adapter out.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use prost::Message as _;
use prost_types::Any;
use proto::istio::policy::v1beta1::Value;
use serde::Deserialize;
use serde_json::Value as Json;

use super::queue::Queue;
use super::remote::session::Session;
use super::remote::{self, Caller, Calls, DEFAULT_TIMEOUT};
use super::{
    Adapter, AdapterConfig, AdapterError, BuildContext, CheckResult, QuotaRequest, QuotaResult,
    Waiting,
};
use crate::config::params;
use crate::lang::Val;
use crate::template::remote::{RemoteTemplate, builtin, policy_value, wire_number};
use crate::template::{Dimensions, Instance, Payload, Values};
use proto_mesh::attribute::ValueType;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Params {
    #[serde(alias = "backend_address")]
    backend_address: String,
    /// An `Any` in JSON: `@type`, and the message's base64 as `value` or its fields.
    params: Json,
    #[serde(alias = "session_based")]
    session_based: bool,
}

#[derive(Debug)]
struct Config {
    caller: Caller,
    config: Any,
    is_session_based: bool,
}

#[derive(Debug)]
struct Bypass {
    calls: Arc<Calls>,
    reports: Queue<(Arc<RemoteTemplate>, Vec<u8>)>,
}

/// An instance of a metric or a quota; `checknothing` and `reportnothing` have its name alone.
#[derive(Clone, PartialEq, prost::Message)]
struct MetricMsg {
    #[prost(string, tag = "72295727")]
    name: String,
    #[prost(message, optional, tag = "1")]
    value: Option<Value>,
    #[prost(btree_map = "string, message", tag = "2")]
    dimensions: BTreeMap<String, Value>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct QuotaMsg {
    #[prost(string, tag = "72295727")]
    name: String,
    #[prost(btree_map = "string, message", tag = "1")]
    dimensions: BTreeMap<String, Value>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct MetricType {
    #[prost(int32, tag = "1")]
    value: i32,
    #[prost(btree_map = "string, int32", tag = "2")]
    dimensions: BTreeMap<String, i32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct QuotaType {
    #[prost(btree_map = "string, int32", tag = "1")]
    dimensions: BTreeMap<String, i32>,
}

pub(super) fn configure(json: &Json) -> Result<Box<dyn AdapterConfig>, String> {
    let params: Params = params::read(json)?;
    let caller = Caller::new(&params.backend_address, None)
        .map_err(|error| format!("backendAddress: {error}"))?;
    Ok(Box::new(Config {
        caller,
        config: any(&params.params).map_err(|error| format!("params: {error}"))?,
        is_session_based: params.session_based,
    }))
}

fn any(json: &Json) -> Result<Any, String> {
    use base64::Engine as _;
    let Some(object) = json.as_object() else {
        return Ok(Any::default());
    };
    let url = object.get("@type").and_then(Json::as_str);
    let url = url.ok_or("@type is needed")?.to_owned();
    let value = object.get("value").and_then(Json::as_str).unwrap_or("");
    let value = base64::engine::general_purpose::STANDARD
        .decode(value)
        .map_err(|error| format!("value: is not base64: {error}"))?;
    Ok(Any {
        type_url: url,
        value,
    })
}

impl AdapterConfig for Config {
    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Adapter>, AdapterError> {
        let session = self.is_session_based.then(|| {
            let types = context.instances.iter();
            let types = types.map(|instance| (instance.full_name.clone(), inferred(instance)));
            let types = types.collect();
            Session::open(
                self.caller.clone(),
                self.config.clone(),
                types,
                DEFAULT_TIMEOUT,
            )
        });
        let calls = Arc::new(Calls {
            caller: self.caller.clone(),
            config: self.config.clone(),
            session,
            timeout: DEFAULT_TIMEOUT,
        });
        Ok(Arc::new(Bypass {
            reports: remote::reports(&calls, context),
            calls,
        }))
    }
}

fn inferred(instance: &Instance) -> Any {
    let (value, dimensions) = instance.dimension_types();
    let dimensions = dimensions
        .into_iter()
        .map(|(name, kind)| (name.to_owned(), wire_number(kind)))
        .collect();
    let value = match value {
        Some(value) => MetricType {
            value: wire_number(value),
            dimensions,
        }
        .encode_to_vec(),
        None => QuotaType { dimensions }.encode_to_vec(),
    };
    Any {
        type_url: format!("type.googleapis.com/{}.Type", instance.kind.name()),
        value,
    }
}

fn wire(dimensions: &Dimensions<'_>) -> BTreeMap<String, Value> {
    let entries = dimensions.iter();
    entries
        .map(|(name, value)| ((*name).to_owned(), wire_value(value)))
        .collect()
}

fn wire_value(value: &Val<'_>) -> Value {
    policy_value(value, ValueType::String)
}

/// The template whose method is called, and the message.
fn message(
    instance: &Values<'_>,
    nothing: &str,
) -> Result<(Arc<RemoteTemplate>, Vec<u8>), AdapterError> {
    let name = instance.name.to_owned();
    let (template, message) = match &instance.payload {
        Payload::Nothing => {
            let message = QuotaMsg {
                name,
                dimensions: BTreeMap::new(),
            };
            (nothing, message.encode_to_vec())
        }
        Payload::Metric { value, dimensions } => {
            let message = MetricMsg {
                name,
                value: Some(wire_value(value)),
                dimensions: wire(dimensions),
            };
            ("metric", message.encode_to_vec())
        }
        Payload::Quota { dimensions } => {
            let message = QuotaMsg {
                name,
                dimensions: wire(dimensions),
            };
            ("quota", message.encode_to_vec())
        }
        _ => return Err(AdapterError::unsupported()),
    };
    let template = builtin(template).ok_or_else(AdapterError::unsupported)?;
    Ok((template, message))
}

impl Adapter for Bypass {
    fn report(&self, instances: &[Values<'_>]) -> Result<(), AdapterError> {
        for instance in instances {
            self.reports.push(message(instance, "reportnothing")?);
        }
        Ok(())
    }

    fn waiting(&self) -> Option<&dyn Waiting> {
        Some(self)
    }
}

impl Waiting for Bypass {
    fn check<'a>(
        &'a self,
        instance: &'a Values<'_>,
    ) -> BoxFuture<'a, Result<CheckResult, AdapterError>> {
        Box::pin(async move {
            let (template, message) = message(instance, "checknothing")?;
            self.calls.check(&template, message).await
        })
    }

    fn allocate<'a>(
        &'a self,
        instance: &'a Values<'_>,
        request: &'a QuotaRequest<'_>,
    ) -> BoxFuture<'a, Result<QuotaResult, AdapterError>> {
        Box::pin(async move {
            let (template, message) = message(instance, "quota")?;
            let method = &template.method;
            self.calls
                .allocate(method, instance.name, message, request)
                .await
        })
    }
}
