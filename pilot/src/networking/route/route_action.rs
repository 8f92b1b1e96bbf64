//! What HTTP routes do: where requests go, and what happens to them on the way.

use std::collections::BTreeMap;

use prost_types::{Any, Duration};
use proto::envoy::config::core::v3::{DataSource, data_source};
use proto::envoy::config::route::v3::{
    DirectResponseAction, Route, RouteAction, RouteMatch, WeightedCluster,
    route::Action,
    route_action::{
        ClusterSpecifier, HashPolicy, HostRewriteSpecifier, MaxStreamDuration, RequestMirrorPolicy,
        hash_policy::{self, PolicySpecifier},
    },
    weighted_cluster::{ClusterWeight, cluster_weight},
};
use proto::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use proto::istio::networking::v1alpha3::{
    Destination, HttpRoute, HttpRouteDestination, http_body,
    load_balancer_settings::{ConsistentHashLb, consistent_hash_lb::HashKey},
};

mod filter_config;
mod headers;
mod redirect;
mod retry;

use self::headers::HeaderChanges;

use super::{any_path, route_match};
use crate::model::{ClusterName, Service, ServicePort};
use crate::networking::cluster::TrafficPolicy;
use crate::networking::listener::cluster_of;
use crate::networking::wire::{fraction, origin, regex, seconds};
use crate::networking::{View, plugin};
use crate::push_context::status::Metric;
use crate::push_context::virtual_services::VirtualService;

/// The routes of a virtual service for one port of one of `gateways`, up to the first that takes everything.
pub(super) fn routes(
    view: &View<'_>,
    service: &VirtualService,
    port: u32,
    gateways: &[&str],
) -> Vec<Route> {
    let mut built = Vec::new();
    for http in &service.http {
        if http.r#match.is_empty() {
            built.push(route(view, service, http, "", any_path(), port));
            break;
        }
        for condition in http
            .r#match
            .iter()
            .filter(|condition| route_match::applies(view, condition, port, gateways))
        {
            let mut matched = route(
                view,
                service,
                http,
                &condition.name,
                route_match::build(condition),
                port,
            );
            matched.stat_prefix.clone_from(&condition.stat_prefix);
            built.push(matched);
            if route_match::is_catch_all(condition) {
                return built;
            }
        }
    }
    built
}

/// The route to a service that nothing steers.
#[allow(
    deprecated,
    reason = "as in Istio: its successor is not understood by older proxies, and turns the route's timeout off"
)]
pub(super) fn default_route(view: &View<'_>, service: &Service, port: &ServicePort) -> Route {
    let hash_policy = hash_policies(view, service, port.number, "");
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(
            ClusterName::outbound(port.number, "", &service.host).to_string(),
        )),
        timeout: Some(seconds(0)),
        max_grpc_timeout: grpc_limit(view, None),
        retry_policy: retry::build(
            None,
            view.push.mesh.default_retry.as_ref(),
            !hash_policy.is_empty(),
        ),
        hash_policy,
        ..RouteAction::default()
    };
    Route {
        name: "default".to_owned(),
        r#match: Some(any_path()),
        action: Some(Action::Route(action)),
        typed_per_filter_config: plugin::mixer::outbound_route(view, Some(service))
            .into_iter()
            .collect(),
        ..Route::default()
    }
}

fn route(
    view: &View<'_>,
    service: &VirtualService,
    http: &HttpRoute,
    condition: &str,
    matching: RouteMatch,
    port: u32,
) -> Route {
    let name = match (http.name.as_str(), condition) {
        (name, "") => name.to_owned(),
        ("", condition) => condition.to_owned(),
        (name, condition) => format!("{name}.{condition}"),
    };
    let mut route = Route {
        name,
        metadata: Some(origin(
            "virtual-service",
            "networking.istio.io/v1alpha3",
            &service.namespace,
            &service.name,
        )),
        typed_per_filter_config: filter_config::build(http),
        ..Route::default()
    };
    let operations = http.headers.as_ref();
    let request = operations.and_then(|headers| headers.request.as_ref());
    let changes = HeaderChanges::new(request);
    (
        route.request_headers_to_add,
        route.request_headers_to_remove,
    ) = (changes.add, changes.remove);
    let response = HeaderChanges::new(operations.and_then(|headers| headers.response.as_ref()));
    (
        route.response_headers_to_add,
        route.response_headers_to_remove,
    ) = (response.add, response.remove);
    route.action = Some(if let Some(redirect) = &http.redirect {
        Action::Redirect(redirect::build(redirect, port))
    } else if let Some(answer) = &http.direct_response {
        let specifier = answer
            .body
            .as_ref()
            .and_then(|body| body.specifier.clone())
            .map(|body| match body {
                http_body::Specifier::String(text) => data_source::Specifier::InlineString(text),
                http_body::Specifier::Bytes(bytes) => data_source::Specifier::InlineBytes(bytes),
            });
        let body = specifier.map(|body| DataSource {
            specifier: Some(body),
            ..DataSource::default()
        });
        Action::DirectResponse(DirectResponseAction {
            status: answer.status,
            body,
            ..DirectResponseAction::default()
        })
    } else {
        let mut per_filter = BTreeMap::new();
        let action = forward_action(
            view,
            service,
            http,
            changes.authority,
            port,
            &mut per_filter,
        );
        route.typed_per_filter_config.extend(per_filter);
        action
    });
    route.r#match = Some(matching);
    route
}

#[allow(deprecated, reason = "as for the default route")]
fn forward_action(
    view: &View<'_>,
    service: &VirtualService,
    http: &HttpRoute,
    authority: Option<String>,
    port: u32,
    per_filter: &mut BTreeMap<String, Any>,
) -> Action {
    let destinations = weighted(&http.route);
    let first = destinations
        .first()
        .and_then(|(destination, _)| destination.destination.as_ref());
    let first_service = first.and_then(|destination| view.service(&destination.host));
    let mut hash_policy = Vec::new();
    for (route, _) in &destinations {
        for policy in hash_policies_of(view, route, port) {
            if !hash_policy.contains(&policy) {
                hash_policy.push(policy);
            }
        }
    }
    let mut action = RouteAction {
        timeout: Some(http.timeout.unwrap_or(seconds(0))),
        max_grpc_timeout: grpc_limit(view, http.timeout),
        retry_policy: retry::build(
            http.retries.as_ref(),
            view.push.mesh.default_retry.as_ref(),
            // Several destinations have no host in common that had to stay the same.
            destinations.len() == 1 && !hash_policy.is_empty(),
        ),
        hash_policy,
        request_mirror_policies: mirrors(view, http, port),
        // This is where gRPC's own implementation looks.
        max_stream_duration: http
            .timeout
            .filter(|_| view.proxy.is_proxyless())
            .map(|timeout| MaxStreamDuration {
                max_stream_duration: Some(timeout),
                ..MaxStreamDuration::default()
            }),
        ..RouteAction::default()
    };
    apply_rewrite(http, authority, &mut action);
    action.cluster_specifier = Some(match &destinations[..] {
        [] => {
            // Nowhere to go: refuse rather than guess.
            let what = format!("{}/{}", service.namespace, service.name);
            view.record(
                Metric::InvalidRoute,
                &what,
                "a route has no destination with a weight",
            );
            return Action::DirectResponse(DirectResponseAction {
                status: 503,
                ..DirectResponseAction::default()
            });
        }
        [(only, _)] if only.headers.is_none() => {
            per_filter.extend(plugin::mixer::outbound_route(
                view,
                first_service.map(AsRef::as_ref),
            ));
            ClusterSpecifier::Cluster(destination_cluster(view, only, port))
        }
        all => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: all
                .iter()
                .map(|(destination, weight)| cluster_weight(view, destination, *weight, port))
                .collect(),
            ..WeightedCluster::default()
        }),
    });
    Action::Route(action)
}

/// The longest deadline that callers may set for themselves (`grpc-timeout`); zero is none. gRPC's own implementation has another
/// field for it.
fn grpc_limit(view: &View<'_>, timeout: Option<Duration>) -> Option<Duration> {
    (!view.proxy.is_proxyless()).then(|| timeout.unwrap_or(seconds(0)))
}

/// Destinations that get requests, with their shares. A single one may leave its weight out.
fn weighted(routes: &[HttpRouteDestination]) -> Vec<(&HttpRouteDestination, u32)> {
    if let [only] = routes {
        return vec![(only, 100)];
    }
    routes
        .iter()
        .filter_map(|route| {
            Some((
                route,
                u32::try_from(route.weight)
                    .ok()
                    .filter(|weight| *weight > 0)?,
            ))
        })
        .collect()
}

fn destination_cluster(view: &View<'_>, route: &HttpRouteDestination, port: u32) -> String {
    cluster_of(
        view,
        route
            .destination
            .as_ref()
            .unwrap_or(&Destination::default()),
        port,
    )
}

fn cluster_weight(
    view: &View<'_>,
    route: &HttpRouteDestination,
    weight: u32,
    port: u32,
) -> ClusterWeight {
    let headers = route.headers.as_ref();
    let request = HeaderChanges::new(headers.and_then(|headers| headers.request.as_ref()));
    let response = HeaderChanges::new(headers.and_then(|headers| headers.response.as_ref()));
    let service = route
        .destination
        .as_ref()
        .and_then(|destination| view.service(&destination.host));
    ClusterWeight {
        name: destination_cluster(view, route, port),
        weight: Some(weight),
        request_headers_to_add: request.add,
        request_headers_to_remove: request.remove,
        response_headers_to_add: response.add,
        response_headers_to_remove: response.remove,
        host_rewrite_specifier: request
            .authority
            .map(cluster_weight::HostRewriteSpecifier::HostRewriteLiteral),
        typed_per_filter_config: plugin::mixer::outbound_route(view, service.map(AsRef::as_ref))
            .into_iter()
            .collect(),
        ..ClusterWeight::default()
    }
}

fn apply_rewrite(http: &HttpRoute, authority: Option<String>, action: &mut RouteAction) {
    let rewrite = http.rewrite.clone().unwrap_or_default();
    if let Some(substitution) = rewrite.uri_regex_rewrite {
        action.regex_rewrite = Some(RegexMatchAndSubstitute {
            pattern: Some(regex(&substitution.r#match)),
            substitution: substitution.rewrite,
        });
    } else if !rewrite.uri.is_empty() {
        let is_regex = http.r#match.iter().any(|condition| {
            use proto::istio::networking::v1alpha3::string_match::MatchType;
            matches!(
                condition
                    .uri
                    .as_ref()
                    .and_then(|uri| uri.match_type.as_ref()),
                Some(MatchType::Regex(_))
            )
        });
        if is_regex {
            // There is no prefix to replace: the whole path is.
            action.regex_rewrite = Some(RegexMatchAndSubstitute {
                pattern: Some(regex("^[^?]*")),
                substitution: rewrite.uri,
            });
        } else {
            action.prefix_rewrite = rewrite.uri;
        }
    }
    let host = (!rewrite.authority.is_empty())
        .then_some(rewrite.authority)
        .or(authority);
    action.host_rewrite_specifier = host.map(HostRewriteSpecifier::HostRewriteLiteral);
}

fn mirrors(view: &View<'_>, http: &HttpRoute, port: u32) -> Vec<RequestMirrorPolicy> {
    #[allow(deprecated, reason = "the old field is still in use")]
    let old_percent = http.mirror_percent.map(f64::from);
    let single = http.mirror.as_ref().map(|destination| {
        let percent = http
            .mirror_percentage
            .as_ref()
            .map(|percent| percent.value)
            .or(old_percent);
        (destination, percent.unwrap_or(100.0))
    });
    let several = http.mirrors.iter().filter_map(|mirror| {
        Some((
            mirror.destination.as_ref()?,
            mirror
                .percentage
                .as_ref()
                .map_or(100.0, |percent| percent.value),
        ))
    });
    single
        .into_iter()
        .chain(several)
        .filter(|(_, percent)| *percent > 0.0)
        .map(|(destination, percent)| RequestMirrorPolicy {
            cluster: cluster_of(view, destination, port),
            runtime_fraction: Some(proto::envoy::config::core::v3::RuntimeFractionalPercent {
                default_value: Some(fraction(percent)),
                runtime_key: String::new(),
            }),
            trace_sampled: Some(false),
            ..RequestMirrorPolicy::default()
        })
        .collect()
}

/// How requests to a service are spread, if they are spread by a key.
fn hash_policies(view: &View<'_>, service: &Service, port: u32, subset: &str) -> Vec<HashPolicy> {
    let policy = TrafficPolicy::of(view, service, port, subset);
    policy
        .consistent_hash()
        .and_then(hash_policy)
        .into_iter()
        .collect()
}

/// The same for a destination.
fn hash_policies_of(view: &View<'_>, route: &HttpRouteDestination, port: u32) -> Vec<HashPolicy> {
    let Some(destination) = &route.destination else {
        return Vec::new();
    };
    let Some(service) = view.service(&destination.host) else {
        return Vec::new();
    };
    let number = destination.port.as_ref().map_or(port, |port| port.number);
    hash_policies(view, service, number, &destination.subset)
}

fn hash_policy(hash: &ConsistentHashLb) -> Option<HashPolicy> {
    let specifier = match hash.hash_key.as_ref()? {
        HashKey::HttpHeaderName(name) => PolicySpecifier::Header(hash_policy::Header {
            header_name: name.clone(),
            regex_rewrite: None,
        }),
        HashKey::HttpCookie(cookie) => PolicySpecifier::Cookie(hash_policy::Cookie {
            name: cookie.name.clone(),
            ttl: cookie.ttl,
            path: cookie.path.clone(),
            attributes: cookie
                .attributes
                .iter()
                .map(|attribute| hash_policy::CookieAttribute {
                    name: attribute.name.clone(),
                    value: attribute.value.clone(),
                })
                .collect(),
        }),
        HashKey::UseSourceIp(false) => return None,
        HashKey::UseSourceIp(true) => {
            PolicySpecifier::ConnectionProperties(hash_policy::ConnectionProperties {
                source_ip: true,
            })
        }
        HashKey::HttpQueryParameterName(name) => {
            PolicySpecifier::QueryParameter(hash_policy::QueryParameter { name: name.clone() })
        }
    };
    Some(HashPolicy {
        terminal: false,
        policy_specifier: Some(specifier),
    })
}
