//! Patches of clusters.

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
    for patch in view.patches.of(ApplyTo::Cluster) {
        if !patch.is_in(context) {
            continue;
        }
        match patch.operation {
            Operation::Remove => clusters.retain(|cluster| !matches(patch, cluster)),
            // What is for any context is added with the outbound clusters.
            Operation::Add
                if patch.context == context || context != PatchContext::SidecarInbound =>
            {
                if let Some(Value::Cluster(cluster)) = &patch.value {
                    clusters.push((**cluster).clone());
                }
            }
            _ if patch.is_merge() => {
                let Some(value) = &patch.merge else { continue };
                for cluster in clusters
                    .iter_mut()
                    .filter(|cluster| matches(patch, cluster))
                {
                    if !merge(cluster, value, patch.replaces_lists()) {
                        view.record_patch(&cluster.name);
                    }
                }
            }
            _ => {}
        }
    }
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
