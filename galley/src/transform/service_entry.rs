//! Kubernetes services with their endpoints as `ServiceEntry`s ([`proto_mesh::kubernetes`]): the registry of services that
//! Pilot gets over MCP.

use super::direct::reuse;
use crate::{
    event::{Content, Objects},
    source::file::version,
    validation::Kube,
};
use backends::Backends;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use proto::istio::mcp::v1alpha1::{Metadata, Resource};
use proto_mcp::snapshot::Collection;
use proto_mesh::kubernetes::{self, Source, object::Service};
use std::{collections::BTreeMap, sync::Arc};

mod backends;
mod dirty;
#[cfg(test)]
mod tests;

pub use dirty::Dirty;
pub use proto_mesh::kubernetes::Settings;

const SERVICE_VERSION: &str = "networking.alpha.istio.io/serviceVersion";
const ENDPOINTS_VERSION: &str = "networking.alpha.istio.io/endpointsVersion";

/// A service entry for each service; those that are not dirty, or come out the same, are `last`'s own.
pub fn build_collection(
    objects: &Objects,
    settings: &Settings,
    dirty: &Dirty,
    last: Option<&Arc<Collection>>,
) -> Arc<Collection> {
    let backends = Backends::new(objects);
    let resources = objects.iter().filter_map(|(key, object)| {
        let Content::Kube(Kube::Service(service)) = &object.content else {
            return None;
        };
        let same = last.and_then(|last| last.resources.get(key.name.as_ref()));
        if let Some(same) = same
            && !dirty.has(&key.name)
        {
            return Some(same.clone());
        }
        let resource = build_resource(service, &backends, settings)?;
        // Unchanged ones keep their place in memory, so that they are known by it.
        let same = same.filter(|same| ***same == resource).cloned();
        Some(same.unwrap_or_else(|| Arc::new(resource)))
    });
    let mut resources: Vec<Arc<Resource>> = resources.collect();
    resources.sort_by(|a, b| proto_mcp::snapshot::name_of(a).cmp(proto_mcp::snapshot::name_of(b)));
    reuse(last, resources)
}

fn build_resource(
    service: &Service,
    backends: &Backends<'_>,
    settings: &Settings,
) -> Option<Resource> {
    let (meta, entry) = kubernetes::service_entry(service, backends, settings)?;
    let mut annotations = meta.annotations;
    annotations.insert(
        SERVICE_VERSION.into(),
        object_version(&service.metadata, service),
    );
    match kubernetes::source(backends, &meta.namespace, &meta.name) {
        Source::Slices(slices) => drop(annotations.insert(ENDPOINTS_VERSION.into(), hash(&slices))),
        Source::Endpoints(all) => drop(annotations.insert(ENDPOINTS_VERSION.into(), hash(all))),
        Source::None => {}
    }
    let body = proto::any::pack(&entry);
    Some(Resource {
        metadata: Some(Metadata {
            name: format!("{}/{}", meta.namespace, meta.name),
            create_time: meta.creation_time.map(Into::into),
            version: version(&body.value, &meta.labels, &annotations),
            labels: meta.labels,
            annotations,
        }),
        body: Some(body),
    })
}

/// The platform's version of an object, or a hash of it.
fn object_version<T: serde::Serialize>(meta: &ObjectMeta, object: &T) -> String {
    match &meta.resource_version {
        Some(version) => version.clone(),
        None => hash(object),
    }
}

fn hash<T: serde::Serialize>(object: &T) -> String {
    let text = serde_json::to_vec(object).unwrap_or_default();
    version(&text, &BTreeMap::new(), &BTreeMap::new())
}
