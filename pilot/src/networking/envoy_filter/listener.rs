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

use super::merge::merge;
use super::{patch_list, port_of};
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
    for patch in of(view, ApplyTo::Listener, context) {
        match patch.operation {
            Operation::Remove => listeners.retain(|listener| !is_listener(patch, listener)),
            // What is for any context is added with the outbound listeners.
            Operation::Add
                if adds
                    && (patch.context == context || context != PatchContext::SidecarInbound) =>
            {
                if let Some(Value::Listener(listener)) = &patch.value {
                    listeners.push((**listener).clone());
                }
            }
            _ if patch.is_merge() => {
                let Some(value) = &patch.merge else { continue };
                for listener in listeners
                    .iter_mut()
                    .filter(|listener| is_listener(patch, listener))
                {
                    if !merge(listener, value, patch.replaces_lists()) {
                        view.record_patch(&listener.name);
                    }
                }
            }
            _ => {}
        }
    }
    for listener in listeners.iter_mut() {
        patch_listener(view, context, listener);
    }
    listeners.retain(|listener| {
        !listener.filter_chains.is_empty() || listener.default_filter_chain.is_some()
    });
}

fn of<'a>(
    view: &'a View<'_>,
    apply_to: ApplyTo,
    context: PatchContext,
) -> impl Iterator<Item = &'a Patch> {
    let patches = view.patches.of(apply_to);
    patches.filter(move |patch| patch.is_in(context))
}

fn patch_listener(view: &View<'_>, context: PatchContext, listener: &mut Listener) {
    for patch in of(view, ApplyTo::ListenerFilter, context) {
        if is_listener(patch, listener) {
            patch_listener_filters(view, patch, listener);
        }
    }
    let name = listener.name.clone();
    for patch in of(view, ApplyTo::FilterChain, context) {
        if is_listener(patch, listener) {
            patch_chains(view, patch, listener);
        }
    }
    let inner: Vec<&Patch> = of(view, ApplyTo::NetworkFilter, context)
        .filter(|patch| is_listener(patch, listener))
        .collect();
    let http: Vec<&Patch> = of(view, ApplyTo::HttpFilter, context)
        .filter(|patch| is_listener(patch, listener))
        .collect();
    if inner.is_empty() && http.is_empty() {
        return;
    }
    let chains = listener
        .filter_chains
        .iter_mut()
        .chain(listener.default_filter_chain.as_mut());
    for chain in chains {
        for patch in &inner {
            if is_chain(patch, &name, chain) {
                patch_network_filters(view, patch, chain);
            }
        }
        let wanted: Vec<&&Patch> = http
            .iter()
            .filter(|patch| is_chain(patch, &name, chain))
            .collect();
        if !wanted.is_empty() {
            patch_http_filters(view, &wanted, chain);
        }
    }
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
        || listener.name == VIRTUAL_INBOUND
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

fn patch_listener_filters(view: &View<'_>, patch: &Patch, listener: &mut Listener) {
    let wanted = condition(patch).map_or("", |wanted| wanted.listener_filter.as_str());
    let value = match &patch.value {
        Some(Value::ListenerFilter(filter)) => Some(filter),
        _ => None,
    };
    let name = listener.name.clone();
    patch_list(
        &mut listener.listener_filters,
        patch,
        !wanted.is_empty(),
        |filter: &ListenerFilter| wanted.is_empty() || filter.name == wanted,
        value,
        |filter| merge_or_record(view, patch, filter, &name),
    );
}

fn merge_or_record<T: prost::Message + prost::Name + Default>(
    view: &View<'_>,
    patch: &Patch,
    target: &mut T,
    listener: &str,
) {
    if let Some(value) = &patch.merge
        && !merge(target, value, patch.replaces_lists())
    {
        view.record_patch(listener);
    }
}

fn patch_chains(view: &View<'_>, patch: &Patch, listener: &mut Listener) {
    let name = listener.name.clone();
    match (&patch.value, patch.operation) {
        (Some(Value::FilterChain(chain)), Operation::Add) => {
            listener.filter_chains.push((**chain).clone());
        }
        (_, Operation::Remove) => {
            listener
                .filter_chains
                .retain(|chain| !is_chain(patch, &name, chain));
            if let Some(chain) = &listener.default_filter_chain
                && is_chain(patch, &name, chain)
            {
                listener.default_filter_chain = None;
            }
        }
        _ if patch.is_merge() => {
            let chains = listener
                .filter_chains
                .iter_mut()
                .chain(listener.default_filter_chain.as_mut());
            for chain in chains.filter(|chain| is_chain(patch, &name, chain)) {
                merge_or_record(view, patch, chain, &name);
            }
        }
        _ => {}
    }
}

fn patch_network_filters(view: &View<'_>, patch: &Patch, chain: &mut FilterChain) {
    let wanted = chain_condition(patch)
        .and_then(|condition| condition.filter.as_ref())
        .map_or("", |filter| filter.name.as_str());
    let value = match &patch.value {
        Some(Value::NetworkFilter(filter)) => Some(filter),
        _ => None,
    };
    let name = chain.name.clone();
    // An added filter stands before the last one, which ends the chain.
    if let (Operation::Add, Some(value)) = (patch.operation, value) {
        let end = chain.filters.len().saturating_sub(1);
        chain.filters.insert(end, value.clone());
        return;
    }
    patch_list(
        &mut chain.filters,
        patch,
        !wanted.is_empty(),
        |filter: &Filter| wanted.is_empty() || filter.name == wanted,
        value,
        |filter| merge_or_record(view, patch, filter, &name),
    );
}

/// Takes the connection manager of a chain apart, patches its filters and puts it together again.
fn patch_http_filters(view: &View<'_>, patches: &[&&Patch], chain: &mut FilterChain) {
    let name = chain.name.clone();
    for filter in &mut chain.filters {
        if filter.name != CONNECTION_MANAGER {
            continue;
        }
        let Some(ConfigType::TypedConfig(config)) = &filter.config_type else {
            continue;
        };
        let Ok(mut manager) = proto::any::unpack::<HttpConnectionManager>(config) else {
            continue;
        };
        for patch in patches {
            let outer = chain_condition(patch).and_then(|condition| condition.filter.as_ref());
            if outer.is_some_and(|outer| !outer.name.is_empty() && outer.name != filter.name) {
                continue;
            }
            let wanted = outer
                .and_then(|outer| outer.sub_filter.as_ref())
                .map_or("", |inner| inner.name.as_str());
            patch_http_list(view, patch, wanted, &name, &mut manager.http_filters);
        }
        filter.config_type = Some(ConfigType::TypedConfig(any(&manager)));
    }
}

fn patch_http_list(
    view: &View<'_>,
    patch: &Patch,
    wanted: &str,
    chain: &str,
    filters: &mut Vec<HttpFilter>,
) {
    let value = match &patch.value {
        Some(Value::HttpFilter(filter)) => Some(filter),
        _ => None,
    };
    if let (Operation::Add, Some(value)) = (patch.operation, value) {
        filters.insert(place_of(patch.class, filters), value.clone());
        return;
    }
    patch_list(
        filters,
        patch,
        !wanted.is_empty(),
        |filter: &HttpFilter| wanted.is_empty() || filter.name == wanted,
        value,
        |filter| merge_or_record(view, patch, filter, chain),
    );
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
