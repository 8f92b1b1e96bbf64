//! Mirroring: copies of requests that are sent to another cluster and whose answers are thrown away.

use std::sync::Arc;

use http::HeaderValue;
use proto::envoy::config::route::v3 as wire;

use crate::http::headers::RequestHeaders;
use crate::invalid::{At as _, Invalid, try_all};
use crate::matcher::{FieldName, Fraction, HeaderSource as _};
use crate::runtime::RuntimeFraction;

use super::virtual_host::strip_port;

/// A compiled `RequestMirrorPolicy`.
#[derive(Debug)]
pub(crate) struct MirrorPolicy {
    cluster: Target,
    fraction: RuntimeFraction,
    appends_suffix: bool,
    host: Option<HeaderValue>,
}

#[derive(Debug)]
enum Target {
    Name(Arc<str>),
    Header(FieldName),
}

/// Checks a list of policies.
pub(super) fn try_all_policies(
    policies: &[wire::route_action::RequestMirrorPolicy],
) -> Result<Vec<MirrorPolicy>, Invalid> {
    try_all("request_mirror_policies", policies, MirrorPolicy::try_from)
}

impl TryFrom<&wire::route_action::RequestMirrorPolicy> for MirrorPolicy {
    type Error = Invalid;

    fn try_from(policy: &wire::route_action::RequestMirrorPolicy) -> Result<Self, Invalid> {
        if !policy.request_headers_mutations.is_empty() {
            return Err(Invalid::unsupported("request_headers_mutations"));
        }
        let cluster = match (policy.cluster.as_str(), policy.cluster_header.as_str()) {
            ("", "") => return Err(Invalid::new("cluster or cluster_header is needed")),
            ("", header) => Target::Header(FieldName::parse(header).at("cluster_header")?),
            (name, _) => Target::Name(name.into()),
        };
        let host = match policy.host_rewrite_literal.as_str() {
            "" => None,
            text => Some(
                HeaderValue::from_str(text)
                    .map_err(|_| Invalid::new("not a host").at("host_rewrite_literal"))?,
            ),
        };
        Ok(MirrorPolicy {
            cluster,
            fraction: RuntimeFraction::or(policy.runtime_fraction.as_ref(), Fraction::ALWAYS),
            appends_suffix: !policy.disable_shadow_host_suffix_append,
            host,
        })
    }
}

impl MirrorPolicy {
    /// The cluster to copy this request to, if the dice say so.
    pub(crate) fn draw(&self, headers: &RequestHeaders) -> Option<Arc<str>> {
        if !self.fraction.draw() {
            return None;
        }
        match &self.cluster {
            Target::Name(name) => Some(name.clone()),
            Target::Header(name) => {
                let value = headers.field(name)?;
                std::str::from_utf8(&value)
                    .ok()
                    .filter(|name| !name.is_empty())
                    .map(Into::into)
            }
        }
    }

    /// Marks a copy's host: `host` becomes `host-shadow`, before the port.
    pub(crate) fn rewrite_host(&self, headers: &mut RequestHeaders) {
        if let Some(host) = &self.host {
            headers.authority = host.clone();
        } else if self.appends_suffix {
            let host = headers.host();
            let name = strip_port(host);
            let shadow = format!("{name}-shadow{}", &host[name.len()..]);
            headers.set_host(shadow);
        }
    }
}
