//! Patches of listeners, their filter chains and the filters in them.

use proto::envoy::config::listener::v3::{
    Filter, FilterChain, Listener, ListenerFilter, filter::ConfigType,
};
use proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter,
};
use proto::istio::networking::v1alpha3::envoy_filter::{
    ApplyTo, ListenerMatch, PatchContext,
    envoy_config_object_match::ObjectTypes,
    listener_match::FilterChainMatch as ChainCondition,
    patch::{FilterClass, Operation},
};

use super::{merge_into, patch_list, port_of};
use crate::model::name::VIRTUAL_INBOUND;
use crate::networking::View;
use crate::networking::wire::any;
use crate::push_context::envoy_filters::{Patch, Value};

const CONNECTION_MANAGER: &str = "envoy.filters.network.http_connection_manager";
const ROUTER: &str = "envoy.filters.http.router";
const AUTHN: &[&str] = &["envoy.filters.http.jwt_authn", "istio_authn"];
const AUTHZ: &[&str] = &["envoy.filters.http.rbac", "envoy.filters.http.ext_authz"];
const STATS: &str = "istio.stats";

/// Patches `listeners`, all of which are for traffic of `context`. `adds` says whether new ones may be added.
pub(in crate::networking) fn apply(
    view: &View<'_>,
    context: PatchContext,
    listeners: &mut Vec<Listener>,
    adds: bool,
) {
    if view.patches.is_empty() {
        return;
    }
    listeners.retain_mut(|listener| patch_listener(view, context, listener));
    let added = of(view, ApplyTo::Listener, context).filter(|patch| {
        // What is for any context is added with the outbound listeners.
        adds && patch.operation == Operation::Add
            && (patch.context == context || context != PatchContext::SidecarInbound)
    });
    listeners.extend(added.filter_map(|patch| match &patch.value {
        Some(Value::Listener(listener)) => Some((**listener).clone()),
        _ => None,
    }));
}

fn of<'a>(
    view: &'a View<'_>,
    apply_to: ApplyTo,
    context: PatchContext,
) -> impl Iterator<Item = &'a Patch> {
    let patches = view.patches.of(apply_to);
    patches.filter(move |patch| patch.is_in(context))
}

/// False when the listener is to go.
fn patch_listener(view: &View<'_>, context: PatchContext, listener: &mut Listener) -> bool {
    let name = listener.name.clone();
    for patch in of(view, ApplyTo::Listener, context) {
        if !is_listener(patch, listener) {
            continue;
        }
        if patch.operation == Operation::Remove {
            return false;
        }
        merge_into(view, patch, listener, &name);
    }
    let inner = |apply_to| -> Vec<&Patch> {
        of(view, apply_to, context)
            .filter(|patch| is_listener(patch, listener))
            .collect()
    };
    let filters = inner(ApplyTo::ListenerFilter);
    let chains = inner(ApplyTo::FilterChain);
    let network = inner(ApplyTo::NetworkFilter);
    let http = inner(ApplyTo::HttpFilter);
    patch_listener_filters(view, &filters, listener);
    let name = listener.name.clone();
    let mut keeps = |chain: &mut FilterChain| {
        if !patch_chain(view, &chains, &name, chain) {
            return false;
        }
        patch_network_filters(view, &of_chain(&network, &name, chain), chain);
        patch_http_filters(view, &of_chain(&http, &name, chain), chain);
        true
    };
    listener.filter_chains.retain_mut(&mut keeps);
    listener.default_filter_chain.take_if(|chain| !keeps(chain));
    let added = chains.iter().filter_map(|patch| match &patch.value {
        Some(Value::FilterChain(chain)) if patch.operation == Operation::Add => {
            Some((**chain).clone())
        }
        _ => None,
    });
    listener.filter_chains.extend(added);
    !listener.filter_chains.is_empty() || listener.default_filter_chain.is_some()
}

/// The patches that are for a chain.
fn of_chain<'a>(patches: &[&'a Patch], listener: &str, chain: &FilterChain) -> Vec<&'a Patch> {
    let patches = patches.iter();
    patches
        .filter(|patch| is_chain(patch, listener, chain))
        .copied()
        .collect()
}

fn condition(patch: &Patch) -> Option<&ListenerMatch> {
    match &patch.object {
        Some(ObjectTypes::Listener(condition)) => Some(condition),
        _ => None,
    }
}

fn is_listener(patch: &Patch, listener: &Listener) -> bool {
    let Some(wanted) = condition(patch) else {
        return patch.object.is_none();
    };
    if !wanted.name.is_empty() && wanted.name != listener.name {
        return false;
    }
    // The ports of what is captured are conditions of the chains.
    wanted.port_number == 0
        || (patch.apply_to != ApplyTo::Listener && listener.name == VIRTUAL_INBOUND)
        || port_of(listener.address.as_ref()) == Some(wanted.port_number)
}

fn chain_condition(patch: &Patch) -> Option<&ChainCondition> {
    condition(patch)?.filter_chain.as_ref()
}

fn is_chain(patch: &Patch, listener: &str, chain: &FilterChain) -> bool {
    let empty = proto::envoy::config::listener::v3::FilterChainMatch::default();
    let matching = chain.filter_chain_match.as_ref().unwrap_or(&empty);
    let port = condition(patch).map_or(0, |wanted| wanted.port_number);
    if listener == VIRTUAL_INBOUND && port != 0 && matching.destination_port != Some(port) {
        return false;
    }
    let Some(wanted) = chain_condition(patch) else {
        return true;
    };
    let has_protocols = wanted
        .application_protocols
        .split(',')
        .filter(|protocol| !protocol.is_empty())
        .all(|protocol| {
            matching
                .application_protocols
                .iter()
                .any(|known| known == protocol)
        });
    (wanted.name.is_empty() || wanted.name == chain.name)
        && (wanted.sni.is_empty() || matching.server_names.contains(&wanted.sni))
        && (wanted.transport_protocol.is_empty()
            || wanted.transport_protocol == matching.transport_protocol)
        && (wanted.destination_port == 0
            || matching.destination_port == Some(wanted.destination_port))
        && has_protocols
}

fn patch_listener_filters(view: &View<'_>, patches: &[&Patch], listener: &mut Listener) {
    let wanted = |patch| condition(patch).map_or("", |wanted| wanted.listener_filter.as_str());
    let Listener {
        name,
        listener_filters: filters,
        ..
    } = listener;
    for patch in patches {
        let value = match &patch.value {
            Some(Value::ListenerFilter(filter)) => Some(filter),
            _ => None,
        };
        let is_target = named(wanted(patch), |filter: &ListenerFilter| &filter.name);
        let end = filters.len();
        patch_list(filters, patch, value, end, is_target);
    }
    for filter in filters {
        for patch in patches {
            if is_named(wanted(patch), &filter.name) {
                merge_into(view, patch, filter, name);
            }
        }
    }
}

/// Tells the element that a condition names.
fn named<'a, T>(
    wanted: &'a str,
    name_of: impl Fn(&T) -> &String + 'a,
) -> Option<impl Fn(&T) -> bool + 'a> {
    (!wanted.is_empty()).then_some(move |element: &T| name_of(element) == wanted)
}

fn is_named(wanted: &str, name: &str) -> bool {
    wanted.is_empty() || wanted == name
}

/// False when the chain is to go.
fn patch_chain(
    view: &View<'_>,
    patches: &[&Patch],
    listener: &str,
    chain: &mut FilterChain,
) -> bool {
    for patch in patches {
        if !is_chain(patch, listener, chain) {
            continue;
        }
        if patch.operation == Operation::Remove {
            return false;
        }
        merge_into(view, patch, chain, listener);
    }
    true
}

/// The network filter that a condition names; empty for none.
fn wanted_filter(patch: &Patch) -> &str {
    let filter = chain_condition(patch).and_then(|condition| condition.filter.as_ref());
    filter.map_or("", |filter| filter.name.as_str())
}

/// The HTTP filter that a condition names; empty for none.
fn wanted_inner(patch: &Patch) -> &str {
    let filter = chain_condition(patch).and_then(|condition| condition.filter.as_ref());
    let inner = filter.and_then(|filter| filter.sub_filter.as_ref());
    inner.map_or("", |inner| inner.name.as_str())
}

fn patch_network_filters(view: &View<'_>, patches: &[&Patch], chain: &mut FilterChain) {
    let FilterChain { name, filters, .. } = chain;
    for patch in patches {
        let value = match &patch.value {
            Some(Value::NetworkFilter(filter)) => Some(filter),
            _ => None,
        };
        // The last filter ends the chain: nothing can stand behind it.
        let end = filters.len().saturating_sub(1);
        let is_target = named(wanted_filter(patch), |filter: &Filter| &filter.name);
        patch_list(filters, patch, value, end, is_target);
    }
    for filter in filters {
        for patch in patches {
            if is_named(wanted_filter(patch), &filter.name) {
                merge_into(view, patch, filter, name);
            }
        }
    }
}

/// Takes the connection manager of a chain apart, patches its filters and puts it together again.
fn patch_http_filters(view: &View<'_>, patches: &[&Patch], chain: &mut FilterChain) {
    if patches.is_empty() {
        return;
    }
    let FilterChain { name, filters, .. } = chain;
    for filter in filters {
        if filter.name != CONNECTION_MANAGER {
            continue;
        }
        let Some(ConfigType::TypedConfig(config)) = &filter.config_type else {
            continue;
        };
        let Ok(mut manager) = proto::any::unpack::<HttpConnectionManager>(config) else {
            continue;
        };
        let patches = patches.iter().copied();
        let patches: Vec<&Patch> = patches
            .filter(|patch| is_named(wanted_filter(patch), &filter.name))
            .collect();
        patch_http_list(view, &patches, name, &mut manager.http_filters);
        filter.config_type = Some(ConfigType::TypedConfig(any(&manager)));
    }
}

fn patch_http_list(
    view: &View<'_>,
    patches: &[&Patch],
    chain: &str,
    filters: &mut Vec<HttpFilter>,
) {
    for patch in patches {
        let value = match &patch.value {
            Some(Value::HttpFilter(filter)) => Some(filter),
            _ => None,
        };
        let end = place_of(patch.class, filters);
        let is_target = named(wanted_inner(patch), |filter: &HttpFilter| &filter.name);
        patch_list(filters, patch, value, end, is_target);
    }
    for filter in filters {
        for patch in patches {
            if is_named(wanted_inner(patch), &filter.name) {
                merge_into(view, patch, filter, chain);
            }
        }
    }
}

/// Where an added filter of a class belongs: behind the last one that does the same, and always before the router.
fn place_of(class: FilterClass, filters: &[HttpFilter]) -> usize {
    let after = |names: &[&str]| {
        filters
            .iter()
            .rposition(|filter| names.contains(&filter.name.as_str()))
            .map(|index| index + 1)
    };
    let end = filters
        .iter()
        .position(|filter| filter.name == ROUTER)
        .unwrap_or(filters.len());
    match class {
        FilterClass::Authn => after(AUTHN).unwrap_or(0),
        FilterClass::Authz => after(AUTHZ).or_else(|| after(AUTHN)).unwrap_or(0),
        FilterClass::Stats => filters
            .iter()
            .position(|filter| filter.name == STATS)
            .unwrap_or(end),
        FilterClass::Unspecified => end,
    }
}
