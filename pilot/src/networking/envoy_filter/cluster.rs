//! Patches of clusters.

use prost_reflect::{DynamicMessage, Value as Field};
use proto::envoy::config::cluster::v3::Cluster;
use proto::istio::networking::v1alpha3::envoy_filter::{
    ApplyTo, ClusterMatch, PatchContext, envoy_config_object_match::ObjectTypes, patch::Operation,
};

use super::merge::merge;
use crate::model::ClusterName;
use crate::networking::View;
use crate::push_context::envoy_filters::{Patch, Value};

/// Patches `clusters`, all of which are for traffic of `context`.
pub(in crate::networking) fn apply(
    view: &View<'_>,
    context: PatchContext,
    clusters: &mut Vec<Cluster>,
) {
    let patches = view.patches.of(ApplyTo::Cluster);
    let patches: Vec<&Patch> = patches.filter(|patch| patch.is_in(context)).collect();
    clusters.retain_mut(|cluster| patch_one(view, &patches, cluster));
    let added = patches.iter().filter(|patch| {
        // What is for any context is added with the outbound clusters.
        patch.operation == Operation::Add
            && (patch.context == context || context != PatchContext::SidecarInbound)
    });
    clusters.extend(added.filter_map(|patch| match &patch.value {
        Some(Value::Cluster(cluster)) => Some((**cluster).clone()),
        _ => None,
    }));
}

/// False when the cluster is to go.
fn patch_one(view: &View<'_>, patches: &[&Patch], cluster: &mut Cluster) -> bool {
    for patch in patches {
        if !matches(patch, cluster) {
            continue;
        }
        if patch.operation == Operation::Remove {
            return false;
        }
        if let (true, Some(value)) = (patch.is_merge(), &patch.merge)
            && !merge_cluster(cluster, patch, value)
        {
            view.record_patch(&cluster.name);
        }
    }
    true
}

/// Where the endpoints choose the transport socket, a patch of the socket is one of the choice that has its name.
fn merge_cluster(cluster: &mut Cluster, patch: &Patch, value: &DynamicMessage) -> bool {
    const SOCKET: &str = "transport_socket";
    let replaces_lists = patch.replaces_lists();
    let name = match &patch.value {
        Some(Value::Cluster(cluster)) => cluster.transport_socket.as_ref(),
        _ => None,
    };
    let (Some(name), false) = (name, cluster.transport_socket_matches.is_empty()) else {
        return merge(cluster, value, replaces_lists);
    };
    let sockets = cluster.transport_socket_matches.iter_mut();
    let chosen = sockets
        .filter_map(|choice| choice.transport_socket.as_mut())
        .find(|socket| socket.name == name.name);
    let mut rest = value.clone();
    rest.clear_field_by_name(SOCKET);
    let fits = match (chosen, value.get_field_by_name(SOCKET).as_deref()) {
        (Some(socket), Some(Field::Message(value))) => merge(socket, value, replaces_lists),
        _ => true,
    };
    merge(cluster, &rest, replaces_lists) && fits
}

fn matches(patch: &Patch, cluster: &Cluster) -> bool {
    match &patch.object {
        None => true,
        Some(ObjectTypes::Cluster(wanted)) => is_wanted(wanted, cluster),
        Some(_) => false,
    }
}

fn is_wanted(wanted: &ClusterMatch, cluster: &Cluster) -> bool {
    if !wanted.name.is_empty() {
        return wanted.name == cluster.name;
    }
    if wanted.service.is_empty() && wanted.subset.is_empty() && wanted.port_number == 0 {
        return true;
    }
    let Some(name) = ClusterName::parse(&cluster.name) else {
        return false;
    };
    (wanted.service.is_empty() || wanted.service == name.host)
        && (wanted.subset.is_empty() || wanted.subset == name.subset)
        && (wanted.port_number == 0 || wanted.port_number == name.port)
}
