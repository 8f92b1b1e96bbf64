//! Hash policies: the number that consistent load balancers place a request by.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

use http::HeaderName;
use proto::envoy::config::route::v3 as wire;
use wire::route_action::hash_policy::PolicySpecifier;
use xxhash_rust::xxh64::xxh64;

use crate::http::headers::RequestHeaders;
use crate::invalid::{At as _, Invalid};
use crate::matcher::RegexSubstitution;

use super::header_name;
use super::route_match::{cookie, raw_query_value};
use super::timeout::duration;

/// A compiled `HashPolicy`.
#[derive(Debug)]
pub(crate) struct HashPolicy {
    source: Source,
    is_terminal: bool,
}

#[derive(Debug)]
enum Source {
    Header(HeaderName, Option<RegexSubstitution>),
    Cookie {
        name: Box<str>,
        ttl: Option<Duration>,
        path: Box<str>,
        attributes: Box<str>,
    },
    Ip,
    Query(Box<str>),
}

/// A cookie that was made for a client which had none; its line goes into the response.
#[derive(Debug, Clone)]
pub(crate) struct HashedCookie(pub(crate) String);

impl TryFrom<&wire::route_action::HashPolicy> for HashPolicy {
    type Error = Invalid;

    fn try_from(policy: &wire::route_action::HashPolicy) -> Result<Self, Invalid> {
        let specifier = policy
            .policy_specifier
            .as_ref()
            .ok_or_else(|| Invalid::new("a policy specifier is needed"))?;
        let source = match specifier {
            PolicySpecifier::Header(header) => Source::Header(
                header_name(&header.header_name).at("header.header_name")?,
                header
                    .regex_rewrite
                    .as_ref()
                    .map(RegexSubstitution::try_from)
                    .transpose()
                    .at("header.regex_rewrite")?,
            ),
            PolicySpecifier::Cookie(cookie) => {
                let mut attributes = String::new();
                for attribute in &cookie.attributes {
                    attributes.push_str("; ");
                    attributes.push_str(&attribute.name);
                    if !attribute.value.is_empty() {
                        attributes.push('=');
                        attributes.push_str(&attribute.value);
                    }
                }
                Source::Cookie {
                    name: cookie.name.as_str().into(),
                    ttl: duration(cookie.ttl.as_ref()).at("cookie.ttl")?,
                    path: cookie.path.as_str().into(),
                    attributes: attributes.into(),
                }
            }
            PolicySpecifier::ConnectionProperties(properties) if properties.source_ip => Source::Ip,
            PolicySpecifier::ConnectionProperties(_) => {
                return Err(Invalid::new("source_ip must be true"));
            }
            PolicySpecifier::QueryParameter(parameter) => {
                Source::Query(parameter.name.as_str().into())
            }
            PolicySpecifier::FilterState(_) => {
                return Err(Invalid::unsupported("hashing filter state"));
            }
        };
        Ok(HashPolicy {
            source,
            is_terminal: policy.terminal,
        })
    }
}

impl HashPolicy {
    /// The hash of a request over all policies, and the cookie to set if one was made.
    pub(crate) fn hash(
        policies: &[HashPolicy],
        headers: &RequestHeaders,
        source: IpAddr,
    ) -> (Option<u64>, Option<HashedCookie>) {
        let mut hash: Option<u64> = None;
        let mut made = None;
        for policy in policies {
            let part = policy.part(headers, source, &mut made);
            if let Some(part) = part {
                // Rotating keeps equal parts from cancelling each other.
                hash = Some(hash.map_or(part, |hash| hash.rotate_left(1) ^ part));
            }
            if policy.is_terminal && hash.is_some() {
                break;
            }
        }
        (hash, made)
    }

    fn part(
        &self,
        headers: &RequestHeaders,
        source: IpAddr,
        made: &mut Option<HashedCookie>,
    ) -> Option<u64> {
        match &self.source {
            Source::Header(name, rewrite) => {
                let mut values: Vec<Cow<'_, [u8]>> = headers
                    .map
                    .get_all(name)
                    .iter()
                    .map(|value| match rewrite {
                        Some(rewrite) => rewrite.apply(value.as_bytes()).to_vec().into(),
                        None => value.as_bytes().into(),
                    })
                    .collect();
                // In whatever order they came.
                values.sort_unstable();
                let seeded = |seed, value: &Cow<'_, [u8]>| xxh64(value, seed);
                (!values.is_empty()).then(|| values.iter().fold(0, seeded))
            }
            Source::Ip => Some(xxh64(source.to_string().as_bytes(), 0)),
            Source::Query(name) => {
                raw_query_value(headers.path.query(), name).map(|value| xxh64(value, 0))
            }
            Source::Cookie {
                name,
                ttl,
                path,
                attributes,
            } => {
                if let Some(value) = cookie(headers, name).filter(|value| !value.is_empty()) {
                    return Some(xxh64(value.as_bytes(), 0));
                }
                // Without a time to live no cookie is made; with zero it lasts as long as the client's session.
                let ttl = (*ttl)?;
                let value = format!("{:016x}", rand::random::<u64>());
                let mut line = format!("{name}=\"{value}\"");
                if !ttl.is_zero() {
                    line.push_str(&format!("; Max-Age={}", ttl.as_secs()));
                }
                if !path.is_empty() {
                    line.push_str(&format!("; Path={path}"));
                }
                line.push_str(attributes);
                line.push_str("; HttpOnly");
                *made = Some(HashedCookie(line));
                Some(xxh64(value.as_bytes(), 0))
            }
        }
    }
}
