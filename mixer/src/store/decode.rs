//! One resource → its place among [`Resources`], checked by the rules of its kind.

use prost::{Message, Name};
use proto::istio::policy::v1beta1::{AttributeManifest, Handler, Instance, Rule};
use proto_mesh::kind::Resource;
use proto_mesh::{Checked, Metadata};

use crate::config::{FullName, HANDLER, INSTANCE, ItemError, MANIFEST, RULE, Resources};

/// The kinds that Mixer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Manifest,
    Handler,
    Instance,
    Rule,
}

impl Kind {
    pub(super) const ALL: [Kind; 4] = [Kind::Manifest, Kind::Handler, Kind::Instance, Kind::Rule];

    /// The kind's name, as in a full name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Manifest => MANIFEST,
            Kind::Handler => HANDLER,
            Kind::Instance => INSTANCE,
            Kind::Rule => RULE,
        }
    }

    /// The MCP collection.
    pub(super) fn collection(self) -> &'static str {
        match self {
            Kind::Manifest => "istio/policy/v1beta1/attributemanifests",
            Kind::Handler => "istio/policy/v1beta1/handlers",
            Kind::Instance => "istio/policy/v1beta1/instances",
            Kind::Rule => "istio/policy/v1beta1/rules",
        }
    }

    /// The message's full name.
    pub(super) fn message(self) -> String {
        match self {
            Kind::Manifest => AttributeManifest::full_name(),
            Kind::Handler => Handler::full_name(),
            Kind::Instance => Instance::full_name(),
            Kind::Rule => Rule::full_name(),
        }
    }
}

/// Adds a resource, or what is wrong with it. `as_kind` is the kind of its full name.
pub(super) fn add(
    resources: &mut Resources,
    kind: Kind,
    as_kind: &str,
    meta: &Metadata,
    bytes: &[u8],
) {
    let name = FullName::new(&meta.name, as_kind, &meta.namespace);
    let added = match kind {
        Kind::Manifest => read(meta, bytes).map(|spec| {
            resources.manifests.insert(name.clone(), spec);
        }),
        Kind::Handler => read(meta, bytes).map(|spec| {
            resources.handlers.insert(name.clone(), spec);
        }),
        Kind::Instance => read(meta, bytes).map(|spec| {
            resources.instances.insert(name.clone(), spec);
        }),
        Kind::Rule => read(meta, bytes).map(|spec| {
            resources.rules.insert(name.clone(), spec);
        }),
    };
    if let Err(problem) = added {
        resources.errors.push(ItemError::new(&name, "", problem));
    }
}

fn read<T: Message + Default + Resource>(meta: &Metadata, bytes: &[u8]) -> Result<T, String> {
    let spec = T::decode(bytes).map_err(|error| error.to_string())?;
    Checked::new(meta.clone(), spec)
        .map(|(checked, _)| checked.spec)
        .map_err(|invalid| invalid.to_string())
}
