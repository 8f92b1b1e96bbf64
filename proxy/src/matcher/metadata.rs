//! Metadata matchers: a path into a filter's dynamic metadata and a condition on the value found there.

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use proto::envoy::r#type::matcher::v3 as wire;
use wire::double_matcher::MatchPattern as DoublePattern;
use wire::metadata_matcher::path_segment::Segment;
use wire::value_matcher::MatchPattern;

use crate::invalid::{At as _, Invalid, try_all};

use super::StringMatcher;

/// A compiled `MetadataMatcher`.
#[derive(Debug, Clone)]
pub(crate) struct MetadataMatcher {
    filter: Box<str>,
    path: Vec<Box<str>>,
    value: ValueMatcher,
    invert: bool,
}

#[derive(Debug, Clone)]
enum ValueMatcher {
    Null,
    Range(f64, f64),
    Number(f64),
    Text(StringMatcher),
    Bool(bool),
    Present(bool),
    OneOf(Box<ValueMatcher>),
    Or(Vec<ValueMatcher>),
}

impl TryFrom<&wire::MetadataMatcher> for MetadataMatcher {
    type Error = Invalid;

    fn try_from(matcher: &wire::MetadataMatcher) -> Result<Self, Invalid> {
        let value = matcher
            .value
            .as_ref()
            .ok_or_else(|| Invalid::new("a metadata matcher needs a value"))?;
        let path = try_all("path", &matcher.path, |segment| match &segment.segment {
            Some(Segment::Key(key)) => Ok(key.as_str().into()),
            None => Err(Invalid::new("a path segment needs a key")),
        })?;
        Ok(MetadataMatcher {
            filter: matcher.filter.as_str().into(),
            path,
            value: ValueMatcher::try_from(value).at("value")?,
            invert: matcher.invert,
        })
    }
}

impl TryFrom<&wire::ValueMatcher> for ValueMatcher {
    type Error = Invalid;

    fn try_from(matcher: &wire::ValueMatcher) -> Result<Self, Invalid> {
        let pattern = matcher
            .match_pattern
            .as_ref()
            .ok_or_else(|| Invalid::new("a value matcher needs a pattern"))?;
        Ok(match pattern {
            MatchPattern::NullMatch(_) => ValueMatcher::Null,
            MatchPattern::DoubleMatch(number) => match &number.match_pattern {
                Some(DoublePattern::Range(range)) => ValueMatcher::Range(range.start, range.end),
                Some(DoublePattern::Exact(number)) => ValueMatcher::Number(*number),
                None => return Err(Invalid::new("a double matcher needs a pattern")),
            },
            MatchPattern::StringMatch(text) => {
                ValueMatcher::Text(StringMatcher::try_from(text).at("string_match")?)
            }
            MatchPattern::BoolMatch(want) => ValueMatcher::Bool(*want),
            MatchPattern::PresentMatch(want) => ValueMatcher::Present(*want),
            MatchPattern::ListMatch(list) => match &list.match_pattern {
                Some(wire::list_matcher::MatchPattern::OneOf(one)) => ValueMatcher::OneOf(
                    Box::new(ValueMatcher::try_from(one.as_ref()).at("list_match.one_of")?),
                ),
                None => return Err(Invalid::new("a list matcher needs a pattern")),
            },
            MatchPattern::OrMatch(or) => ValueMatcher::Or(try_all(
                "or_match.value_matchers",
                &or.value_matchers,
                ValueMatcher::try_from,
            )?),
        })
    }
}

impl MetadataMatcher {
    /// The filter whose metadata is looked at.
    pub(crate) fn filter(&self) -> &str {
        &self.filter
    }

    /// True when the value at the path fits; `metadata` is what [`Self::filter`] left, if anything.
    pub(crate) fn matches(&self, metadata: Option<&Struct>) -> bool {
        let value = metadata.and_then(|fields| value_at(fields, &self.path));
        self.value.matches(value) != self.invert
    }
}

impl ValueMatcher {
    fn matches(&self, value: Option<&Value>) -> bool {
        let kind = value.and_then(|value| value.kind.as_ref());
        match (self, kind) {
            (ValueMatcher::Present(want), kind) => {
                let is_present = kind.is_some_and(|kind| !matches!(kind, Kind::NullValue(_)));
                is_present == *want
            }
            (ValueMatcher::Or(matchers), _) => {
                matchers.iter().any(|matcher| matcher.matches(value))
            }
            (ValueMatcher::Null, Some(Kind::NullValue(_))) => true,
            (ValueMatcher::Range(start, end), Some(Kind::NumberValue(number))) => {
                (*start..*end).contains(number)
            }
            (ValueMatcher::Number(want), Some(Kind::NumberValue(number))) => {
                (want - number).abs() < f64::EPSILON
            }
            (ValueMatcher::Text(text), Some(Kind::StringValue(value))) => text.matches(value),
            (ValueMatcher::Bool(want), Some(Kind::BoolValue(value))) => want == value,
            (ValueMatcher::OneOf(one), Some(Kind::ListValue(list))) => {
                list.values.iter().any(|value| one.matches(Some(value)))
            }
            _ => false,
        }
    }
}

/// The value at a path of keys.
pub(crate) fn value_at<'a>(fields: &'a Struct, path: &[Box<str>]) -> Option<&'a Value> {
    let (last, parents) = path.split_last()?;
    let mut fields = fields;
    for key in parents {
        match fields.fields.get(key.as_ref())?.kind.as_ref()? {
            Kind::StructValue(inner) => fields = inner,
            _ => return None,
        }
    }
    fields.fields.get(last.as_ref())
}

#[cfg(test)]
#[allow(
    clippy::needless_pass_by_value,
    reason = "json! literals read best in place"
)]
mod tests {
    use super::*;

    fn fields(json: serde_json::Value) -> Struct {
        proto::json::from_value::<proto::envoy::config::core::v3::Metadata>(
            &serde_json::json!({"filter_metadata": {"f": json}}),
        )
        .unwrap()
        .filter_metadata
        .remove("f")
        .unwrap()
    }

    fn matcher(json: serde_json::Value) -> MetadataMatcher {
        MetadataMatcher::try_from(&proto::json::from_value::<wire::MetadataMatcher>(&json).unwrap())
            .unwrap()
    }

    #[test]
    fn nested_values_and_lists_match() {
        let data = fields(serde_json::json!({"a": {"b": ["x", "y"], "n": 3, "t": true}}));
        let at = |key: &str, value: serde_json::Value| {
            matcher(serde_json::json!({
                "filter": "f", "path": [{"key": "a"}, {"key": key}], "value": value
            }))
            .matches(Some(&data))
        };
        assert!(at(
            "b",
            serde_json::json!({"list_match": {"one_of": {"string_match": {"exact": "y"}}}})
        ));
        assert!(!at(
            "b",
            serde_json::json!({"string_match": {"exact": "y"}})
        ));
        assert!(at(
            "n",
            serde_json::json!({"double_match": {"range": {"start": 1, "end": 4}}})
        ));
        assert!(at("t", serde_json::json!({"bool_match": true})));
        assert!(at("t", serde_json::json!({"present_match": true})));
        assert!(!at("z", serde_json::json!({"present_match": true})));
        assert!(at(
            "z",
            serde_json::json!({"or_match": {"value_matchers": [
            {"present_match": false}, {"null_match": {}}]}})
        ));
    }
}
