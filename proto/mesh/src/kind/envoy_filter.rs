//! Rules of EnvoyFilter: what is patched must fit what is matched, and the patch must be a message of Envoy's API.

use proto::istio::networking::v1alpha3::EnvoyFilter;
use proto::istio::networking::v1alpha3::envoy_filter::envoy_config_object_match::ObjectTypes;
use proto::istio::networking::v1alpha3::envoy_filter::listener_match::FilterMatch;
use proto::istio::networking::v1alpha3::envoy_filter::patch::Operation;
use proto::istio::networking::v1alpha3::envoy_filter::{
    ApplyTo, EnvoyConfigObjectMatch, EnvoyConfigObjectPatch, PatchContext,
};

use crate::finding::Report;
use crate::kind::selector;
use crate::re2;
use crate::resource::Metadata;

mod patch_value;

/// The only network filter that has filters inside.
const HTTP_CONNECTION_MANAGER: [&str; 2] = [
    "envoy.filters.network.http_connection_manager",
    "envoy.http_connection_manager",
];

/// Reports what is wrong.
pub(super) fn check(spec: &EnvoyFilter, _meta: &Metadata, report: &mut Report) {
    report.warning("an EnvoyFilter depends on how the mesh configures its proxies, which can change: prefer other kinds where they will do");
    selector::check_workload(spec.workload_selector.as_ref(), report);
    if spec.workload_selector.is_some() && !spec.target_refs.is_empty() {
        report.error("give either workloadSelector or targetRefs, not both");
    }
    selector::check_target(None, None, &spec.target_refs, report);
    report.each("configPatches", &spec.config_patches, check_patch);
}

fn check_patch(report: &mut Report, patch: &EnvoyConfigObjectPatch) {
    let apply_to = patch.apply_to();
    if apply_to == ApplyTo::Invalid {
        report.error_at("applyTo", "applyTo is missing: say what is patched");
        return;
    }
    // QUIRK: what else a patch for waypoints lacks is not looked at.
    if patch
        .r#match
        .as_ref()
        .is_some_and(|condition| condition.context() == PatchContext::Waypoint)
    {
        report.warning_at(
            "match.context",
            "there are no waypoints in this mesh: the patch does nothing",
        );
        return;
    }
    let Some(change) = &patch.patch else {
        report.error_at("patch", "the patch is missing");
        return;
    };
    if change.operation() == Operation::Invalid {
        report.error_at("patch.operation", "the operation is missing");
        return;
    }
    if change.operation() != Operation::Remove && change.value.is_none() {
        report.error_at(
            "patch.value",
            "the value is missing: only REMOVE needs none",
        );
        return;
    }
    if let Some(condition) = &patch.r#match {
        report.at("match", |report| check_match(apply_to, condition, report));
    }
    if let (Some(message), Some(value)) = (message_of(apply_to), &change.value) {
        report.at("patch.value", |report| {
            patch_value::check(message, value, report);
        });
    }
}

fn check_match(apply_to: ApplyTo, condition: &EnvoyConfigObjectMatch, report: &mut Report) {
    if let Some(version) = condition
        .proxy
        .as_ref()
        .map(|proxy| proxy.proxy_version.as_str())
        && !version.is_empty()
    {
        report.require_at("proxy.proxyVersion", re2::check(version));
    }
    let Some(object) = &condition.object_types else {
        return;
    };
    let (wanted, fits) = match apply_to {
        ApplyTo::Listener
        | ApplyTo::FilterChain
        | ApplyTo::NetworkFilter
        | ApplyTo::HttpFilter
        | ApplyTo::ListenerFilter => ("listener", matches!(object, ObjectTypes::Listener(_))),
        ApplyTo::RouteConfiguration | ApplyTo::VirtualHost | ApplyTo::HttpRoute => (
            "routeConfiguration",
            matches!(object, ObjectTypes::RouteConfiguration(_)),
        ),
        ApplyTo::Cluster => ("cluster", matches!(object, ObjectTypes::Cluster(_))),
        ApplyTo::Invalid | ApplyTo::ExtensionConfig | ApplyTo::Bootstrap => return,
    };
    if !fits && !matches!(object, ObjectTypes::Waypoint(_)) {
        report.error(format!(
            "{} is matched by {wanted} only",
            apply_to.as_str_name()
        ));
        return;
    }
    if let ObjectTypes::Listener(listener) = object
        && let Some(filter) = listener
            .filter_chain
            .as_ref()
            .and_then(|chain| chain.filter.as_ref())
    {
        report.at("listener.filterChain.filter", |report| {
            check_filter(apply_to, filter, report);
        });
    }
}

fn check_filter(apply_to: ApplyTo, filter: &FilterMatch, report: &mut Report) {
    if matches!(apply_to, ApplyTo::Listener | ApplyTo::FilterChain) {
        report.warning(format!(
            "a filter is no condition for {}",
            apply_to.as_str_name()
        ));
    }
    if filter.name.is_empty() {
        report.error_at("name", "the filter's name is missing");
        return;
    }
    warn_of_old_name("name", &filter.name, report);
    let Some(inner) = &filter.sub_filter else {
        return;
    };
    if apply_to != ApplyTo::HttpFilter {
        report.error_at(
            "subFilter",
            "a filter inside a filter is a condition for HTTP_FILTER only",
        );
    } else if !HTTP_CONNECTION_MANAGER.contains(&filter.name.as_str()) {
        report.error_at(
            "name",
            format!(
                "HTTP filters are inside {} only",
                HTTP_CONNECTION_MANAGER[0]
            ),
        );
    } else if inner.name.is_empty() {
        report.error_at("subFilter.name", "the inner filter's name is missing");
    } else {
        report.at("subFilter", |report| {
            warn_of_old_name("name", &inner.name, report);
        });
    }
}

/// Names of Envoy's filters before v3.
fn warn_of_old_name(field: &str, name: &str, report: &mut Report) {
    let new = match name {
        "envoy.http_connection_manager" => "envoy.filters.network.http_connection_manager",
        "envoy.tcp_proxy" => "envoy.filters.network.tcp_proxy",
        "envoy.mongo_proxy" => "envoy.filters.network.mongo_proxy",
        "envoy.redis_proxy" => "envoy.filters.network.redis_proxy",
        "envoy.router" => "envoy.filters.http.router",
        "envoy.cors" => "envoy.filters.http.cors",
        "envoy.fault" => "envoy.filters.http.fault",
        "envoy.lua" => "envoy.filters.http.lua",
        "envoy.buffer" => "envoy.filters.http.buffer",
        "envoy.rate_limit" => "envoy.filters.http.ratelimit",
        "envoy.grpc_web" => "envoy.filters.http.grpc_web",
        "envoy.ext_authz" => "envoy.filters.http.ext_authz",
        "envoy.health_check" => "envoy.filters.http.health_check",
        "envoy.gzip" => "envoy.filters.http.gzip",
        _ => return,
    };
    report.warning_at(field, format!("{name:?} is an old name: use {new:?}"));
}

/// The message that a patch is of.
fn message_of(apply_to: ApplyTo) -> Option<&'static str> {
    Some(match apply_to {
        ApplyTo::Listener => "envoy.config.listener.v3.Listener",
        ApplyTo::FilterChain => "envoy.config.listener.v3.FilterChain",
        ApplyTo::ListenerFilter => "envoy.config.listener.v3.ListenerFilter",
        ApplyTo::NetworkFilter => "envoy.config.listener.v3.Filter",
        ApplyTo::HttpFilter => {
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter"
        }
        ApplyTo::RouteConfiguration => "envoy.config.route.v3.RouteConfiguration",
        ApplyTo::VirtualHost => "envoy.config.route.v3.VirtualHost",
        ApplyTo::HttpRoute => "envoy.config.route.v3.Route",
        ApplyTo::Cluster => "envoy.config.cluster.v3.Cluster",
        ApplyTo::ExtensionConfig => "envoy.config.core.v3.TypedExtensionConfig",
        ApplyTo::Bootstrap => "envoy.config.bootstrap.v3.Bootstrap",
        ApplyTo::Invalid => return None,
    })
}
