//! Templates: what an instance consists of, as expressions in configuration and as values for one request.
//!
//! To add a template: a variant of [`Template`], of [`Fields`] and of [`Values`], and its row in [`Template::ALL`].

mod fields;

use std::borrow::Cow;

use prost_types::Timestamp;
use serde_json::Value as Json;

use crate::attributes::{Bag, Record, Vocabulary};
use crate::config::FullName;
use crate::lang::{EvalError, Val};

pub(crate) use fields::Fields;

/// The templates there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Template {
    CheckNothing,
    ListEntry,
    Quota,
    LogEntry,
    Metric,
    ReportNothing,
}

/// When a template's instances are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Variety {
    Check,
    Quota,
    Report,
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
}

/// Named values, sorted by name.
pub(crate) type Dimensions<'a> = Vec<(&'a str, Val<'a>)>;

impl Template {
    pub(crate) const ALL: [Template; 6] = [
        Template::CheckNothing,
        Template::ListEntry,
        Template::Quota,
        Template::LogEntry,
        Template::Metric,
        Template::ReportNothing,
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
        }
    }
}

impl Instance {
    /// Reads and compiles an instance; the error begins with the field's path.
    pub(crate) fn compile(
        name: &FullName,
        template: Template,
        params: Json,
        vocabulary: &Vocabulary,
    ) -> Result<Self, String> {
        Ok(Self {
            fields: Fields::compile(template, &params, vocabulary)?,
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
