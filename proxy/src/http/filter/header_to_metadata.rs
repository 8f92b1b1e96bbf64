//! The header-to-metadata filter: copies headers and cookies of requests, and headers of responses, into dynamic metadata.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName};
use prost::Message as _;
use prost_types::{Any, Struct, Value, value::Kind};
use proto::envoy::extensions::filters::http::header_to_metadata::v3 as wire;
use wire::config::{ValueEncode, ValueType};

use crate::http::headers::{RequestHeaders, ResponseHeaders};
use crate::http::stream::Stream;
use crate::invalid::{At as _, Invalid, try_all};
use crate::matcher::{FieldName, HeaderSource, RegexSubstitution};
use crate::router::cookie;

use super::{FilterContext, FilterFactory, FilterKind, FilterStatus, HttpFilter, RouteValue};

const NAME: &str = "envoy.filters.http.header_to_metadata";
const MESSAGE: &str = "envoy.extensions.filters.http.header_to_metadata.v3.Config";
/// Longer values are not copied.
const MAX_VALUE: usize = 8 << 10;

/// The filter's row.
pub(crate) const KIND: FilterKind = FilterKind {
    message: MESSAGE,
    name: NAME,
    build,
    routes: &[(MESSAGE, route)],
};

struct Rules {
    request: Vec<Rule>,
    response: Vec<Rule>,
}

struct Rule {
    source: Source,
    present: Option<Target>,
    missing: Option<Target>,
    removes: bool,
}

enum Source {
    Header(FieldName),
    Cookie(Box<str>),
}

struct Target {
    namespace: String,
    key: String,
    value: String,
    rewrite: Option<RegexSubstitution>,
    kind: ValueType,
    is_base64: bool,
}

struct Factory {
    name: Arc<str>,
    rules: Arc<Rules>,
}

struct Filter {
    name: Arc<str>,
    rules: Arc<Rules>,
}

fn build(any: &Any, context: &FilterContext<'_>) -> Result<Arc<dyn FilterFactory>, Invalid> {
    Ok(Arc::new(Factory {
        name: context.name.into(),
        rules: Arc::new(Rules::try_new(any)?),
    }))
}

fn route(any: &Any) -> Result<RouteValue, Invalid> {
    Ok(Arc::new(Arc::new(Rules::try_new(any)?)))
}

impl Rules {
    fn try_new(any: &Any) -> Result<Self, Invalid> {
        let config: wire::Config = super::unpack(any)?;
        if config.request_rules.is_empty() && config.response_rules.is_empty() {
            return Err(Invalid::new("at least one rule is needed"));
        }
        let response = try_all("response_rules", &config.response_rules, |rule| {
            if !rule.cookie.is_empty() {
                return Err(Invalid::new("a response has no cookie").at("cookie"));
            }
            Rule::try_from(rule)
        })?;
        Ok(Rules {
            request: try_all("request_rules", &config.request_rules, Rule::try_from)?,
            response,
        })
    }
}

impl TryFrom<&wire::config::Rule> for Rule {
    type Error = Invalid;

    fn try_from(rule: &wire::config::Rule) -> Result<Self, Invalid> {
        let source = match (rule.header.as_str(), rule.cookie.as_str()) {
            ("", "") => return Err(Invalid::new("a header or a cookie is needed")),
            ("", cookie) => Source::Cookie(cookie.into()),
            (header, "") => Source::Header(FieldName::parse(header).at("header")?),
            _ => return Err(Invalid::new("either a header or a cookie, not both")),
        };
        let target = |pair: &Option<wire::config::KeyValuePair>| {
            pair.as_ref().map(Target::try_from).transpose()
        };
        let rule = Rule {
            source,
            present: target(&rule.on_header_present).at("on_header_present")?,
            missing: target(&rule.on_header_missing).at("on_header_missing")?,
            removes: rule.remove,
        };
        if rule.present.is_none() && rule.missing.is_none() {
            return Err(Invalid::new(
                "on_header_present or on_header_missing is needed",
            ));
        }
        if rule.removes && matches!(rule.source, Source::Cookie(_)) {
            return Err(Invalid::new("a cookie cannot be removed").at("remove"));
        }
        if rule.missing.as_ref().is_some_and(|t| t.value.is_empty()) {
            return Err(Invalid::new("a value is needed").at("on_header_missing"));
        }
        Ok(rule)
    }
}

impl TryFrom<&wire::config::KeyValuePair> for Target {
    type Error = Invalid;

    fn try_from(pair: &wire::config::KeyValuePair) -> Result<Self, Invalid> {
        if pair.key.is_empty() {
            return Err(Invalid::new("a key is needed").at("key"));
        }
        let rewrite = pair
            .regex_value_rewrite
            .as_ref()
            .map(RegexSubstitution::try_from)
            .transpose()
            .at("regex_value_rewrite")?;
        if rewrite.is_some() && !pair.value.is_empty() {
            return Err(Invalid::new(
                "value and regex_value_rewrite exclude each other",
            ));
        }
        Ok(Target {
            namespace: match pair.metadata_namespace.as_str() {
                "" => NAME.to_owned(),
                namespace => namespace.to_owned(),
            },
            key: pair.key.clone(),
            value: pair.value.clone(),
            rewrite,
            kind: pair.r#type(),
            is_base64: pair.encode() == ValueEncode::Base64,
        })
    }
}

impl Target {
    fn put(&self, found: Option<Cow<'_, [u8]>>, stream: &mut Stream) -> Option<()> {
        let text = match found {
            Some(found) if self.value.is_empty() => {
                let text = match &self.rewrite {
                    Some(rewrite) => rewrite.apply(&found).into_owned(),
                    None => found.into_owned(),
                };
                String::from_utf8(text).ok()?
            }
            _ => self.value.clone(),
        };
        if text.is_empty() || text.len() > MAX_VALUE {
            return None;
        }
        let text = if self.is_base64 {
            STANDARD.decode(text).ok()?
        } else {
            text.into_bytes()
        };
        let value = match self.kind {
            ValueType::String => Value::from(String::from_utf8(text).ok()?),
            ValueType::Number => Value::from(
                std::str::from_utf8(&text)
                    .ok()?
                    .trim()
                    .parse::<f64>()
                    .ok()?,
            ),
            ValueType::ProtobufValue => Value::decode(text.as_slice()).ok()?,
        };
        if matches!(value.kind, None | Some(Kind::NullValue(_))) {
            return None;
        }
        let fields = Struct {
            fields: [(self.key.clone(), value)].into(),
        };
        stream.info.metadata.merge(self.namespace.clone(), fields);
        Some(())
    }
}

impl FilterFactory for Factory {
    fn create(&self) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(Filter {
            name: self.name.clone(),
            rules: self.rules.clone(),
        }))
    }
}

impl Filter {
    fn choose(&mut self, stream: &Stream) {
        if let Some(rules) = stream.config_of::<Arc<Rules>>(&self.name, NAME) {
            self.rules = rules.clone();
        }
    }
}

/// Applies a rule; the name of the header that is to go.
fn apply(rule: &Rule, found: Option<Cow<'_, [u8]>>, stream: &mut Stream) -> Option<HeaderName> {
    let is_present = found.is_some();
    let target = if is_present {
        &rule.present
    } else {
        &rule.missing
    };
    if let Some(target) = target {
        let _ = target.put(found, stream);
    }
    match &rule.source {
        Source::Header(FieldName::Header(name)) if is_present && rule.removes => Some(name.clone()),
        _ => None,
    }
}

fn remove(map: &mut HeaderMap, name: Option<HeaderName>) {
    if let Some(name) = name {
        map.remove(name);
    }
}

impl HttpFilter for Filter {
    fn decode_headers(
        &mut self,
        headers: &mut RequestHeaders,
        stream: &mut Stream,
    ) -> FilterStatus {
        self.choose(stream);
        for rule in &self.rules.request {
            let found = match &rule.source {
                Source::Header(name) => headers.field(name),
                Source::Cookie(name) => {
                    cookie(headers, name).map(|value| Cow::Borrowed(value.as_bytes()))
                }
            };
            let gone = apply(rule, found, stream);
            remove(&mut headers.map, gone);
        }
        FilterStatus::Continue
    }

    fn encode_headers(&mut self, headers: &mut ResponseHeaders, stream: &mut Stream) {
        self.choose(stream);
        for rule in &self.rules.response {
            let Source::Header(name) = &rule.source else {
                continue;
            };
            let gone = apply(rule, headers.field(name), stream);
            remove(&mut headers.map, gone);
        }
    }
}
