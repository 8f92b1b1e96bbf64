//! Adapters: what is done with instances. A handler is an adapter with its parameters ([`AdapterConfig`] → [`Adapter`]).
//!
//! To add an adapter: a file with its `Config` and its [`Adapter`], and a row in [`FACTORIES`].

pub(crate) mod denier;
pub(crate) mod kubernetesenv;
pub(crate) mod list;
pub(crate) mod memquota;
pub(crate) mod noop;
pub(crate) mod prometheus;
pub(crate) mod stdio;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use proto::google::rpc::Status;
use proto_mesh::attribute::ValueRef;
use serde_json::Value as Json;

use crate::pods::Pods;
use crate::template::{Template, Values};

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
}

/// Outputs of an attribute generator.
pub(crate) type Generated<'p> = Vec<(&'static str, ValueRef<'p>)>;

/// Checked parameters of an adapter, from which a handler is built.
pub(crate) trait AdapterConfig: Debug + Send + Sync {
    /// Builds the handler.
    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Adapter>, AdapterError>;
}

/// What handlers share.
#[derive(Clone, Debug)]
pub(crate) struct BuildContext {
    /// Metrics of all `prometheus` handlers, served on one port.
    pub(crate) prometheus: Arc<prometheus::Registry>,
}

/// A verdict, and how long and how often it may be used again.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CheckResult {
    pub(crate) status: Status,
    pub(crate) valid_duration: Duration,
    pub(crate) valid_use_count: i32,
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
        name: "denier",
        templates: &[Template::CheckNothing, Template::ListEntry, Template::Quota],
        configure: denier::configure,
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
        name: "prometheus",
        templates: &[Template::Metric],
        configure: prometheus::configure,
    },
    Factory {
        name: "stdio",
        templates: &[Template::LogEntry, Template::Metric],
        configure: stdio::configure,
    },
];

/// The adapter of that name.
pub(crate) fn factory(name: &str) -> Option<&'static Factory> {
    FACTORIES.iter().find(|factory| factory.name == name)
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
