//! Virtual hosts and the index of their domains. Precedence as in Envoy: exact, longest suffix wildcard (`*.example.com`),
//! longest prefix wildcard (`example.*`), then `*`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use proto::envoy::config::core::v3::Metadata;
use proto::envoy::config::route::v3 as wire;
use wire::virtual_host::TlsRequirementType;

use crate::http::filter::RouteConfigs;
use crate::http::headers::{RequestHeaders, Scheme, names};
use crate::invalid::{At as _, Invalid, try_all};
use crate::stream_info::StreamInfo;

use super::mirror::{self, MirrorPolicy};
use super::request_stats::VirtualClusters;
use super::{Mutations, RateLimits, RetryPolicy, Route};

/// A compiled virtual host.
#[derive(Debug)]
pub(crate) struct VirtualHost {
    /// Its name, for logs and statistics.
    pub(crate) name: Box<str>,
    /// What logs may read of it.
    pub(crate) metadata: Option<Box<Metadata>>,
    pub(super) routes: Vec<Route>,
    require_tls: RequireTls,
    pub(super) mutations: Mutations,
    pub(super) retry: Option<Arc<RetryPolicy>>,
    pub(super) hedges: bool,
    /// Put `x-envoy-attempt-count` into the request.
    pub(crate) counts_attempts: bool,
    /// Put `x-envoy-attempt-count` into the response.
    pub(crate) counts_attempts_in_response: bool,
    /// Put `x-envoy-is-timeout-retry` into retried requests.
    pub(crate) marks_timeout_retry: bool,
    pub(super) buffer_limit: Option<usize>,
    pub(super) mirrors: Vec<MirrorPolicy>,
    /// What rate limiters are told of a request.
    pub(crate) rate_limits: RateLimits,
    pub(super) filters: RouteConfigs,
    pub(super) clusters: VirtualClusters,
}

/// Which requests must have come over TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequireTls {
    /// None.
    No,
    /// Those from outside.
    External,
    /// All.
    All,
}

/// From a domain to the index of its virtual host.
#[derive(Debug, Default)]
pub(super) struct DomainIndex {
    exact: HashMap<Box<str>, usize>,
    /// Longest first; the key is what follows the star.
    suffixes: Vec<(usize, HashMap<Box<str>, usize>)>,
    /// Longest first; the key is what precedes the star.
    prefixes: Vec<(usize, HashMap<Box<str>, usize>)>,
    any: Option<usize>,
}

impl VirtualHost {
    #[allow(
        deprecated,
        reason = "control planes still send the virtual host's own CORS policy"
    )]
    pub(super) fn try_new(host: &wire::VirtualHost, body_limit: usize) -> Result<Self, Invalid> {
        if host.matcher.is_some() {
            return Err(Invalid::unsupported("a route matcher tree").at("matcher"));
        }
        if host.retry_policy_typed_config.is_some() {
            return Err(
                Invalid::unsupported("a retry policy extension").at("retry_policy_typed_config")
            );
        }
        Ok(VirtualHost {
            name: host.name.as_str().into(),
            metadata: host.metadata.clone().map(Box::new),
            routes: try_all("routes", &host.routes, |route| {
                Route::try_new(route, host.cors.as_ref(), body_limit)
            })?,
            require_tls: match host.require_tls() {
                TlsRequirementType::None => RequireTls::No,
                TlsRequirementType::ExternalOnly => RequireTls::External,
                TlsRequirementType::All => RequireTls::All,
            },
            mutations: Mutations::try_new(
                &host.request_headers_to_add,
                &host.request_headers_to_remove,
                &host.response_headers_to_add,
                &host.response_headers_to_remove,
            )?,
            retry: host
                .retry_policy
                .as_ref()
                .map(RetryPolicy::try_from)
                .transpose()
                .at("retry_policy")?
                .map(Arc::new),
            hedges: host
                .hedge_policy
                .as_ref()
                .is_some_and(|policy| policy.hedge_on_per_try_timeout),
            counts_attempts: host.include_request_attempt_count,
            counts_attempts_in_response: host.include_attempt_count_in_response,
            marks_timeout_retry: host.include_is_timeout_retry_header,
            buffer_limit: host
                .request_body_buffer_limit
                .or(host.per_request_buffer_limit_bytes.map(u64::from))
                .map(|limit| usize::try_from(limit).unwrap_or(usize::MAX)),
            mirrors: mirror::try_all_policies(&host.request_mirror_policies)?,
            rate_limits: RateLimits::try_new(&host.rate_limits)?,
            clusters: VirtualClusters::try_new(&host.virtual_clusters)?,
            filters: RouteConfigs::try_new(&host.typed_per_filter_config)?
                .with_cors(host.cors.as_ref())?,
        })
    }

    /// True when the request must be sent to `https` first.
    pub(super) fn needs_tls(&self, headers: &RequestHeaders, info: &StreamInfo) -> bool {
        let applies = match self.require_tls {
            RequireTls::No => false,
            RequireTls::External => !info.is_internal,
            RequireTls::All => true,
        };
        applies
            && headers
                .text(&names::X_FORWARDED_PROTO)
                .map_or(headers.scheme != Scheme::Https, |proto| {
                    !proto.eq_ignore_ascii_case("https")
                })
    }
}

impl DomainIndex {
    pub(super) fn try_new<'a>(
        table: &str,
        hosts: impl IntoIterator<Item = &'a [String]>,
    ) -> Result<Self, Invalid> {
        let mut index = DomainIndex::default();
        for (number, domains) in hosts.into_iter().enumerate() {
            if domains.is_empty() {
                return Err(Invalid::new("at least one domain is needed")
                    .at(format_args!("virtual_hosts[{number}].domains")));
            }
            for (place, domain) in domains.iter().enumerate() {
                index
                    .insert(domain, number)
                    .map_err(|problem| Invalid::new(format!("{problem} in route {table}")))
                    .at(format_args!("virtual_hosts[{number}].domains[{place}]"))?;
            }
        }
        let by_length = |list: &mut Vec<(usize, HashMap<Box<str>, usize>)>| {
            list.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        };
        by_length(&mut index.suffixes);
        by_length(&mut index.prefixes);
        Ok(index)
    }

    fn insert(&mut self, domain: &str, host: usize) -> Result<(), String> {
        let domain = domain.to_ascii_lowercase();
        let duplicate = || {
            format!(
                "only unique values for domains are permitted; duplicate entry of domain {domain}"
            )
        };
        if domain == "*" {
            if self.any.replace(host).is_some() {
                return Err("only a single wildcard domain is permitted".to_owned());
            }
            return Ok(());
        }
        let map = if let Some(suffix) = domain.strip_prefix('*') {
            (by_length(&mut self.suffixes, suffix.len()), suffix)
        } else if let Some(prefix) = domain.strip_suffix('*') {
            (by_length(&mut self.prefixes, prefix.len()), prefix)
        } else {
            (&mut self.exact, domain.as_str())
        };
        let (map, key) = map;
        if key.is_empty() || map.insert(key.into(), host).is_some() {
            return Err(duplicate());
        }
        Ok(())
    }

    /// The virtual host of a request's host.
    pub(super) fn find(&self, host: &str, ignore_port: bool) -> Option<usize> {
        let host = if ignore_port { strip_port(host) } else { host };
        let host = if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Owned(host.to_ascii_lowercase())
        } else {
            Cow::Borrowed(host)
        };
        if let Some(found) = self.exact.get(host.as_ref()) {
            return Some(*found);
        }
        // A wildcard stands for at least one character.
        for (length, map) in &self.suffixes {
            if host.len() > *length
                && let Some(found) = host
                    .get(host.len() - length..)
                    .and_then(|tail| map.get(tail))
            {
                return Some(*found);
            }
        }
        for (length, map) in &self.prefixes {
            if host.len() > *length
                && let Some(found) = host.get(..*length).and_then(|head| map.get(head))
            {
                return Some(*found);
            }
        }
        self.any
    }
}

fn by_length(
    list: &mut Vec<(usize, HashMap<Box<str>, usize>)>,
    length: usize,
) -> &mut HashMap<Box<str>, usize> {
    let at = match list.iter().position(|(other, _)| *other == length) {
        Some(at) => at,
        None => {
            list.push((length, HashMap::new()));
            list.len() - 1
        }
    };
    &mut list[at].1
}

/// `host:port` without the port; an IPv6 address keeps its brackets.
pub(crate) fn strip_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if !port.is_empty()
                && port.bytes().all(|byte| byte.is_ascii_digit())
                && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    }
}
