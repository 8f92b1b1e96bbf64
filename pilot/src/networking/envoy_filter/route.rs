//! Patches of route configurations, virtual hosts and routes.

use proto::envoy::config::route::v3::{Route, RouteConfiguration, VirtualHost, route::Action};
use proto::istio::networking::v1alpha3::envoy_filter::{
    ApplyTo, PatchContext, RouteConfigurationMatch,
    envoy_config_object_match::ObjectTypes,
    patch::Operation,
    route_configuration_match::{RouteMatch, route_match::Action as WantedAction},
};

use super::{merge_into, patch_list};
use crate::model::ClusterName;
use crate::networking::View;
use crate::push_context::envoy_filters::{Patch, Value};

/// Patches one route configuration.
pub(in crate::networking) fn apply(
    view: &View<'_>,
    context: PatchContext,
    routes: &mut RouteConfiguration,
) {
    if view.patches.is_empty() {
        return;
    }
    let applies = |patch: &&Patch| patch.is_in(context) && is_wanted(view, patch, routes);
    // Conditions look at what the generators made, not at what earlier patches have made of it.
    let whole: Vec<&Patch> = view
        .patches
        .of(ApplyTo::RouteConfiguration)
        .filter(applies)
        .collect();
    let hosts: Vec<&Patch> = view
        .patches
        .of(ApplyTo::VirtualHost)
        .filter(applies)
        .collect();
    let single: Vec<&Patch> = view
        .patches
        .of(ApplyTo::HttpRoute)
        .filter(applies)
        .collect();
    let name = routes.name.clone();
    for patch in whole {
        merge_into(view, patch, routes, &name);
    }
    let known = &mut routes.virtual_hosts;
    known.retain_mut(|host| patch_host(view, &name, &hosts, &single, host));
    known.extend(hosts.iter().filter_map(|patch| match &patch.value {
        Some(Value::VirtualHost(host)) if patch.operation == Operation::Add => {
            Some((**host).clone())
        }
        _ => None,
    }));
}

/// False when the virtual host is to go.
fn patch_host(
    view: &View<'_>,
    routes: &str,
    patches: &[&Patch],
    inner: &[&Patch],
    host: &mut VirtualHost,
) -> bool {
    for patch in patches {
        if !is_host(patch, host) {
            continue;
        }
        match (patch.operation, &patch.value) {
            (Operation::Remove, _) => return false,
            (Operation::Replace, Some(Value::VirtualHost(value))) => host.clone_from(value),
            _ => merge_into(view, patch, host, routes),
        }
    }
    let inner: Vec<&Patch> = inner
        .iter()
        .filter(|patch| is_host(patch, host))
        .copied()
        .collect();
    patch_routes(view, &inner, host);
    true
}

fn condition(patch: &Patch) -> Option<&RouteConfigurationMatch> {
    match &patch.object {
        Some(ObjectTypes::RouteConfiguration(condition)) => Some(condition),
        _ => None,
    }
}

fn is_wanted(view: &View<'_>, patch: &Patch, routes: &RouteConfiguration) -> bool {
    let Some(wanted) = condition(patch) else {
        return patch.object.is_none();
    };
    if !wanted.name.is_empty() && wanted.name != routes.name {
        return false;
    }
    let place = Place::of(view, &routes.name);
    (wanted.port_number == 0 || place.port == Some(wanted.port_number))
        && (wanted.port_name.is_empty() || place.port_name == Some(wanted.port_name.as_str()))
        && (wanted.gateway.is_empty() || place.gateways.contains(&wanted.gateway.as_str()))
}

/// What a route configuration's name says.
struct Place<'a> {
    port: Option<u32>,
    port_name: Option<&'a str>,
    gateways: Vec<&'a str>,
}

impl<'a> Place<'a> {
    fn of(view: &'a View<'_>, name: &'a str) -> Self {
        let mut place = Place {
            port: None,
            port_name: None,
            gateways: Vec::new(),
        };
        if view.proxy.is_router() {
            let servers = view.gateway.servers_of_route(name);
            place.port = servers.first().map(|server| server.port());
            place.port_name = servers.first().map(|server| server.port_name());
            place.gateways = servers
                .iter()
                .map(|server| server.gateway.as_str())
                .collect();
        } else if let Some(cluster) = ClusterName::parse(name) {
            place.port = Some(cluster.port);
        } else {
            let port = name.rsplit_once(':').map_or(name, |(_, port)| port);
            place.port = port.parse().ok();
        }
        place
    }
}

fn is_host(patch: &Patch, host: &VirtualHost) -> bool {
    let Some(wanted) = condition(patch).and_then(|condition| condition.vhost.as_ref()) else {
        return true;
    };
    (wanted.name.is_empty() || wanted.name == host.name)
        && (wanted.domain_name.is_empty() || host.domains.contains(&wanted.domain_name))
}

fn wanted_route(patch: &Patch) -> Option<&RouteMatch> {
    condition(patch)?.vhost.as_ref()?.route.as_ref()
}

fn is_route(wanted: Option<&RouteMatch>, route: &Route) -> bool {
    let Some(wanted) = wanted else { return true };
    let has_action = match wanted.action() {
        WantedAction::Any => true,
        WantedAction::Route => matches!(route.action, Some(Action::Route(_))),
        WantedAction::Redirect => matches!(route.action, Some(Action::Redirect(_))),
        WantedAction::DirectResponse => matches!(route.action, Some(Action::DirectResponse(_))),
    };
    has_action && (wanted.name.is_empty() || wanted.name == route.name)
}

/// Routes are removed and merged before others are added.
fn patch_routes(view: &View<'_>, patches: &[&Patch], host: &mut VirtualHost) {
    let VirtualHost { name, routes, .. } = host;
    routes.retain_mut(|route| {
        for patch in patches {
            if !is_route(wanted_route(patch), route) {
                continue;
            }
            if patch.operation == Operation::Remove {
                return false;
            }
            merge_into(view, patch, route, name);
        }
        true
    });
    for patch in patches {
        let wanted = wanted_route(patch);
        let value = match (&patch.value, patch.operation) {
            (_, Operation::Remove) => continue,
            // The condition says whether, the operation where.
            (_, Operation::InsertFirst)
                if !(wanted.is_none() || routes.iter().any(|route| is_route(wanted, route))) =>
            {
                continue;
            }
            (Some(Value::Route(route)), _) => Some(&**route),
            _ => None,
        };
        let is_target = wanted.map(|wanted| |route: &Route| is_route(Some(wanted), route));
        let end = routes.len();
        patch_list(routes, patch, value, end, is_target);
    }
}
