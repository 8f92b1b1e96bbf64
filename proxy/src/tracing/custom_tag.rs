//! Custom tags: what a configuration wants to see on spans.

use http::HeaderName;
use prost_types::value::Kind;
use proto::envoy::r#type::metadata::v3::metadata_key::path_segment::Segment;
use proto::envoy::r#type::metadata::v3::metadata_kind;
use proto::envoy::r#type::tracing::v3 as wire;
use wire::custom_tag::Type;

use crate::access_log::format::write_value;
use crate::access_log::{Format, FormatContext};
use crate::invalid::{At as _, Invalid, try_all};
use crate::matcher::{FieldName, HeaderSource as _, value_at};
use crate::router::header_name;

/// A compiled `CustomTag`.
#[derive(Debug, Clone)]
pub(crate) struct CustomTag {
    /// The tag's name.
    pub(crate) name: Box<str>,
    value: Value,
}

#[derive(Debug, Clone)]
enum Value {
    Fixed(Box<str>),
    Header(HeaderName, Box<str>),
    Metadata {
        is_route: bool,
        filter: Box<str>,
        path: Vec<Box<str>>,
        default: Box<str>,
    },
    Format(Format),
}

impl TryFrom<&wire::CustomTag> for CustomTag {
    type Error = Invalid;

    fn try_from(tag: &wire::CustomTag) -> Result<Self, Invalid> {
        if tag.tag.is_empty() {
            return Err(Invalid::new("a tag needs a name").at("tag"));
        }
        let kind = tag
            .r#type
            .as_ref()
            .ok_or_else(|| Invalid::new("a tag needs a type"))?;
        let value = match kind {
            Type::Literal(literal) => Value::Fixed(literal.value.as_str().into()),
            Type::Environment(environment) => Value::Fixed(
                std::env::var_os(&environment.name)
                    .and_then(|value| value.into_string().ok())
                    .unwrap_or_else(|| environment.default_value.clone())
                    .into(),
            ),
            Type::RequestHeader(header) => Value::Header(
                header_name(&header.name).at("request_header.name")?,
                header.default_value.as_str().into(),
            ),
            Type::Metadata(metadata) => {
                let kind = metadata.kind.as_ref().and_then(|kind| kind.kind.as_ref());
                let key = metadata
                    .metadata_key
                    .as_ref()
                    .ok_or_else(|| Invalid::new("a metadata_key is needed").at("metadata"))?;
                Value::Metadata {
                    is_route: match kind {
                        Some(metadata_kind::Kind::Request(_)) => false,
                        Some(metadata_kind::Kind::Route(_)) => true,
                        Some(metadata_kind::Kind::Cluster(_) | metadata_kind::Kind::Host(_)) => {
                            return Err(Invalid::unsupported("metadata of clusters and hosts"));
                        }
                        None => return Err(Invalid::new("a kind is needed").at("metadata")),
                    },
                    filter: key.key.as_str().into(),
                    path: try_all("path", &key.path, |segment| match &segment.segment {
                        Some(Segment::Key(key)) => Ok(key.as_str().into()),
                        _ => Err(Invalid::new("a path segment needs a key")),
                    })?,
                    default: metadata.default_value.as_str().into(),
                }
            }
            Type::Value(text) => Value::Format(Format::parse(text).at("value")?),
        };
        Ok(CustomTag {
            name: tag.tag.as_str().into(),
            value,
        })
    }
}

impl CustomTag {
    /// The value for a stream, if it has one.
    pub(crate) fn value(&self, context: &FormatContext<'_>) -> Option<String> {
        let text = match &self.value {
            Value::Fixed(text) => text.to_string(),
            Value::Header(name, default) => context
                .request
                .and_then(|request| request.field(&FieldName::Header(name.clone())))
                .map(|value| String::from_utf8_lossy(&value).into_owned())
                .unwrap_or_else(|| default.to_string()),
            Value::Metadata {
                is_route,
                filter,
                path,
                default,
            } => {
                let info = context.info;
                let route = info.route.as_ref();
                let fields = if *is_route {
                    route
                        .and_then(|route| route.route().metadata.as_ref())
                        .and_then(|all| all.filter_metadata.get(filter.as_ref()))
                } else {
                    info.metadata.get(filter)
                };
                let value = fields.and_then(|fields| value_at(fields, path));
                match value.map(|value| (value, &value.kind)) {
                    Some((_, Some(Kind::StringValue(text)))) => text.clone(),
                    Some((value, Some(kind))) if !matches!(kind, Kind::NullValue(_)) => {
                        let mut out = String::new();
                        write_value(value, &mut out);
                        out
                    }
                    _ => default.to_string(),
                }
            }
            Value::Format(format) => format.text(context, ""),
        };
        (!text.is_empty()).then_some(text)
    }
}
