//! Adapters out of process (kind `adapter`), in any language: gRPC calls by the template's descriptors.
//!
//! Without a session every call carries the adapter's configuration. With one, the adapter is told its configuration and the
//! types of the instances once ([`session`]); calls then leave the configuration out and name the session in the metadata
//! `session-id`. The connection comes back by itself. Checks and quotas keep the connection's deadline; reports go through a
//! queue.

mod call;
pub(super) mod session;
mod token;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use prost::Message as _;
use prost_reflect::{DynamicMessage, ReflectMessage as _};
use prost_types::Any;
use proto::istio::mixer::adapter::model::v1beta1 as model;
use proto::istio::policy::v1beta1::{self as policy, Connection};
use proto_mesh::attribute::Value;
use serde_json::Value as Json;

use super::queue::{Queue, Rules};
use super::{
    Adapter, AdapterConfig, AdapterError, BuildContext, CheckResult, QuotaRequest, QuotaResult,
    Waiting,
};
use crate::template::remote::{RemoteTemplate, descriptors};
use crate::template::{Payload, Values};
pub(super) use call::Caller;
use session::Session;

/// How long an adapter may take unless the handler says.
pub(super) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// Reports that may wait, and how many go in one call.
pub(super) const QUEUE: Rules = Rules {
    capacity: 10_000,
    batch: 100,
    interval: Duration::from_millis(100),
    deadline: Duration::from_secs(10),
};

/// A declared adapter.
#[derive(Clone, Debug)]
pub(crate) struct RemoteInfo {
    pub(crate) name: String,
    /// The templates that it takes, as they are referred to.
    pub(crate) templates: Vec<String>,
    /// The descriptor of its parameters, if it has any.
    params: Option<prost_reflect::MessageDescriptor>,
    is_session_based: bool,
}

/// A handler of a declared adapter, checked.
#[derive(Debug)]
struct RemoteConfig {
    config: Any,
    is_session_based: bool,
    caller: Caller,
    timeout: Duration,
}

#[derive(Debug)]
struct Remote {
    calls: Arc<Calls>,
    reports: Queue<(Arc<RemoteTemplate>, Vec<u8>)>,
}

/// What every call needs.
#[derive(Debug)]
pub(super) struct Calls {
    pub(super) caller: Caller,
    pub(super) config: Any,
    pub(super) session: Option<Session>,
    pub(super) timeout: Duration,
}

/// A call of a check or report template; a quota's has one field more.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HandleRequest {
    /// Many for reports, one for everything else.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub(super) instances: Vec<Vec<u8>>,
    #[prost(message, optional, tag = "2")]
    pub(super) adapter_config: Option<Any>,
    #[prost(string, tag = "3")]
    pub(super) dedup_id: String,
    #[prost(message, optional, tag = "4")]
    pub(super) quota_request: Option<model::QuotaRequest>,
}

/// The answer of a check with outputs.
#[derive(Clone, PartialEq, prost::Message)]
struct CheckWithOutput {
    #[prost(message, optional, tag = "1")]
    result: Option<model::CheckResult>,
    #[prost(bytes = "vec", tag = "2")]
    output: Vec<u8>,
}

impl RemoteInfo {
    /// Reads a declaration; the error is the field and what is wrong with it.
    pub(crate) fn read(name: &str, info: &model::Info) -> Result<Self, (&'static str, String)> {
        let params = match info.config.trim() {
            "" => None,
            text => {
                let pool = descriptors(text).map_err(|error| ("config", error))?;
                let found = pool
                    .all_messages()
                    .filter(|message| message.name() == "Params")
                    .last();
                let found = found.ok_or(("config", "has no message Params".to_owned()))?;
                Some(found)
            }
        };
        if info.templates.is_empty() {
            return Err(("templates", "the adapter takes no template".to_owned()));
        }
        Ok(Self {
            name: name.to_owned(),
            templates: info.templates.clone(),
            params,
            is_session_based: info.session_based,
        })
    }

    /// Checks a handler's parameters and connection; the error is the field and what is wrong with it.
    pub(crate) fn configure(
        &self,
        params: &Json,
        connection: Option<&Connection>,
    ) -> Result<Box<dyn AdapterConfig>, (&'static str, String)> {
        let config = self.config(params).map_err(|error| ("params", error))?;
        let connection = connection
            .filter(|connection| !connection.address.is_empty())
            .ok_or(("connection.address", "an address is needed".to_owned()))?;
        let timeout = match &connection.timeout {
            None => DEFAULT_TIMEOUT,
            Some(timeout) => Duration::try_from(*timeout)
                .ok()
                .filter(|timeout| !timeout.is_zero())
                .ok_or(("connection.timeout", "must be above 0".to_owned()))?,
        };
        let authentication = connection.authentication.as_ref();
        let authentication = authentication.and_then(|found| found.auth_type.as_ref());
        Ok(Box::new(RemoteConfig {
            caller: Caller::new(&connection.address, authentication)
                .map_err(|error| ("connection", error))?,
            config,
            is_session_based: self.is_session_based,
            timeout,
        }))
    }

    fn config(&self, params: &Json) -> Result<Any, String> {
        let Some(descriptor) = &self.params else {
            let is_empty = params.as_object().is_none_or(serde_json::Map::is_empty);
            return if is_empty {
                Ok(Any::default())
            } else {
                Err("the adapter has no parameters".to_owned())
            };
        };
        let json = match params {
            Json::Null => Json::Object(serde_json::Map::new()),
            other => other.clone(),
        };
        let message = DynamicMessage::deserialize(descriptor.clone(), json)
            .map_err(|error| error.to_string())?;
        Ok(Any {
            type_url: format!("type.googleapis.com/{}", message.descriptor().full_name()),
            value: message.encode_to_vec(),
        })
    }
}

impl AdapterConfig for RemoteConfig {
    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Adapter>, AdapterError> {
        let session = self.is_session_based.then(|| {
            let types: BTreeMap<_, _> = context
                .instances
                .iter()
                .filter_map(|instance| {
                    Some((instance.full_name.clone(), instance.inferred_type()?))
                })
                .collect();
            Session::open(
                self.caller.clone(),
                self.config.clone(),
                types,
                self.timeout,
            )
        });
        let calls = Arc::new(Calls {
            caller: self.caller.clone(),
            config: self.config.clone(),
            session,
            timeout: self.timeout,
        });
        Ok(Arc::new(Remote {
            reports: reports(&calls, context),
            calls,
        }))
    }
}

/// The queue of a handler's reports.
pub(super) fn reports(
    calls: &Arc<Calls>,
    context: &BuildContext,
) -> Queue<(Arc<RemoteTemplate>, Vec<u8>)> {
    let calls = calls.clone();
    let rules = Rules {
        deadline: calls.timeout + Duration::from_secs(1),
        ..QUEUE
    };
    Queue::start(
        "adapter-reports",
        context,
        rules,
        Box::new(move |items: Vec<(Arc<RemoteTemplate>, Vec<u8>)>| {
            let calls = calls.clone();
            Box::pin(async move {
                // One call for each template among them.
                let mut by_method: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
                for (template, message) in items {
                    by_method
                        .entry(template.method.clone())
                        .or_default()
                        .push(message);
                }
                for (method, instances) in by_method {
                    let request = calls.request(instances, "", None);
                    calls
                        .call(&method, &request)
                        .await
                        .map_err(|error| error.to_string())?;
                }
                Ok(())
            })
        }),
    )
}

impl Calls {
    pub(super) fn request(
        &self,
        instances: Vec<Vec<u8>>,
        dedup_id: &str,
        quota_request: Option<model::QuotaRequest>,
    ) -> HandleRequest {
        HandleRequest {
            instances,
            adapter_config: self.session.is_none().then(|| self.config.clone()),
            dedup_id: match dedup_id {
                // The adapter may tell repetitions from new calls by it.
                "" => format!("{:032x}", rand::random::<u128>()),
                id => id.to_owned(),
            },
            quota_request,
        }
    }

    /// Calls, in the session if there is one; a session that the adapter has forgotten is opened anew for the calls to come.
    pub(super) async fn call(
        &self,
        method: &str,
        request: &HandleRequest,
    ) -> Result<Vec<u8>, AdapterError> {
        let session = match &self.session {
            Some(session) => Some(session.id(self.timeout).await?),
            None => None,
        };
        let answered = self
            .caller
            .call(
                method,
                request.encode_to_vec(),
                session.as_deref(),
                self.timeout,
            )
            .await;
        answered.map_err(|status| {
            if let Some(session) = &self.session
                && session::is_lost(&status)
            {
                session.renew();
            }
            AdapterError::new(format!("the adapter failed: {status}"))
        })
    }

    pub(super) async fn check(
        &self,
        template: &RemoteTemplate,
        message: Vec<u8>,
    ) -> Result<CheckResult, AdapterError> {
        let request = self.request(vec![message], "", None);
        let answer = self.call(&template.method, &request).await?;
        let (result, outputs) = match &template.output {
            None => (
                model::CheckResult::decode(answer.as_slice()).map_err(malformed)?,
                Vec::new(),
            ),
            Some(output) => {
                let answer = CheckWithOutput::decode(answer.as_slice()).map_err(malformed)?;
                let outputs = output.read(&answer.output).map_err(malformed)?;
                (answer.result.unwrap_or_default(), outputs)
            }
        };
        Ok(CheckResult {
            status: result.status.unwrap_or_default(),
            valid_duration: wire_duration(result.valid_duration),
            valid_use_count: result.valid_use_count,
            outputs,
        })
    }

    async fn generate(
        &self,
        template: &RemoteTemplate,
        message: Vec<u8>,
    ) -> Result<Vec<(String, Value)>, AdapterError> {
        let output = template.output.as_ref();
        let output = output.ok_or_else(AdapterError::unsupported)?;
        let request = self.request(vec![message], "", None);
        let answer = self.call(&template.method, &request).await?;
        output.read(&answer).map_err(malformed)
    }

    pub(super) async fn allocate(
        &self,
        method: &str,
        name: &str,
        message: Vec<u8>,
        request: &QuotaRequest<'_>,
    ) -> Result<QuotaResult, AdapterError> {
        let params = model::quota_request::QuotaParams {
            amount: request.amount,
            best_effort: request.best_effort,
        };
        let quotas = model::QuotaRequest {
            quotas: [(name.to_owned(), params)].into(),
        };
        let call = self.request(vec![message], request.deduplication_id, Some(quotas));
        let answer = self.call(method, &call).await?;
        let mut result = model::QuotaResult::decode(answer.as_slice()).map_err(malformed)?;
        let result = result
            .quotas
            .remove(name)
            .ok_or_else(|| AdapterError::new(format!("the adapter's answer lacks quota {name}")))?;
        Ok(QuotaResult {
            granted: result.granted_amount,
            valid_duration: wire_duration(result.valid_duration),
            status: result.status.unwrap_or_default(),
        })
    }
}

#[allow(clippy::needless_pass_by_value, reason = "it is an error's last stop")]
fn malformed(error: prost::DecodeError) -> AdapterError {
    AdapterError::new(format!("the adapter's answer cannot be read: {error}"))
}

fn wire_duration(duration: Option<prost_types::Duration>) -> Duration {
    duration
        .and_then(|duration| Duration::try_from(duration).ok())
        .unwrap_or_default()
}

impl Adapter for Remote {
    fn report(&self, instances: &[Values<'_>]) -> Result<(), AdapterError> {
        for instance in instances {
            let Payload::Remote { message, template } = &instance.payload else {
                return Err(AdapterError::unsupported());
            };
            let named = with_name(message, instance.name);
            self.reports.push((Arc::clone(template), named));
        }
        Ok(())
    }

    fn waiting(&self) -> Option<&dyn Waiting> {
        Some(self)
    }
}

impl Waiting for Remote {
    fn check<'a>(
        &'a self,
        instance: &'a Values<'_>,
    ) -> BoxFuture<'a, Result<CheckResult, AdapterError>> {
        Box::pin(async move {
            let Payload::Remote { message, template } = &instance.payload else {
                return Err(AdapterError::unsupported());
            };
            let named = with_name(message, instance.name);
            self.calls.check(template, named).await
        })
    }

    fn allocate<'a>(
        &'a self,
        instance: &'a Values<'_>,
        request: &'a QuotaRequest<'_>,
    ) -> BoxFuture<'a, Result<QuotaResult, AdapterError>> {
        Box::pin(async move {
            let Payload::Remote { message, template } = &instance.payload else {
                return Err(AdapterError::unsupported());
            };
            let named = with_name(message, instance.name);
            let method = &template.method;
            self.calls
                .allocate(method, instance.name, named, request)
                .await
        })
    }

    fn generate<'a>(
        &'a self,
        instance: &'a Values<'_>,
    ) -> BoxFuture<'a, Result<Vec<(String, Value)>, AdapterError>> {
        Box::pin(async move {
            let Payload::Remote { message, template } = &instance.payload else {
                return Err(AdapterError::unsupported());
            };
            let named = with_name(message, instance.name);
            self.calls.generate(template, named).await
        })
    }
}

/// The instance's message with its name in it.
fn with_name(message: &[u8], name: &str) -> Vec<u8> {
    #[derive(Clone, PartialEq, prost::Message)]
    struct Name {
        #[prost(string, tag = "72295727")]
        name: String,
    }
    let mut named = message.to_vec();
    let name = Name { name: name.into() };
    named.extend(name.encode_to_vec());
    named
}

/// How Mixer and the adapter know each other.
pub(super) type Authentication = policy::authentication::AuthType;
