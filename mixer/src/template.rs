//! Templates: what an instance consists of, as expressions in configuration and as values for one request.
//!
//! To add a template: a variant of [`Template`] and its row in [`Template::ALL`]; its fields as a table in [`record`], or,
//! where adapters need them as Rust types, as variants of [`Fields`] and of [`Payload`]. Templates of adapters out of
//! process come with their descriptors: [`remote`].

mod binding;
mod dimensions;
mod fields;
mod kubernetes;
pub(crate) mod record;
pub(crate) mod remote;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use prost_types::Timestamp;
use proto_mesh::attribute::ValueType;
use serde_json::Value as Json;

use crate::attributes::{Bag, Record, Vocabulary};
use crate::config::FullName;
use crate::lang::{EvalError, Val};

pub(crate) use binding::Bindings;
pub(crate) use dimensions::{DimensionSet, SharedSets};
pub(crate) use fields::Fields;
pub(crate) use record::Record as RecordValues;
use remote::RemoteTemplate;

/// The templates that are compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Template {
    ApiKey,
    Authorization,
    Edge,
    TraceSpan,
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
    pub(crate) kind: InstanceKind,
    /// Compiled expressions.
    fields: Fields,
    /// What becomes of a generator's outputs.
    pub(crate) bindings: Bindings,
    /// The configuration, to tell whether it changed.
    pub(crate) params: Json,
    /// Equal for metrics with the same dimensions.
    pub(crate) dimension_set: usize,
}

/// What an instance is of.
#[derive(Clone, Debug)]
pub(crate) enum InstanceKind {
    Compiled(Template),
    Remote(Arc<RemoteTemplate>),
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
    /// `apikey`, `authorization`, `edge`, `tracespan`.
    Record(RecordValues<'a>),
    /// The encoded message of a template that came with its descriptors.
    Remote {
        message: Vec<u8>,
        template: &'a Arc<RemoteTemplate>,
    },
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
        /// Shared by the metrics whose dimensions are the same.
        dimensions: Arc<DimensionSet<'a>>,
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
    pub(crate) const ALL: [Template; 11] = [
        Template::ApiKey,
        Template::Authorization,
        Template::Edge,
        Template::TraceSpan,
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
            Template::ApiKey => "apikey",
            Template::Authorization => "authorization",
            Template::Edge => "edge",
            Template::TraceSpan => "tracespan",
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
            Template::ApiKey
            | Template::Authorization
            | Template::CheckNothing
            | Template::ListEntry => Variety::Check,
            Template::Quota => Variety::Quota,
            Template::Edge
            | Template::LogEntry
            | Template::Metric
            | Template::ReportNothing
            | Template::TraceSpan => Variety::Report,
            Template::Kubernetes => Variety::Generator,
        }
    }
}

impl Variety {
    /// How many there are.
    pub(crate) const COUNT: usize = 4;

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

impl InstanceKind {
    /// The template's name.
    pub(crate) fn name(&self) -> &str {
        match self {
            InstanceKind::Compiled(template) => template.name(),
            InstanceKind::Remote(template) => &template.name,
        }
    }

    /// Names and types of what a handler says besides its verdict.
    pub(crate) fn outputs(&self) -> impl Iterator<Item = (&str, ValueType)> {
        let output = match self {
            InstanceKind::Remote(template) if template.variety == Variety::Check => {
                template.output.as_ref()
            }
            _ => None,
        };
        output.into_iter().flat_map(remote::Output::fields)
    }

    /// What a generator's bindings may speak of.
    fn generated(&self) -> Arc<Vocabulary> {
        match self {
            InstanceKind::Compiled(_) => kubernetes::OUTPUTS.clone(),
            InstanceKind::Remote(template) => match &template.output {
                Some(output) => output.vocabulary(),
                None => Arc::new(Vocabulary::new(&BTreeMap::new())),
            },
        }
    }

    pub(crate) fn variety(&self) -> Variety {
        match self {
            InstanceKind::Compiled(template) => template.variety(),
            InstanceKind::Remote(template) => template.variety,
        }
    }
}

impl Instance {
    /// Reads and compiles an instance; the error is the field and what is wrong in it.
    pub(crate) fn compile(
        name: &FullName,
        kind: InstanceKind,
        params: Json,
        bindings: &BTreeMap<String, String>,
        vocabulary: &Vocabulary,
    ) -> Result<Self, (&'static str, String)> {
        let fields =
            Fields::compile(&kind, &params, vocabulary).map_err(|error| ("params", error))?;
        let outputs = kind.generated();
        let bindings = Bindings::compile(bindings, outputs, vocabulary)
            .map_err(|error| ("attributeBindings", error))?;
        Ok(Self {
            bindings,
            fields,
            name: name.clone(),
            full_name: name.to_string(),
            kind,
            params,
            dimension_set: 0,
        })
    }

    /// The types of its values, as an adapter out of process is told them.
    pub(crate) fn inferred_type(&self) -> Option<prost_types::Any> {
        match &self.fields {
            Fields::Remote(fields) => fields.inferred_type(),
            _ => None,
        }
    }

    /// The types of a metric's value and of the dimensions of a metric or quota.
    pub(crate) fn dimension_types(&self) -> (Option<ValueType>, Vec<(&str, ValueType)>) {
        fn of(dimensions: &fields::Named) -> Vec<(&str, ValueType)> {
            let typed = dimensions.iter();
            typed
                .map(|(name, expression)| (name.as_ref(), expression.value_type()))
                .collect()
        }
        match &self.fields {
            Fields::Metric {
                value, dimensions, ..
            } => (Some(value.value_type()), of(dimensions)),
            Fields::Quota { dimensions } => (None, of(dimensions)),
            _ => (None, Vec::new()),
        }
    }

    /// The values for one request.
    pub(crate) fn eval<'a, R: Record>(
        &'a self,
        bag: &Bag<'a>,
        record: &mut R,
    ) -> Result<Values<'a>, InstanceError> {
        self.eval_shared(bag, record, &mut SharedSets::default())
    }

    /// The values for one request, with what other instances have already evaluated of it.
    pub(crate) fn eval_shared<'a, R: Record>(
        &'a self,
        bag: &Bag<'a>,
        record: &mut R,
        sets: &mut SharedSets<'a>,
    ) -> Result<Values<'a>, InstanceError> {
        let payload = self
            .fields
            .eval(bag, record, sets, self.dimension_set)
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
