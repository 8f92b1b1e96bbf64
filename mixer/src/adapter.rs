//! Adapters: what is done with instances. A handler is an adapter with its parameters ([`AdapterConfig`] → [`Adapter`]).
//!
//! Most adapters answer at once. One that has to ask somebody is [`Waiting`]: its answers come later, within its own deadline.
//! Telemetry is never waited for: what goes elsewhere is put into a bounded [`queue`], and what does not fit is counted.
//!
//! To add an adapter: a file with its `Config` and its [`Adapter`], and a row in [`FACTORIES`].

mod bypass;
pub(crate) mod denier;
mod fluentd;
mod http;
pub(crate) mod kubernetesenv;
pub(crate) mod list;
pub(crate) mod memquota;
pub(crate) mod noop;
mod opa;
mod otlp;
pub(crate) mod prometheus;
mod queue;
mod redisquota;
pub(crate) mod remote;
mod span;
mod statsd;
pub(crate) mod stdio;
mod zipkin;

use std::fmt::Debug;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use ::prometheus::IntCounterVec;
use futures::future::BoxFuture;
use proto::google::rpc::Status;
use proto_mesh::attribute::{Value, ValueRef};
use serde_json::Value as Json;

use crate::metrics;
use crate::pods::Pods;
use crate::template::{Instance, Template, Values};

/// A handler at work.
pub(crate) trait Adapter: Debug + Send + Sync {
    /// Judges an instance of a check template.
    fn check(&self, _instance: &Values<'_>) -> Result<CheckResult, AdapterError> {
        Err(AdapterError::unsupported())
    }

    /// Takes note of instances of one report template.
    fn report(&self, _instances: &[Values<'_>]) -> Result<(), AdapterError> {
        Err(AdapterError::unsupported())
    }

    /// Grants an amount of a quota.
    fn allocate(
        &self,
        _instance: &Values<'_>,
        _request: &QuotaRequest<'_>,
    ) -> Result<QuotaResult, AdapterError> {
        Err(AdapterError::unsupported())
    }

    /// Makes attributes; the names are those of the template's outputs.
    fn generate<'p>(
        &self,
        _instance: &Values<'_>,
        _pods: &'p Pods,
    ) -> Result<Generated<'p>, AdapterError> {
        Err(AdapterError::unsupported())
    }

    /// The handler as one whose checks and quotas take their time.
    fn waiting(&self) -> Option<&dyn Waiting> {
        None
    }
}

/// A handler that asks somebody else. It keeps its own deadline.
pub(crate) trait Waiting: Send + Sync {
    /// Judges an instance of a check template.
    fn check<'a>(
        &'a self,
        instance: &'a Values<'_>,
    ) -> BoxFuture<'a, Result<CheckResult, AdapterError>>;

    /// Grants an amount of a quota.
    fn allocate<'a>(
        &'a self,
        instance: &'a Values<'_>,
        request: &'a QuotaRequest<'_>,
    ) -> BoxFuture<'a, Result<QuotaResult, AdapterError>>;

    /// Makes attributes: outputs by field of the template's message.
    fn generate<'a>(
        &'a self,
        _instance: &'a Values<'_>,
    ) -> BoxFuture<'a, Result<Vec<(String, Value)>, AdapterError>> {
        Box::pin(ready(Err(AdapterError::unsupported())))
    }
}

/// Outputs of an attribute generator.
pub(crate) type Generated<'p> = Vec<(&'static str, ValueRef<'p>)>;

/// Checked parameters of an adapter, from which a handler is built.
pub(crate) trait AdapterConfig: Debug + Send + Sync {
    /// Builds the handler.
    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Adapter>, AdapterError>;
}

/// What a handler is built with.
#[derive(Clone, Debug)]
pub(crate) struct BuildContext {
    /// Metrics of all `prometheus` handlers, served on one port.
    pub(crate) prometheus: Arc<prometheus::Registry>,
    /// Telemetry that was given up, by handler and reason.
    pub(crate) dropped: IntCounterVec,
    /// `name.namespace` of the handler.
    pub(crate) handler: String,
    /// The instances that it is going to get.
    pub(crate) instances: Vec<Arc<Instance>>,
}

/// A verdict, and how long and how often it may be used again.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CheckResult {
    pub(crate) status: Status,
    pub(crate) valid_duration: Duration,
    pub(crate) valid_use_count: i32,
    /// What else the handler says, by field of its template's output.
    pub(crate) outputs: Vec<(String, Value)>,
}

/// How much of a quota is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QuotaRequest<'a> {
    pub(crate) amount: i64,
    /// Whether less than all is better than nothing.
    pub(crate) best_effort: bool,
    /// Equal for repetitions of one request; empty if it is never repeated.
    pub(crate) deduplication_id: &'a str,
}

/// How much was granted, and for how long.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct QuotaResult {
    pub(crate) granted: i64,
    pub(crate) valid_duration: Duration,
    pub(crate) status: Status,
}

/// An adapter that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct AdapterError(pub(crate) String);

/// An adapter as configuration sees it.
pub(crate) struct Factory {
    /// The name in `compiledAdapter`.
    pub(crate) name: &'static str,
    /// The templates that it handles.
    pub(crate) templates: &'static [Template],
    /// Checks parameters.
    pub(crate) configure: fn(&Json) -> Result<Box<dyn AdapterConfig>, String>,
}

/// Every adapter.
pub(crate) const FACTORIES: &[Factory] = &[
    Factory {
        name: "bypass",
        templates: &[
            Template::CheckNothing,
            Template::ReportNothing,
            Template::Metric,
            Template::Quota,
        ],
        configure: bypass::configure,
    },
    Factory {
        name: "denier",
        templates: &[Template::CheckNothing, Template::ListEntry, Template::Quota],
        configure: denier::configure,
    },
    Factory {
        name: "fluentd",
        templates: &[Template::LogEntry],
        configure: fluentd::configure,
    },
    Factory {
        name: "kubernetesenv",
        templates: &[Template::Kubernetes],
        configure: kubernetesenv::configure,
    },
    Factory {
        name: "listchecker",
        templates: &[Template::ListEntry],
        configure: list::configure,
    },
    Factory {
        name: "memquota",
        templates: &[Template::Quota],
        configure: memquota::configure,
    },
    Factory {
        name: "noop",
        templates: &Template::ALL,
        configure: noop::configure,
    },
    Factory {
        name: "opa",
        templates: &[Template::Authorization],
        configure: opa::configure,
    },
    Factory {
        name: "otlp",
        templates: &[Template::LogEntry, Template::TraceSpan],
        configure: otlp::configure,
    },
    Factory {
        name: "prometheus",
        templates: &[Template::Metric],
        configure: prometheus::configure,
    },
    Factory {
        name: "redisquota",
        templates: &[Template::Quota],
        configure: redisquota::configure,
    },
    Factory {
        name: "statsd",
        templates: &[Template::Metric],
        configure: statsd::configure,
    },
    Factory {
        name: "stdio",
        templates: &[Template::LogEntry, Template::Metric],
        configure: stdio::configure,
    },
    Factory {
        name: "zipkin",
        templates: &[Template::TraceSpan],
        configure: zipkin::configure,
    },
];

/// The adapter of that name. `list` is what people call `listchecker`.
pub(crate) fn factory(name: &str) -> Option<&'static Factory> {
    let name = if name == "list" { "listchecker" } else { name };
    FACTORIES.iter().find(|factory| factory.name == name)
}

/// The names of all of them, for a message.
pub(crate) fn known() -> String {
    let names: Vec<_> = FACTORIES.iter().map(|factory| factory.name).collect();
    names.join(", ")
}

impl Default for BuildContext {
    /// For a handler on its own: nobody sees what it counts.
    fn default() -> Self {
        Self {
            prometheus: Arc::default(),
            dropped: metrics::dropped(),
            handler: String::new(),
            instances: Vec::new(),
        }
    }
}

impl AdapterError {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    fn unsupported() -> Self {
        Self::new("the adapter does not handle this template")
    }
}

impl CheckResult {
    /// Says yes, for a while.
    pub(crate) fn ok(valid_duration: Duration, valid_use_count: i32) -> Self {
        Self {
            status: Status::default(),
            valid_duration,
            valid_use_count,
            outputs: Vec::new(),
        }
    }
}

/// A status of a code and a text.
pub(crate) fn status(code: tonic::Code, message: impl Into<String>) -> Status {
    Status {
        code: code.into(),
        message: message.into(),
        details: Vec::new(),
    }
}

/// Checks the address of somebody who is told something.
fn check_address(address: &str) -> Result<(), String> {
    let port = address
        .rsplit_once(':')
        .filter(|(host, _)| !host.is_empty())
        .and_then(|(_, port)| port.parse::<u16>().ok());
    match port {
        Some(1..) => Ok(()),
        _ => Err(format!("address: {address:?} is not HOST:PORT")),
    }
}
