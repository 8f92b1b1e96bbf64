//! The mesh's settings as the one resource of their collection, defaults filled in.

use crate::source::file::version;
use proto::istio::{
    mcp::v1alpha1::{Metadata, Resource},
    mesh::v1alpha1::MeshConfig,
};
use proto_mcp::snapshot::Collection;
use std::{collections::BTreeMap, sync::Arc};

/// The resource's name, as in Istio.
pub const NAME: &str = "istio-system/meshconfig";

/// The collection with the settings in it.
pub fn build_collection(config: &MeshConfig) -> Collection {
    let body = proto::any::pack(config);
    let version = version(&body.value, &BTreeMap::new(), &BTreeMap::new());
    Collection::new([Arc::new(Resource {
        metadata: Some(Metadata {
            name: NAME.to_owned(),
            version,
            ..Metadata::default()
        }),
        body: Some(body),
    })])
}
