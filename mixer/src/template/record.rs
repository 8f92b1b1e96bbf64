//! Templates whose fields are a table: names with their types, and maps of values of any type. A field of a nested message is
//! written with a dot (`subject.user`).

use std::borrow::Cow;
use std::collections::BTreeMap;

use proto_mesh::attribute::ValueType;
use serde_json::Value as Json;

use super::fields::{Failed, Named, any, eval_named, named, optional};
use super::{Dimensions, Template};
use crate::attributes::{self, Bag, Vocabulary};
use crate::lang::{Expression, Val};

/// What a template consists of.
struct Shape {
    fields: &'static [(&'static str, ValueType)],
    maps: &'static [&'static str],
}

/// Compiled fields; those that are not given are not there.
#[derive(Debug)]
pub(crate) struct RecordFields {
    fields: Vec<(&'static str, Expression)>,
    maps: Vec<(&'static str, Named)>,
}

/// The values for one request.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    fields: Vec<(&'static str, Val<'a>)>,
    maps: Vec<(&'static str, Dimensions<'a>)>,
}

const TEXT: ValueType = ValueType::String;
const NUMBER: ValueType = ValueType::Int64;

const API_KEY: Shape = Shape {
    fields: &[
        ("api", TEXT),
        ("api_version", TEXT),
        ("api_operation", TEXT),
        ("api_key", TEXT),
        ("timestamp", ValueType::Timestamp),
    ],
    maps: &[],
};

const AUTHORIZATION: Shape = Shape {
    fields: &[
        ("subject.user", TEXT),
        ("subject.groups", TEXT),
        ("action.namespace", TEXT),
        ("action.service", TEXT),
        ("action.method", TEXT),
        ("action.path", TEXT),
    ],
    maps: &["subject.properties", "action.properties"],
};

const EDGE: Shape = Shape {
    fields: &[
        ("timestamp", ValueType::Timestamp),
        ("source_workload_namespace", TEXT),
        ("source_workload_name", TEXT),
        ("source_owner", TEXT),
        ("source_uid", TEXT),
        ("destination_workload_namespace", TEXT),
        ("destination_workload_name", TEXT),
        ("destination_owner", TEXT),
        ("destination_uid", TEXT),
        ("destination_service_namespace", TEXT),
        ("destination_service_name", TEXT),
        ("context_protocol", TEXT),
        ("api_protocol", TEXT),
    ],
    maps: &[],
};

const TRACE_SPAN: Shape = Shape {
    fields: &[
        ("trace_id", TEXT),
        ("span_id", TEXT),
        ("parent_span_id", TEXT),
        ("span_name", TEXT),
        ("start_time", ValueType::Timestamp),
        ("end_time", ValueType::Timestamp),
        ("http_status_code", NUMBER),
        ("client_span", ValueType::Bool),
        ("rewrite_client_span_id", ValueType::Bool),
        ("source_name", TEXT),
        ("source_ip", ValueType::IpAddress),
        ("destination_name", TEXT),
        ("destination_ip", ValueType::IpAddress),
        ("request_size", NUMBER),
        ("request_total_size", NUMBER),
        ("response_size", NUMBER),
        ("response_total_size", NUMBER),
        ("api_protocol", TEXT),
    ],
    maps: &["span_tags"],
};

impl RecordFields {
    pub(super) fn compile(
        template: Template,
        json: &Json,
        vocabulary: &Vocabulary,
    ) -> Result<Self, String> {
        let shape = match template {
            Template::ApiKey => API_KEY,
            Template::Authorization => AUTHORIZATION,
            Template::Edge => EDGE,
            _ => TRACE_SPAN,
        };
        let mut compiled = Self {
            fields: Vec::new(),
            maps: Vec::new(),
        };
        compiled.add(&shape, "", json, vocabulary)?;
        Ok(compiled)
    }

    fn add(
        &mut self,
        shape: &Shape,
        prefix: &str,
        json: &Json,
        vocabulary: &Vocabulary,
    ) -> Result<(), String> {
        for (key, value) in json.as_object().into_iter().flatten() {
            let path = format!("{prefix}{}", snake_case(key));
            if let Some((name, kind)) = shape.fields.iter().find(|(name, _)| *name == path) {
                let text = expression_text(value)
                    .ok_or_else(|| format!("{path}: an expression is wanted, not {value}"))?;
                if let Some(expression) = optional(name, &text, *kind, vocabulary)? {
                    self.fields.push((name, expression));
                }
            } else if let Some(name) = shape.maps.iter().find(|name| **name == path) {
                let entries = value
                    .as_object()
                    .ok_or_else(|| format!("{path}: a map of expressions is wanted"))?;
                let mut texts = BTreeMap::new();
                for (key, value) in entries {
                    let text = expression_text(value)
                        .ok_or_else(|| format!("{path}[{key}]: an expression is wanted"))?;
                    texts.insert(key.clone(), text);
                }
                self.maps.push((name, named(name, texts, vocabulary)?));
            } else if value.is_object() && shape.has_below(&path) {
                self.add(shape, &format!("{path}."), value, vocabulary)?;
            } else {
                return Err(format!("{prefix}{key}: unknown field"));
            }
        }
        Ok(())
    }

    pub(super) fn eval<'a, R: attributes::Record>(
        &'a self,
        bag: &Bag<'a>,
        record: &mut R,
    ) -> Result<Record<'a>, Failed<'a>> {
        let mut fields = Vec::with_capacity(self.fields.len());
        for (name, expression) in &self.fields {
            let value = expression
                .eval(bag, record)
                .map_err(|error| (*name, error))?;
            fields.push((*name, value));
        }
        let mut maps = Vec::with_capacity(self.maps.len());
        for (name, expressions) in &self.maps {
            maps.push((*name, eval_named(expressions, bag, record)?));
        }
        Ok(Record { fields, maps })
    }
}

impl Shape {
    fn has_below(&self, path: &str) -> bool {
        let is_below = |name: &&str| {
            name.strip_prefix(path)
                .is_some_and(|rest| rest.starts_with('.'))
        };
        self.fields.iter().any(|(name, _)| is_below(name)) || self.maps.iter().any(is_below)
    }
}

impl<'a> Record<'a> {
    /// A field, if the instance has it.
    pub(crate) fn get(&self, name: &str) -> Option<&Val<'a>> {
        let found = self.fields.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value)
    }

    /// A field as text; empty if the instance does not have it.
    pub(crate) fn text(&self, name: &str) -> Cow<'_, str> {
        self.get(name).map(Val::to_text).unwrap_or_default()
    }

    /// A flag.
    pub(crate) fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some(Val::Bool(true)))
    }

    /// The entries of a map.
    pub(crate) fn map(&self, name: &str) -> &[(&'a str, Val<'a>)] {
        let found = self.maps.iter().find(|(known, _)| *known == name);
        found.map_or(&[], |(_, entries)| entries)
    }

    #[cfg(test)]
    pub(crate) fn for_test(
        fields: Vec<(&'static str, Val<'a>)>,
        maps: Vec<(&'static str, Dimensions<'a>)>,
    ) -> Self {
        Self { fields, maps }
    }
}

/// `apiVersion` as it stands in the table.
fn snake_case(key: &str) -> String {
    let mut name = String::with_capacity(key.len() + 4);
    for c in key.chars() {
        if c.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(c.to_ascii_lowercase());
    }
    name
}

/// The text of an expression; a bare number or flag of YAML is one, too.
pub(super) fn expression_text(value: &Json) -> Option<String> {
    match value {
        Json::String(text) => Some(text.clone()),
        Json::Null => Some(String::new()),
        Json::Number(_) | Json::Bool(_) => Some(value.to_string()),
        Json::Array(_) | Json::Object(_) => None,
    }
}

/// An expression of any type, or nothing.
pub(super) fn some_expression(
    field: &str,
    value: &Json,
    vocabulary: &Vocabulary,
) -> Result<Option<Expression>, String> {
    let text = expression_text(value).ok_or_else(|| format!("{field}: an expression is wanted"))?;
    if text.is_empty() {
        return Ok(None);
    }
    any(field, &text, vocabulary).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attributes::Unrecorded;
    use serde_json::json;

    fn vocabulary() -> Vocabulary {
        let declared = [("source.user".to_owned(), ValueType::String)];
        Vocabulary::new(&declared.into())
    }

    #[test]
    fn fields_nest_and_have_types() {
        let vocabulary = vocabulary();
        let json = json!({
            "subject": {"user": "source.user | \"me\"", "properties": {"n": "1"}},
            "action": {"path": "\"/x\""},
        });
        let fields = RecordFields::compile(Template::Authorization, &json, &vocabulary).unwrap();
        let bag = Bag::new(&vocabulary);
        let values = fields.eval(&bag, &mut Unrecorded).unwrap();
        assert_eq!(values.text("subject.user"), "me");
        assert_eq!(values.text("action.path"), "/x");
        assert_eq!(values.text("action.method"), "");
        assert_eq!(values.map("subject.properties").len(), 1);
        let span = json!({"traceId": "\"1\"", "client_span": true, "spanTags": {"a": "2"}});
        RecordFields::compile(Template::TraceSpan, &span, &vocabulary).unwrap();
    }

    #[test]
    fn what_is_wrong_is_named() {
        let vocabulary = vocabulary();
        for (template, json, want) in [
            (
                Template::ApiKey,
                json!({"nothing": "1"}),
                "nothing: unknown field",
            ),
            (Template::ApiKey, json!({"api": "1"}), "api: "),
            (
                Template::Authorization,
                json!({"subject": {"usr": "1"}}),
                "subject.usr: unknown field",
            ),
            (Template::TraceSpan, json!({"span_tags": 1}), "span_tags: "),
            (Template::Edge, json!({"timestamp": {}}), "timestamp: "),
        ] {
            let error = RecordFields::compile(template, &json, &vocabulary).unwrap_err();
            assert!(error.starts_with(want), "{error}");
        }
    }
}
