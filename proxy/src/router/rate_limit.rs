//! Rate limits of routes and virtual hosts: what a request is described by to a rate limiter, global or local.

use std::net::IpAddr;

use prost_types::value::Kind;
use proto::envoy::config::core::v3::CidrRange;
use proto::envoy::config::route::v3 as wire;
use wire::rate_limit::action::ActionSpecifier;
use wire::rate_limit::action::meta_data::Source;
use wire::rate_limit::r#override::OverrideSpecifier;

use crate::access_log::{Format, FormatContext};
use crate::http::headers::RequestHeaders;
use crate::invalid::{At as _, Invalid, try_all};
use crate::matcher::{Cidr, HeaderMatcher, HeaderSource as _, value_at};
use crate::stream_info::StreamInfo;

use super::header_name;
use super::route_match::{QueryMatcher, query_value};

mod metadata_path;

use metadata_path::MetadataPath;

/// The rate limits of one level.
#[derive(Debug, Default)]
pub(crate) struct RateLimits(Vec<RateLimit>);

#[derive(Debug)]
struct RateLimit {
    stage: u32,
    moment: Moment,
    actions: Vec<Action>,
    limit: Option<Limit>,
    hits: Option<Hits>,
}

/// What a rate limiter is asked about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Descriptor {
    /// Keys with their values, in order.
    pub(crate) entries: Vec<(String, String)>,
    /// A limit instead of the server's: requests and `RateLimitUnit`.
    pub(crate) limit: Option<(u32, i32)>,
    /// How much the request costs.
    pub(crate) hits: Option<u64>,
}

/// When a rate limiter is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Before the request goes on.
    Request,
    /// When the stream is over: what it has cost is told, and the answer does not count.
    End,
}

#[derive(Debug)]
enum Limit {
    Fixed(u32, i32),
    Metadata(MetadataPath),
}

#[derive(Debug)]
enum Hits {
    Number(u64),
    Format(Format),
}

#[derive(Debug)]
enum Action {
    SourceCluster,
    DestinationCluster,
    Header {
        name: http::HeaderName,
        key: Box<str>,
        skips: bool,
    },
    Query {
        name: Box<str>,
        key: Box<str>,
        skips: bool,
    },
    RemoteAddress,
    MaskedRemoteAddress(u8, u8),
    Generic {
        key: Box<str>,
        value: Value,
    },
    HeaderMatch {
        key: Box<str>,
        value: Value,
        expects: bool,
        headers: Vec<HeaderMatcher>,
    },
    QueryMatch {
        key: Box<str>,
        value: Value,
        expects: bool,
        parameters: Vec<QueryMatcher>,
    },
    AddressMatch {
        key: Box<str>,
        value: Value,
        ranges: Vec<Cidr>,
        invert: bool,
    },
    Metadata {
        key: Box<str>,
        source: Source,
        path: MetadataPath,
        default: Box<str>,
        skips: bool,
    },
}

/// A descriptor's value: text with operators, and what to say when they have none.
#[derive(Debug)]
struct Value {
    format: Format,
    default: Box<str>,
}

impl RateLimits {
    /// Checks the rate limits of one level.
    pub(crate) fn try_new(limits: &[wire::RateLimit]) -> Result<Self, Invalid> {
        try_all("rate_limits", limits, RateLimit::try_from).map(RateLimits)
    }

    /// True when there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the descriptors of a request for a stage and a moment, or for all moments.
    pub(crate) fn describe(
        &self,
        (stage, moment): (u32, Option<Moment>),
        headers: &RequestHeaders,
        info: &StreamInfo,
        service_cluster: &str,
        out: &mut Vec<Descriptor>,
    ) {
        let limits = self.0.iter();
        for limit in limits.filter(|limit| {
            limit.stage == stage && moment.is_none_or(|moment| limit.moment == moment)
        }) {
            out.extend(limit.describe(headers, info, service_cluster));
        }
    }
}

impl TryFrom<&wire::RateLimit> for RateLimit {
    type Error = Invalid;

    fn try_from(limit: &wire::RateLimit) -> Result<Self, Invalid> {
        if limit.actions.is_empty() {
            return Err(Invalid::new("at least one action is needed").at("actions"));
        }
        let stage = limit.stage.unwrap_or(0);
        if stage > 10 {
            return Err(Invalid::new("a stage must not be greater than 10").at("stage"));
        }
        let specifier = limit
            .limit
            .as_ref()
            .and_then(|limit| limit.override_specifier.as_ref());
        Ok(RateLimit {
            stage,
            moment: if limit.apply_on_stream_done {
                Moment::End
            } else {
                Moment::Request
            },
            actions: try_all("actions", &limit.actions, Action::try_from)?,
            limit: match specifier {
                None => None,
                Some(OverrideSpecifier::RateLimit(fixed)) => {
                    Some(Limit::Fixed(fixed.requests_per_unit, fixed.unit))
                }
                Some(OverrideSpecifier::DynamicMetadata(dynamic)) => Some(Limit::Metadata(
                    MetadataPath::try_new(dynamic.metadata_key.as_ref()).at("limit")?,
                )),
            },
            hits: match &limit.hits_addend {
                None => None,
                Some(hits) if hits.is_negative_hits => {
                    return Err(Invalid::unsupported("is_negative_hits").at("hits_addend"));
                }
                Some(hits) if !hits.format.is_empty() => {
                    Some(Hits::Format(Format::parse(&hits.format).at("hits_addend")?))
                }
                Some(hits) => hits.number.map(Hits::Number),
            },
        })
    }
}

impl Value {
    fn try_new(value: &str, default: &str) -> Result<Self, Invalid> {
        Ok(Value {
            format: Format::parse(value).at("descriptor_value")?,
            default: default.into(),
        })
    }

    fn text(&self, headers: &RequestHeaders, info: &StreamInfo) -> Option<String> {
        let mut out = String::new();
        let has_value = self
            .format
            .write(&FormatContext::of_request(info, headers), "", &mut out);
        if has_value && !out.is_empty() {
            return Some(out);
        }
        (!self.default.is_empty()).then(|| self.default.to_string())
    }
}

impl TryFrom<&wire::rate_limit::Action> for Action {
    type Error = Invalid;

    #[allow(deprecated, reason = "control planes still send dynamic_metadata")]
    fn try_from(action: &wire::rate_limit::Action) -> Result<Self, Invalid> {
        let specifier = action
            .action_specifier
            .as_ref()
            .ok_or_else(|| Invalid::new("an action specifier is needed"))?;
        Ok(match specifier {
            ActionSpecifier::SourceCluster(_) => Action::SourceCluster,
            ActionSpecifier::DestinationCluster(_) => Action::DestinationCluster,
            ActionSpecifier::RequestHeaders(header) => Action::Header {
                name: header_name(&header.header_name).at("request_headers.header_name")?,
                key: header.descriptor_key.as_str().into(),
                skips: header.skip_if_absent,
            },
            ActionSpecifier::QueryParameters(query) => Action::Query {
                name: query.query_parameter_name.as_str().into(),
                key: query.descriptor_key.as_str().into(),
                skips: query.skip_if_absent,
            },
            ActionSpecifier::RemoteAddress(_) => Action::RemoteAddress,
            ActionSpecifier::MaskedRemoteAddress(masked) => Action::MaskedRemoteAddress(
                u8::try_from(masked.v4_prefix_mask_len.unwrap_or(32).min(32)).unwrap_or(32),
                u8::try_from(masked.v6_prefix_mask_len.unwrap_or(128).min(128)).unwrap_or(128),
            ),
            ActionSpecifier::GenericKey(generic) => Action::Generic {
                key: or(&generic.descriptor_key, "generic_key"),
                value: Value::try_new(&generic.descriptor_value, &generic.default_value)
                    .at("generic_key")?,
            },
            ActionSpecifier::HeaderValueMatch(_)
            | ActionSpecifier::QueryParameterValueMatch(_)
            | ActionSpecifier::RemoteAddressMatch(_) => return Action::of_match(specifier),
            ActionSpecifier::DynamicMetadata(dynamic) => Action::Metadata {
                key: dynamic.descriptor_key.as_str().into(),
                source: Source::Dynamic,
                path: MetadataPath::try_new(dynamic.metadata_key.as_ref())
                    .at("dynamic_metadata")?,
                default: dynamic.default_value.as_str().into(),
                skips: false,
            },
            ActionSpecifier::Metadata(metadata) => Action::Metadata {
                key: metadata.descriptor_key.as_str().into(),
                source: match metadata.source() {
                    source @ (Source::Dynamic | Source::RouteEntry) => source,
                    other => {
                        return Err(Invalid::unsupported(other.as_str_name()).at("metadata.source"));
                    }
                },
                path: MetadataPath::try_new(metadata.metadata_key.as_ref()).at("metadata")?,
                default: metadata.default_value.as_str().into(),
                skips: metadata.skip_if_absent,
            },
            ActionSpecifier::Extension(extension) => {
                return Err(Invalid::unsupported(&format!(
                    "rate limit descriptor extension '{}'",
                    extension.name
                )));
            }
        })
    }
}

impl RateLimit {
    /// The descriptor, unless an action has nothing to say.
    fn describe(
        &self,
        headers: &RequestHeaders,
        info: &StreamInfo,
        service_cluster: &str,
    ) -> Option<Descriptor> {
        let mut descriptor = Descriptor::default();
        for action in &self.actions {
            if let Some(entry) = action.entry(headers, info, service_cluster)? {
                descriptor.entries.push(entry);
            }
        }
        descriptor.limit = match &self.limit {
            None => None,
            Some(Limit::Fixed(requests, unit)) => Some((*requests, *unit)),
            Some(Limit::Metadata(path)) => path.limit(info),
        };
        descriptor.hits = match &self.hits {
            None => None,
            Some(Hits::Number(hits)) => Some(*hits),
            Some(Hits::Format(format)) => format
                .text(&FormatContext::of_request(info, headers), "")
                .parse()
                .ok(),
        };
        Some(descriptor)
    }
}

fn or(key: &str, default: &str) -> Box<str> {
    if key.is_empty() { default } else { key }.into()
}

impl Action {
    /// Actions that speak only if something matches.
    fn of_match(specifier: &ActionSpecifier) -> Result<Self, Invalid> {
        Ok(match specifier {
            ActionSpecifier::HeaderValueMatch(matches) => Action::HeaderMatch {
                key: or(&matches.descriptor_key, "header_match"),
                value: Value::try_new(&matches.descriptor_value, &matches.default_value)
                    .at("header_value_match")?,
                expects: matches.expect_match.unwrap_or(true),
                headers: try_all("headers", &matches.headers, HeaderMatcher::try_from)
                    .at("header_value_match")?,
            },
            ActionSpecifier::QueryParameterValueMatch(matches) => Action::QueryMatch {
                key: or(&matches.descriptor_key, "query_match"),
                value: Value::try_new(&matches.descriptor_value, &matches.default_value)
                    .at("query_parameter_value_match")?,
                expects: matches.expect_match.unwrap_or(true),
                parameters: try_all(
                    "query_parameters",
                    &matches.query_parameters,
                    QueryMatcher::try_from,
                )?,
            },
            ActionSpecifier::RemoteAddressMatch(matches) => {
                let matcher = matches.address_matcher.clone().unwrap_or_default();
                Action::AddressMatch {
                    key: or(&matches.descriptor_key, "remote_address_match"),
                    value: Value::try_new(&matches.descriptor_value, &matches.default_value)
                        .at("remote_address_match")?,
                    ranges: try_all("ranges", &matcher.ranges, |range| {
                        Cidr::try_from(&CidrRange {
                            address_prefix: range.address_prefix.clone(),
                            prefix_len: range.prefix_len,
                        })
                    })?,
                    invert: matcher.invert_match,
                }
            }
            _ => return Err(Invalid::new("an action specifier is needed")),
        })
    }

    /// `None` when the whole descriptor is off, `Some(None)` when only this entry is.
    #[allow(
        clippy::option_option,
        reason = "the two kinds of nothing are Envoy's: skip the entry, skip the descriptor"
    )]
    fn entry(
        &self,
        headers: &RequestHeaders,
        info: &StreamInfo,
        service_cluster: &str,
    ) -> Option<Option<(String, String)>> {
        let some = |key: &str, value: String| Some(Some((key.to_owned(), value)));
        match self {
            Action::SourceCluster => some("source_cluster", service_cluster.to_owned()),
            Action::DestinationCluster => {
                let cluster = info.route.as_ref()?.cluster()?;
                some("destination_cluster", cluster.to_string())
            }
            Action::Header { name, key, skips } => {
                match headers.field(&crate::matcher::FieldName::Header(name.clone())) {
                    Some(value) => some(key, String::from_utf8_lossy(&value).into_owned()),
                    None => skips.then_some(None),
                }
            }
            Action::Query { name, key, skips } => match query_value(headers.path.query(), name) {
                Some(value) => some(key, String::from_utf8_lossy(&value).into_owned()),
                None => skips.then_some(None),
            },
            Action::RemoteAddress => some("remote_address", info.remote_address.ip().to_string()),
            Action::MaskedRemoteAddress(v4, v6) => {
                let ip = info.remote_address.ip();
                let length = if ip.is_ipv4() { *v4 } else { *v6 };
                let net = ipnet::IpNet::new(ip, length).ok()?.trunc();
                some("masked_remote_address", net.to_string())
            }
            Action::Generic { key, value } => some(key, value.text(headers, info)?),
            Action::HeaderMatch { .. }
            | Action::QueryMatch { .. }
            | Action::AddressMatch { .. } => self.match_entry(headers, info).map(Some),
            Action::Metadata {
                key,
                source,
                path,
                default,
                skips,
            } => {
                let route;
                let fields = match source {
                    Source::RouteEntry => {
                        route = info.route.as_ref();
                        route
                            .and_then(|route| route.route().metadata.as_ref())
                            .and_then(|all| all.filter_metadata.get(path.filter.as_ref()))
                    }
                    _ => info.metadata.get(&path.filter),
                };
                let value = fields.and_then(|fields| value_at(fields, &path.path));
                match value.and_then(|value| value.kind.as_ref()) {
                    Some(Kind::StringValue(text)) if !text.is_empty() => some(key, text.clone()),
                    _ if !default.is_empty() => some(key, default.to_string()),
                    _ => skips.then_some(None),
                }
            }
        }
    }

    /// The entry of an action that matches.
    fn match_entry(&self, headers: &RequestHeaders, info: &StreamInfo) -> Option<(String, String)> {
        let (key, value) = match self {
            Action::HeaderMatch {
                key,
                value,
                expects,
                headers: matchers,
            } => {
                if HeaderMatcher::all(matchers, headers) != *expects {
                    return None;
                }
                (key, value)
            }
            Action::QueryMatch {
                key,
                value,
                expects,
                parameters,
            } => {
                let query = headers.path.query();
                let fits = |matcher: &QueryMatcher| matcher.matches_decoded(query);
                if parameters.iter().all(fits) != *expects {
                    return None;
                }
                (key, value)
            }
            Action::AddressMatch {
                key,
                value,
                ranges,
                invert,
            } => {
                let ip: IpAddr = info.remote_address.ip();
                if ranges.iter().any(|range| range.contains(ip)) == *invert {
                    return None;
                }
                (key, value)
            }
            _ => return None,
        };
        Some((key.to_string(), value.text(headers, info)?))
    }
}
