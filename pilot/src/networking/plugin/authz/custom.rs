//! CUSTOM policies: an external authorizer is asked about the requests that they match.
//!
//! As in Istio an RBAC filter marks the requests (shadow rules, so that it never decides), and the `ext_authz` filter behind it
//! asks about those that are marked. What no provider can be asked about is denied.

use proto::envoy::config::core::v3::{ApiVersion, HeaderValue};
use proto::envoy::config::listener::v3::Filter;
use proto::envoy::config::rbac::v3::{Rbac, rbac::Action as WireAction};
use proto::envoy::extensions::filters::http::ext_authz::v3::{
    AuthorizationRequest, AuthorizationResponse, BufferSettings, ExtAuthz, HttpService,
    ext_authz::Services,
};
use proto::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use proto::envoy::extensions::filters::network::ext_authz::v3::ExtAuthz as TcpExtAuthz;
use proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use proto::envoy::extensions::filters::network::rbac::v3::Rbac as TcpRbac;
use proto::envoy::r#type::matcher::v3::{
    ListStringMatcher, MetadataMatcher, string_matcher::MatchPattern,
};
use proto::envoy::r#type::v3::HttpStatus;
use proto::istio::mesh::v1alpha1::mesh_config::extension_provider::{
    EnvoyExternalAuthorizationGrpcProvider as GrpcProvider,
    EnvoyExternalAuthorizationHttpProvider as HttpProvider,
    EnvoyExternalAuthorizationRequestBody as RequestBody, Provider,
};
use proto::istio::security::v1beta1::{AuthorizationPolicy, authorization_policy::Action};

use super::matcher::metadata;
use super::{Layer, TCP_STAT_PREFIX, policies_of};
use crate::config::Config;
use crate::networking::View;
use crate::networking::provider;
use crate::networking::wire::{exact, http_filter, network_filter, pattern, seconds};
use crate::push_context::status::Metric;

const HTTP_RBAC: &str = "envoy.filters.http.rbac";
const TCP_RBAC: &str = "envoy.filters.network.rbac";
/// What the marks' names begin with.
const MARK: &str = "istio-ext-authz";
/// Prefix under which the RBAC filter leaves its marks.
const SHADOW_PREFIX: &str = "istio_ext_authz_";

/// The CUSTOM policies of a workload, marked, and who is asked; none: there are none.
struct Custom {
    rules: Rbac,
    /// `None`: nobody can be asked, the rules deny.
    provider: Option<String>,
}

fn custom(view: &View<'_>, layer: Layer) -> Option<Custom> {
    let policies = view
        .push
        .policies
        .authorization_policies(view.proxy, Action::Custom);
    let mut names: Vec<&str> = policies
        .iter()
        .map(|policy| provider_name(policy))
        .collect();
    names.sort_unstable();
    names.dedup();
    let asked = match &names[..] {
        [] => return None,
        [only] => resolve(view, only, layer).map(|()| (*only).to_owned()),
        _ => Err("several providers for one workload".to_owned()),
    };
    let mut rules = Rbac {
        action: WireAction::Deny as i32,
        ..Rbac::default()
    };
    for policy in &policies {
        let named = policies_of(view, policy, Action::Custom, layer);
        let mark = provider_name(policy);
        rules.policies.extend(
            named
                .into_iter()
                .map(|(name, policy)| (format!("{MARK}-{mark}-{name}"), policy)),
        );
    }
    if rules.policies.is_empty() {
        return None;
    }
    if let Err(reason) = &asked {
        for policy in &policies {
            view.record(
                Metric::InvalidPolicy,
                &policy.meta.full_name(),
                &format!("CUSTOM: {reason}: its requests are denied"),
            );
        }
    }
    Some(Custom {
        rules,
        provider: asked.ok(),
    })
}

fn provider_name(policy: &Config<AuthorizationPolicy>) -> &str {
    policy
        .spec
        .provider
        .as_ref()
        .map_or("", |provider| provider.name.as_str())
}

/// Whether a provider can be asked at all.
fn resolve(view: &View<'_>, name: &str, layer: Layer) -> Result<(), String> {
    match found(view, name)? {
        Provider::EnvoyExtAuthzGrpc(settings) => {
            provider::upstream(view, &settings.service, settings.port).map(drop)
        }
        Provider::EnvoyExtAuthzHttp(settings) => match layer {
            Layer::Http => provider::upstream(view, &settings.service, settings.port).map(drop),
            Layer::Tcp => Err(format!(
                "provider {name} is asked over HTTP, which connections are not"
            )),
        },
        _ => Err(format!("provider {name} is no authorizer")),
    }
}

fn found<'a>(view: &'a View<'_>, name: &str) -> Result<&'a Provider, String> {
    provider::find(view, name)
        .and_then(|found| found.provider.as_ref())
        .ok_or_else(|| format!("no extension provider is called {name:?}"))
}

/// The filters of a connection manager.
#[must_use]
pub fn custom_http_filters(view: &View<'_>) -> Vec<HttpFilter> {
    let Some(custom) = custom(view, Layer::Http) else {
        return Vec::new();
    };
    let Some(name) = custom.provider else {
        let config = HttpRbac {
            rules: Some(custom.rules),
            ..HttpRbac::default()
        };
        return vec![http_filter(HTTP_RBAC, &config)];
    };
    let marks = HttpRbac {
        shadow_rules: Some(custom.rules),
        shadow_rules_stat_prefix: SHADOW_PREFIX.to_owned(),
        ..HttpRbac::default()
    };
    let mut filters = vec![http_filter(HTTP_RBAC, &marks)];
    let mut config = match found(view, &name) {
        Ok(Provider::EnvoyExtAuthzHttp(settings)) => over_http(view, settings),
        Ok(Provider::EnvoyExtAuthzGrpc(settings)) => over_grpc(view, settings),
        _ => return filters,
    };
    config.filter_enabled_metadata = Some(marked(HTTP_RBAC, &name));
    config.transport_api_version = ApiVersion::V3 as i32;
    filters.push(http_filter("envoy.filters.http.ext_authz", &config));
    filters
}

/// The filters of connections that are passed on.
#[must_use]
pub fn custom_tcp_filters(view: &View<'_>) -> Vec<Filter> {
    let Some(custom) = custom(view, Layer::Tcp) else {
        return Vec::new();
    };
    let Some(name) = custom.provider else {
        let config = TcpRbac {
            rules: Some(custom.rules),
            stat_prefix: TCP_STAT_PREFIX.to_owned(),
            ..TcpRbac::default()
        };
        return vec![network_filter(TCP_RBAC, &config)];
    };
    let marks = TcpRbac {
        shadow_rules: Some(custom.rules),
        shadow_rules_stat_prefix: SHADOW_PREFIX.to_owned(),
        stat_prefix: TCP_STAT_PREFIX.to_owned(),
        ..TcpRbac::default()
    };
    let mut filters = vec![network_filter(TCP_RBAC, &marks)];
    if let Ok(Provider::EnvoyExtAuthzGrpc(settings)) = found(view, &name)
        && let Ok(upstream) = provider::upstream(view, &settings.service, settings.port)
    {
        let timeout = settings.timeout.or(Some(seconds(600)));
        let config = TcpExtAuthz {
            stat_prefix: TCP_STAT_PREFIX.to_owned(),
            grpc_service: Some(upstream.grpc(timeout)),
            failure_mode_allow: settings.fail_open,
            transport_api_version: ApiVersion::V3 as i32,
            filter_enabled_metadata: Some(marked(TCP_RBAC, &name)),
            ..TcpExtAuthz::default()
        };
        filters.push(network_filter("envoy.filters.network.ext_authz", &config));
    }
    filters
}

/// Only requests that carry a mark of this provider.
fn marked(filter: &str, provider: &str) -> MetadataMatcher {
    let key = format!("{SHADOW_PREFIX}shadow_effective_policy_id");
    let mark = MatchPattern::Prefix(format!("{MARK}-{provider}-"));
    metadata(filter, &[key.as_str()], pattern(mark))
}

fn over_grpc(view: &View<'_>, settings: &GrpcProvider) -> ExtAuthz {
    let upstream = provider::upstream(view, &settings.service, settings.port);
    let timeout = settings.timeout.or(Some(seconds(600)));
    ExtAuthz {
        failure_mode_allow: settings.fail_open,
        status_on_error: status(&settings.status_on_error),
        with_request_body: settings.include_request_body_in_check.as_ref().map(body),
        clear_route_cache: settings.clear_route_cache.unwrap_or(false),
        services: upstream
            .ok()
            .map(|upstream| Services::GrpcService(upstream.grpc(timeout))),
        ..ExtAuthz::default()
    }
}

fn over_http(view: &View<'_>, settings: &HttpProvider) -> ExtAuthz {
    let upstream = provider::upstream(view, &settings.service, settings.port);
    let timeout = settings.timeout.or(Some(seconds(600)));
    #[allow(deprecated, reason = "the old field is still in use")]
    let old = &settings.include_headers_in_check;
    let mut included: Vec<String> = settings.include_request_headers_in_check.clone();
    included.extend(old.iter().cloned());
    let added = settings.include_additional_headers_in_check.iter();
    let service = |upstream: provider::Upstream| {
        Services::HttpService(HttpService {
            server_uri: Some(upstream.http("", timeout)),
            path_prefix: settings.path_prefix.clone(),
            authorization_request: Some(AuthorizationRequest {
                headers_to_add: added
                    .map(|(key, value)| HeaderValue {
                        key: key.clone(),
                        value: value.clone(),
                        ..HeaderValue::default()
                    })
                    .collect(),
                ..AuthorizationRequest::default()
            }),
            authorization_response: Some(AuthorizationResponse {
                allowed_upstream_headers: headers(&settings.headers_to_upstream_on_allow),
                allowed_client_headers: headers(&settings.headers_to_downstream_on_deny),
                allowed_client_headers_on_success: headers(
                    &settings.headers_to_downstream_on_allow,
                ),
                ..AuthorizationResponse::default()
            }),
            ..HttpService::default()
        })
    };
    ExtAuthz {
        failure_mode_allow: settings.fail_open,
        status_on_error: status(&settings.status_on_error),
        with_request_body: settings.include_request_body_in_check.as_ref().map(body),
        clear_route_cache: settings.clear_route_cache.unwrap_or(false),
        allowed_headers: headers(&included),
        services: upstream.ok().map(service),
        ..ExtAuthz::default()
    }
}

/// `x-*`, `*-id`, or whole names.
fn headers(names: &[String]) -> Option<ListStringMatcher> {
    let patterns: Vec<_> = names
        .iter()
        .map(|name| {
            let mut matcher = if let Some(prefix) = name.strip_suffix('*') {
                pattern(MatchPattern::Prefix(prefix.to_owned()))
            } else if let Some(suffix) = name.strip_prefix('*') {
                pattern(MatchPattern::Suffix(suffix.to_owned()))
            } else {
                exact(name)
            };
            matcher.ignore_case = true;
            matcher
        })
        .collect();
    (!patterns.is_empty()).then_some(ListStringMatcher { patterns })
}

fn status(text: &str) -> Option<HttpStatus> {
    let code = text.parse().ok()?;
    Some(HttpStatus { code })
}

fn body(settings: &RequestBody) -> BufferSettings {
    BufferSettings {
        max_request_bytes: settings.max_request_bytes,
        allow_partial_message: settings.allow_partial_message,
        pack_as_bytes: settings.pack_as_bytes,
    }
}
