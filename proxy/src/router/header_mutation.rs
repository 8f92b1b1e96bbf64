//! Header changes of routes, virtual hosts, route tables and weighted clusters: removals first, then additions, whose values
//! may hold format operators.

use http::header::{Entry, HeaderMap, HeaderName, HeaderValue};
use proto::envoy::config::core::v3 as wire;
use wire::header_value_option::HeaderAppendAction;

use crate::access_log::{Format, FormatContext};
use crate::http::headers::{RequestHeaders, ResponseHeaders};
use crate::invalid::{At as _, Invalid, try_all};
use crate::stream_info::StreamInfo;

use super::header_name;

/// A list of changes; mostly there are none, in thousands of places.
#[derive(Debug, Default)]
pub(crate) struct HeaderMutations(Option<Box<Lists>>);

#[derive(Debug)]
struct Lists {
    remove: Vec<HeaderName>,
    add: Vec<Addition>,
}

#[derive(Debug)]
struct Addition {
    name: HeaderName,
    value: Value,
    action: HeaderAppendAction,
    keep_empty: bool,
}

#[derive(Debug)]
enum Value {
    Literal(HeaderValue),
    Format(Format),
}

impl HeaderMutations {
    /// Checks both lists.
    pub(crate) fn try_new(
        add: &[wire::HeaderValueOption],
        remove: &[String],
    ) -> Result<Self, Invalid> {
        let lists = Lists {
            add: try_all("add", add, Addition::try_from)?,
            remove: try_all("remove", remove, |name| changeable(name))?,
        };
        let is_any = !lists.add.is_empty() || !lists.remove.is_empty();
        Ok(HeaderMutations(is_any.then(|| Box::new(lists))))
    }

    /// Changes a request.
    pub(crate) fn apply_to_request(&self, headers: &mut RequestHeaders, info: &StreamInfo) {
        let Some(lists) = &self.0 else { return };
        for name in &lists.remove {
            headers.map.remove(name);
        }
        for addition in &lists.add {
            let context = FormatContext::of_request(info, headers);
            let value = addition.value(&context);
            addition.put(value, &mut headers.map);
        }
    }

    /// Changes a response.
    pub(crate) fn apply_to_response(
        &self,
        response: &mut ResponseHeaders,
        request: Option<&RequestHeaders>,
        info: &StreamInfo,
    ) {
        let Some(lists) = &self.0 else { return };
        for name in &lists.remove {
            response.map.remove(name);
        }
        for addition in &lists.add {
            let context = FormatContext {
                request,
                response: Some(response),
                ..FormatContext::of(info)
            };
            let value = addition.value(&context);
            addition.put(value, &mut response.map);
        }
    }
}

impl TryFrom<&wire::HeaderValueOption> for Addition {
    type Error = Invalid;

    fn try_from(option: &wire::HeaderValueOption) -> Result<Self, Invalid> {
        let header = option
            .header
            .as_ref()
            .ok_or_else(|| Invalid::new("a header is needed"))?;
        #[allow(deprecated, reason = "control planes still send `append`")]
        let action = match option.append {
            Some(true) => HeaderAppendAction::AppendIfExistsOrAdd,
            Some(false) => HeaderAppendAction::OverwriteIfExistsOrAdd,
            None => option.append_action(),
        };
        let format = Format::parse(&header.value).at("header.value")?;
        let value = match format.literal() {
            Some(text) => Value::Literal(
                HeaderValue::from_str(text)
                    .map_err(|_| Invalid::new("not a header value").at("header.value"))?,
            ),
            None => Value::Format(format),
        };
        Ok(Addition {
            name: changeable(&header.key).at("header.key")?,
            value,
            action,
            keep_empty: option.keep_empty_value,
        })
    }
}

impl Addition {
    fn value(&self, context: &FormatContext<'_>) -> Option<HeaderValue> {
        let value = match &self.value {
            Value::Literal(value) => value.clone(),
            Value::Format(format) => HeaderValue::from_str(&format.text(context, "")).ok()?,
        };
        (self.keep_empty || !value.is_empty()).then_some(value)
    }

    fn put(&self, value: Option<HeaderValue>, map: &mut HeaderMap) {
        let Some(value) = value else {
            return;
        };
        let name = self.name.clone();
        match self.action {
            HeaderAppendAction::AppendIfExistsOrAdd => {
                map.append(name, value);
            }
            HeaderAppendAction::AddIfAbsent => {
                map.entry(name).or_insert(value);
            }
            HeaderAppendAction::OverwriteIfExistsOrAdd => {
                map.insert(name, value);
            }
            HeaderAppendAction::OverwriteIfExists => {
                if let Entry::Occupied(mut entry) = map.entry(name) {
                    entry.insert(value);
                }
            }
        }
    }
}

/// A header that may be changed: no pseudo header, and not `host`.
fn changeable(name: &str) -> Result<HeaderName, Invalid> {
    if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
        return Err(Invalid::new(format!(
            ":-prefixed or host headers may not be modified ('{name}')"
        )));
    }
    header_name(name)
}
