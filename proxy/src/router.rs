//! Routing: a `RouteConfiguration` compiled into an immutable table, and what a selected route says about a request.
//!
//! `RouteConfiguration` → [`RouteTable`]: domains are indexed, matchers and formats compiled, everything unsupported refused
//! with its path. A worker holds the table behind an `Rc`, so that selecting a route touches no shared counter.

mod discovery;
mod hash_policy;
mod header_mutation;
mod internal_redirect;
mod mirror;
mod path_rewrite;
mod rate_limit;
mod redirect;
mod request_stats;
mod retry;
mod route;
mod route_action;
mod route_match;
mod selected;
pub(crate) mod timeout;
pub(crate) mod virtual_host;

#[cfg(test)]
mod tests;

use std::rc::Rc;
use std::sync::Arc;

use http::HeaderName;
use proto::envoy::config::route::v3 as wire;

use crate::http::filter::RouteConfigs;
use crate::http::headers::RequestHeaders;
use crate::invalid::{At as _, Invalid, try_all};
use crate::stream_info::StreamInfo;

use virtual_host::DomainIndex;

pub(crate) use discovery::{DiscoveredHost, HostDiscovery};
pub(crate) use hash_policy::{HashPolicy, HashedCookie};
pub(crate) use header_mutation::HeaderMutations;
pub(crate) use internal_redirect::{InternalRedirectPolicy, NotFollowed, Way};
pub(crate) use mirror::MirrorPolicy;
pub(crate) use rate_limit::{Descriptor, Moment, RateLimits};
pub(crate) use redirect::Redirect;
pub(crate) use request_stats::CountedIn;
pub(crate) use retry::{Outcome, RetryDecision, RetryPolicy, RetryState};
pub(crate) use route::{Route, RouteKind};
pub(crate) use route_action::ForwardAction;
pub(crate) use route_match::{RouteMatch, cookie, query_value};
pub(crate) use selected::SelectedRoute;
pub(crate) use timeout::Timeouts;
pub(crate) use virtual_host::VirtualHost;

/// A compiled `RouteConfiguration`.
#[derive(Debug)]
pub(crate) struct RouteTable {
    virtual_hosts: Vec<Arc<VirtualHost>>,
    domains: DomainIndex,
    ignore_port: bool,
    ignore_path_parameters: bool,
    vhost_header: Option<HeaderName>,
    mutations: Mutations,
    most_specific_wins: bool,
    /// Headers that only internal requests may carry.
    pub(crate) internal_only_headers: Vec<HeaderName>,
    mirrors: Vec<MirrorPolicy>,
    filters: RouteConfigs,
    matches_metadata: bool,
    /// Where more virtual hosts come from (VHDS).
    pub(crate) discovery: Option<HostDiscovery>,
}

/// Header changes of one level: of requests and of responses.
#[derive(Debug, Default)]
pub(crate) struct Mutations {
    /// Before the request goes upstream.
    pub(crate) request: HeaderMutations,
    /// Before the response goes downstream.
    pub(crate) response: HeaderMutations,
}

/// What the table says about a request.
pub(crate) enum Selection {
    /// A route.
    Route(SelectedRoute),
    /// The virtual host wants TLS and this request came without it.
    NeedsTls,
    /// Nothing matches.
    None,
}

impl TryFrom<wire::RouteConfiguration> for RouteTable {
    type Error = Invalid;

    fn try_from(config: wire::RouteConfiguration) -> Result<Self, Invalid> {
        Self::with_hosts(&config, &[])
    }
}

impl RouteTable {
    /// A table with these virtual hosts after those that the configuration has itself.
    pub(crate) fn with_hosts(
        config: &wire::RouteConfiguration,
        more: &[&DiscoveredHost],
    ) -> Result<Self, Invalid> {
        if !config.cluster_specifier_plugins.is_empty() {
            return Err(
                Invalid::unsupported("a cluster specifier plugin").at("cluster_specifier_plugins")
            );
        }
        let mut virtual_hosts = try_all("virtual_hosts", &config.virtual_hosts, |host| {
            VirtualHost::try_new(host, body_limit(config)).map(Arc::new)
        })?;
        virtual_hosts.extend(more.iter().map(|host| host.compiled.clone()));
        let more = more.iter().map(|host| host.wire.domains.as_slice());
        let own = config.virtual_hosts.iter();
        let domains = own.map(|host| host.domains.as_slice()).chain(more);
        let domains = DomainIndex::try_new(&config.name, domains)?;
        let vhost_header = (!config.vhost_header.is_empty())
            .then(|| header_name(&config.vhost_header))
            .transpose()
            .at("vhost_header")?;
        let matches_metadata = virtual_hosts
            .iter()
            .flat_map(|host| &host.routes)
            .any(|route| route.route_match.matches_metadata());
        Ok(RouteTable {
            discovery: HostDiscovery::try_new(config)?,
            matches_metadata,
            virtual_hosts,
            domains,
            ignore_port: config.ignore_port_in_host_matching,
            ignore_path_parameters: config.ignore_path_parameters_in_path_matching,
            vhost_header,
            mutations: Mutations::try_new(
                &config.request_headers_to_add,
                &config.request_headers_to_remove,
                &config.response_headers_to_add,
                &config.response_headers_to_remove,
            )?,
            most_specific_wins: config.most_specific_header_mutations_wins,
            internal_only_headers: try_all(
                "internal_only_headers",
                &config.internal_only_headers,
                |name| header_name(name),
            )?,
            mirrors: mirror::try_all_policies(&config.request_mirror_policies)?,
            filters: RouteConfigs::try_new(&config.typed_per_filter_config)?,
        })
    }

    /// Finds the virtual host and the first route that matches.
    pub(crate) fn select(
        table: &WorkerTable,
        headers: &RequestHeaders,
        info: &StreamInfo,
    ) -> Selection {
        let host = match &table.vhost_header {
            Some(name) => headers.text(name).unwrap_or_default(),
            None => headers.host(),
        };
        let Some(index) = table.domains.find(host, table.ignore_port) else {
            return Selection::None;
        };
        let virtual_host = &table.virtual_hosts[index];
        if virtual_host.needs_tls(headers, info) {
            return Selection::NeedsTls;
        }
        let path = headers.path.path();
        let path = if table.ignore_path_parameters {
            path.split(';').next().unwrap_or_default()
        } else {
            path
        };
        match virtual_host
            .routes
            .iter()
            .position(|route| route.route_match.matches(path, headers, info))
        {
            Some(route) => {
                Selection::Route(SelectedRoute::new(table.clone(), index, route, headers))
            }
            None => Selection::None,
        }
    }

    /// Whether any route matches on dynamic metadata, so that filters which leave some must have routes selected again.
    pub(crate) fn matches_metadata(&self) -> bool {
        self.matches_metadata
    }
}

impl Mutations {
    /// Checks one level's four lists.
    pub(crate) fn try_new(
        request_add: &[proto::envoy::config::core::v3::HeaderValueOption],
        request_remove: &[String],
        response_add: &[proto::envoy::config::core::v3::HeaderValueOption],
        response_remove: &[String],
    ) -> Result<Self, Invalid> {
        Ok(Mutations {
            request: HeaderMutations::try_new(request_add, request_remove).at("request_headers")?,
            response: HeaderMutations::try_new(response_add, response_remove)
                .at("response_headers")?,
        })
    }
}

/// How long the body of a direct response may be.
fn body_limit(config: &wire::RouteConfiguration) -> usize {
    config.max_direct_response_body_size_bytes.unwrap_or(4096) as usize
}

/// A header's name, refused when it is none.
pub(crate) fn header_name(name: &str) -> Result<HeaderName, Invalid> {
    HeaderName::try_from(name).map_err(|_| Invalid::new(format!("'{name}' is not a header name")))
}

/// A table shared inside one worker.
pub(crate) type WorkerTable = Rc<Arc<RouteTable>>;
