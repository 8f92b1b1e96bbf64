//! Templates: what an instance consists of, as expressions in configuration and as values for one request.
//!
//! To add a template: a variant of [`Template`], of [`Fields`] and of [`Values`], and its row in [`Template::ALL`].

mod fields;
mod kubernetes;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use prost_types::Timestamp;
use serde_json::Value as Json;

use crate::attributes::{Bag, Record, Vocabulary};
use crate::config::FullName;
use crate::lang::{EvalError, Val};

pub(crate) use fields::Fields;
pub(crate) use kubernetes::{Binding, bind};

/// The templates there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Template {
    CheckNothing,
    ListEntry,
    Quota,
    LogEntry,
    Metric,
    ReportNothing,
    Kubernetes,
}

/// When a template's instances are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Variety {
    Check,
    Quota,
    Report,
    /// Before all others: attributes are made.
    Generator,
}

/// A configured instance.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) name: FullName,
    /// `short.kind.namespace`, the name that handlers see.
    pub(crate) full_name: String,
    pub(crate) template: Template,
    /// Compiled expressions.
    fields: Fields,
    /// What becomes of a generator's outputs.
    pub(crate) bindings: Vec<Binding>,
    /// The configuration, to tell whether it changed.
    pub(crate) params: Json,
}

/// An instance's values for one request, as a handler sees them.
#[derive(Debug)]
pub(crate) struct Values<'a> {
    /// The instance's full name.
    pub(crate) name: &'a str,
    pub(crate) payload: Payload<'a>,
}

/// What is in an instance.
#[derive(Debug)]
pub(crate) enum Payload<'a> {
    /// `checknothing` and `reportnothing`.
    Nothing,
    ListEntry {
        value: Val<'a>,
    },
    Quota {
        dimensions: Dimensions<'a>,
    },
    LogEntry {
        variables: Dimensions<'a>,
        timestamp: Option<Timestamp>,
        severity: Cow<'a, str>,
    },
    Metric {
        value: Val<'a>,
        dimensions: Dimensions<'a>,
    },
    /// `kubernetes`.
    Workloads {
        source: Peer<'a>,
        destination: Peer<'a>,
        destination_port: i64,
    },
}

/// One end of a request, as far as the request tells.
#[derive(Debug)]
pub(crate) struct Peer<'a> {
    pub(crate) uid: Cow<'a, str>,
    pub(crate) ip: Option<IpAddr>,
}

/// Named values, sorted by name.
pub(crate) type Dimensions<'a> = Vec<(&'a str, Val<'a>)>;

impl Template {
    pub(crate) const ALL: [Template; 7] = [
        Template::CheckNothing,
        Template::ListEntry,
        Template::Quota,
        Template::LogEntry,
        Template::Metric,
        Template::ReportNothing,
        Template::Kubernetes,
    ];

    /// The name in `compiledTemplate`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Template::CheckNothing => "checknothing",
            Template::ListEntry => "listentry",
            Template::Quota => "quota",
            Template::LogEntry => "logentry",
            Template::Metric => "metric",
            Template::ReportNothing => "reportnothing",
            Template::Kubernetes => "kubernetes",
        }
    }

    pub(crate) fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name)
    }

    pub(crate) fn variety(self) -> Variety {
        match self {
            Template::CheckNothing | Template::ListEntry => Variety::Check,
            Template::Quota => Variety::Quota,
            Template::LogEntry | Template::Metric | Template::ReportNothing => Variety::Report,
            Template::Kubernetes => Variety::Generator,
        }
    }
}

impl Variety {
    /// The name in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Variety::Check => "check",
            Variety::Quota => "quota",
            Variety::Report => "report",
            Variety::Generator => "attribute_generator",
        }
    }
}

impl Instance {
    /// Reads and compiles an instance; the error is the field and what is wrong in it.
    pub(crate) fn compile(
        name: &FullName,
        template: Template,
        params: Json,
        bindings: &BTreeMap<String, String>,
        vocabulary: &Vocabulary,
    ) -> Result<Self, (&'static str, String)> {
        let fields =
            Fields::compile(template, &params, vocabulary).map_err(|error| ("params", error))?;
        let bindings = kubernetes::compile(bindings, vocabulary)
            .map_err(|error| ("attributeBindings", error))?;
        Ok(Self {
            bindings,
            fields,
            name: name.clone(),
            full_name: name.to_string(),
            template,
            params,
        })
    }

    /// The values for one request.
    pub(crate) fn eval<'a, R: Record>(
        &'a self,
        bag: &Bag<'a>,
        record: &mut R,
    ) -> Result<Values<'a>, InstanceError> {
        let payload = self
            .fields
            .eval(bag, record)
            .map_err(|(field, source)| InstanceError {
                instance: self.full_name.clone(),
                field: field.to_owned(),
                source,
            })?;
        Ok(Values {
            name: &self.full_name,
            payload,
        })
    }
}

/// An instance that cannot be made for this request.
#[derive(Debug, thiserror::Error)]
#[error("evaluation failed for field '{field}' of instance '{instance}': {source}")]
pub(crate) struct InstanceError {
    instance: String,
    field: String,
    source: EvalError,
}
