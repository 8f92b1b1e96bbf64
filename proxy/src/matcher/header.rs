//! Header matchers over anything that has header fields. Of several values of one header each is compared by itself, as
//! Envoy does: one that fits is enough. `:path`, `:method`, `:authority` (or `host`), `:scheme` and `:status` are fields like any other.

use std::borrow::Cow;

use http::HeaderName;
use proto::envoy::config::route::v3 as wire;
use proto::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;

use crate::invalid::{At as _, Invalid};

use super::{StringMatcher, full_regex};

/// A header or a pseudo header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FieldName {
    /// `:method`
    Method,
    /// `:path`
    Path,
    /// `:authority` and `host`
    Authority,
    /// `:scheme`
    Scheme,
    /// `:status`
    Status,
    /// `:protocol`
    Protocol,
    /// Any ordinary header.
    Header(HeaderName),
}

/// Something with header fields: a request, a response, trailers.
pub(crate) trait HeaderSource {
    /// The value of a field; several values are joined with commas.
    fn field(&self, name: &FieldName) -> Option<Cow<'_, [u8]>>;

    /// The header fields.
    fn map(&self) -> &http::HeaderMap;
}

/// A compiled `HeaderMatcher`.
#[derive(Debug, Clone)]
pub(crate) struct HeaderMatcher {
    name: FieldName,
    condition: Condition,
    invert: bool,
    missing_as_empty: bool,
}

#[derive(Debug, Clone)]
enum Condition {
    Present(bool),
    Range(i64, i64),
    Text(StringMatcher),
}

impl FieldName {
    /// The field called `name`, whatever its case.
    pub(crate) fn parse(name: &str) -> Result<Self, Invalid> {
        Ok(match name.to_ascii_lowercase().as_str() {
            ":method" => FieldName::Method,
            ":path" => FieldName::Path,
            ":authority" | "host" => FieldName::Authority,
            ":scheme" => FieldName::Scheme,
            ":status" => FieldName::Status,
            ":protocol" => FieldName::Protocol,
            other => FieldName::Header(
                HeaderName::from_bytes(other.as_bytes())
                    .map_err(|_| Invalid::new(format!("'{name}' is not a header name")))?,
            ),
        })
    }
}

impl FieldName {
    /// As it is written.
    pub(crate) fn as_str(&self) -> &str {
        match self {
            FieldName::Method => ":method",
            FieldName::Path => ":path",
            FieldName::Authority => ":authority",
            FieldName::Scheme => ":scheme",
            FieldName::Status => ":status",
            FieldName::Protocol => ":protocol",
            FieldName::Header(name) => name.as_str(),
        }
    }
}

impl HeaderSource for http::HeaderMap {
    fn field(&self, name: &FieldName) -> Option<Cow<'_, [u8]>> {
        let FieldName::Header(name) = name else {
            return None;
        };
        let mut values = self.get_all(name).iter();
        let first = values.next()?.as_bytes();
        let Some(second) = values.next() else {
            return Some(Cow::Borrowed(first));
        };
        let mut joined = first.to_vec();
        for value in std::iter::once(second).chain(values) {
            joined.push(b',');
            joined.extend_from_slice(value.as_bytes());
        }
        Some(Cow::Owned(joined))
    }

    fn map(&self) -> &http::HeaderMap {
        self
    }
}

impl TryFrom<&wire::HeaderMatcher> for HeaderMatcher {
    type Error = Invalid;

    #[allow(
        deprecated,
        reason = "control planes still send the deprecated match fields"
    )]
    fn try_from(matcher: &wire::HeaderMatcher) -> Result<Self, Invalid> {
        if matcher.name.is_empty() {
            return Err(Invalid::new("a header matcher needs a name"));
        }
        let condition = match &matcher.header_match_specifier {
            None => Condition::Present(true),
            Some(HeaderMatchSpecifier::PresentMatch(present)) => Condition::Present(*present),
            Some(HeaderMatchSpecifier::RangeMatch(range)) => {
                Condition::Range(range.start, range.end)
            }
            Some(HeaderMatchSpecifier::ExactMatch(text)) => {
                Condition::Text(StringMatcher::Exact(text.as_str().into()))
            }
            Some(HeaderMatchSpecifier::PrefixMatch(text)) => {
                Condition::Text(StringMatcher::Prefix(text.as_str().into(), false))
            }
            Some(HeaderMatchSpecifier::SuffixMatch(text)) => {
                Condition::Text(StringMatcher::Suffix(text.as_str().into(), false))
            }
            Some(HeaderMatchSpecifier::ContainsMatch(text)) => {
                Condition::Text(StringMatcher::Contains(text.as_str().into(), false))
            }
            Some(HeaderMatchSpecifier::SafeRegexMatch(regex)) => Condition::Text(
                StringMatcher::Regex(full_regex(&regex.regex).at("safe_regex_match")?),
            ),
            Some(HeaderMatchSpecifier::StringMatch(text)) => {
                Condition::Text(StringMatcher::try_from(text).at("string_match")?)
            }
        };
        Ok(HeaderMatcher {
            name: FieldName::parse(&matcher.name).at("name")?,
            condition,
            invert: matcher.invert_match,
            missing_as_empty: matcher.treat_missing_header_as_empty,
        })
    }
}

impl HeaderMatcher {
    /// True when `headers` fit. A missing header never fits a value condition, inverted or not, unless it counts as empty.
    pub(crate) fn matches(&self, headers: &impl HeaderSource) -> bool {
        let fits = match &self.name {
            FieldName::Header(name) => {
                let values = headers.map().get_all(name).iter();
                self.fits(values.map(http::HeaderValue::as_bytes))
            }
            pseudo => self.fits(headers.field(pseudo).as_deref().into_iter()),
        };
        // QUIRK: a value condition ignores `invert` when there is no header, as Envoy documents.
        fits.is_some_and(|fits| fits != self.invert)
    }

    /// Whether one of a field's values fits; `None` when there would have to be one.
    fn fits<'a>(&self, values: impl Iterator<Item = &'a [u8]>) -> Option<bool> {
        let mut values = values.peekable();
        let is_there = values.peek().is_some();
        if let Condition::Present(want) = self.condition {
            return Some((is_there || self.missing_as_empty) == want);
        }
        if !is_there {
            return self.missing_as_empty.then(|| self.fits_value(b""));
        }
        Some(values.any(|value| self.fits_value(value)))
    }

    fn fits_value(&self, value: &[u8]) -> bool {
        match &self.condition {
            Condition::Present(want) => *want,
            Condition::Range(start, end) => std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.trim().parse::<i64>().ok())
                .is_some_and(|number| (*start..*end).contains(&number)),
            Condition::Text(text) => text.matches(value),
        }
    }

    /// True when all of `matchers` fit.
    pub(crate) fn all(matchers: &[HeaderMatcher], headers: &impl HeaderSource) -> bool {
        matchers.iter().all(|matcher| matcher.matches(headers))
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    fn matcher(specifier: Option<HeaderMatchSpecifier>, invert: bool) -> HeaderMatcher {
        HeaderMatcher::try_from(&wire::HeaderMatcher {
            name: "X-Test".into(),
            header_match_specifier: specifier,
            invert_match: invert,
            ..Default::default()
        })
        .unwrap()
    }

    fn headers(values: &[&'static str]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for value in values {
            map.append("x-test", http::HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn presence_range_and_inversion() {
        assert!(matcher(None, false).matches(&headers(&["a"])));
        assert!(!matcher(None, false).matches(&headers(&[])));
        assert!(matcher(None, true).matches(&headers(&[])));
        let absent = matcher(Some(HeaderMatchSpecifier::PresentMatch(false)), false);
        assert!(absent.matches(&headers(&[])));
        let range = HeaderMatchSpecifier::RangeMatch(proto::envoy::r#type::v3::Int64Range {
            start: -10,
            end: 0,
        });
        assert!(matcher(Some(range.clone()), false).matches(&headers(&["-1"])));
        assert!(!matcher(Some(range.clone()), false).matches(&headers(&["0"])));
        assert!(!matcher(Some(range), false).matches(&headers(&["x"])));
    }

    #[test]
    fn one_of_several_values_is_enough() {
        let text = |value: &str| {
            Some(HeaderMatchSpecifier::StringMatch(
                proto::envoy::r#type::matcher::v3::StringMatcher {
                    match_pattern: Some(
                        proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern::Exact(
                            value.into(),
                        ),
                    ),
                    ignore_case: false,
                },
            ))
        };
        assert!(!matcher(text("a,b"), false).matches(&headers(&["a", "b"])));
        assert!(matcher(text("a"), false).matches(&headers(&["a", "b"])));
        assert!(matcher(text("b"), false).matches(&headers(&["a", "b"])));
        assert!(!matcher(text("b"), true).matches(&headers(&["a", "b"])));
        assert!(matcher(text("a"), true).matches(&headers(&["b"])));
        assert!(!matcher(text("a"), true).matches(&headers(&[])));
    }
}
