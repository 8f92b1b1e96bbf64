//! One resource → its place among [`Resources`], checked by the rules of its kind.

use prost::{Message, Name};
use proto::istio::mixer::adapter::model::v1beta1::{Info, Template};
use proto::istio::policy::v1beta1::{AttributeManifest, Handler, Instance, Rule};
use proto_mesh::kind::Resource;
use proto_mesh::{Checked, Metadata};
use serde_json::{Value as Json, json};

use crate::adapter;
use crate::template as compiled;

use crate::config::{
    ADAPTER, FullName, HANDLER, INSTANCE, ItemError, MANIFEST, RULE, Resources, TEMPLATE,
};

/// The kinds that Mixer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Manifest,
    Handler,
    Instance,
    Rule,
    Adapter,
    Template,
}

impl Kind {
    pub(super) const ALL: [Kind; 6] = [
        Kind::Manifest,
        Kind::Handler,
        Kind::Instance,
        Kind::Rule,
        Kind::Adapter,
        Kind::Template,
    ];

    /// Whether a source of configuration always has it; it travels as its JSON in a struct else.
    pub(super) fn is_typed(self) -> bool {
        !matches!(self, Kind::Adapter | Kind::Template)
    }

    /// The kind's name, as in a full name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Manifest => MANIFEST,
            Kind::Handler => HANDLER,
            Kind::Instance => INSTANCE,
            Kind::Rule => RULE,
            Kind::Adapter => ADAPTER,
            Kind::Template => TEMPLATE,
        }
    }

    /// The MCP collection.
    pub(super) fn collection(self) -> &'static str {
        match self {
            Kind::Manifest => "istio/policy/v1beta1/attributemanifests",
            Kind::Handler => "istio/policy/v1beta1/handlers",
            Kind::Instance => "istio/policy/v1beta1/instances",
            Kind::Rule => "istio/policy/v1beta1/rules",
            Kind::Adapter => "istio/config/v1alpha2/adapters",
            Kind::Template => "istio/config/v1alpha2/templates",
        }
    }

    /// The message's full name.
    pub(super) fn message(self) -> String {
        match self {
            Kind::Manifest => AttributeManifest::full_name(),
            Kind::Handler => Handler::full_name(),
            Kind::Instance => Instance::full_name(),
            Kind::Rule => Rule::full_name(),
            Kind::Adapter => Info::full_name(),
            Kind::Template => Template::full_name(),
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
        Kind::Adapter => unchecked(bytes).map(|spec| {
            resources.adapters.insert(name.clone(), spec);
        }),
        Kind::Template => unchecked(bytes).map(|spec| {
            resources.templates.insert(name.clone(), spec);
        }),
    };
    if let Err(problem) = added {
        resources.errors.push(ItemError::new(&name, "", problem));
    }
}

/// A kind whose content only we can check.
fn unchecked<T: Message + Default>(bytes: &[u8]) -> Result<T, String> {
    T::decode(bytes).map_err(|error| error.to_string())
}

/// A kind with its message's bytes; or the field's path and what is wrong.
type Encoded = Result<(Kind, Vec<u8>), (String, String)>;

/// A spec as JSON → the message of its kind, encoded; an older line's kind, whose spec is the parameters alone, becomes a
/// handler or an instance. `None` for a kind that Mixer does not read.
pub(super) fn encode(kind: &str, spec: &Json) -> Option<Encoded> {
    let known = Kind::ALL.into_iter().find(|known| known.name() == kind);
    let parameters = |field: &str| {
        // One with an empty spec has no parameters.
        match spec {
            Json::Null => json!({field: kind}),
            spec => json!({field: kind, "params": spec}),
        }
    };
    let (kind, spec) = match known {
        Some(kind) => (kind, spec.clone()),
        None if adapter::factory(kind).is_some() => (Kind::Handler, parameters("compiledAdapter")),
        None if compiled::Template::by_name(kind).is_some() => {
            (Kind::Instance, parameters("compiledTemplate"))
        }
        None => return None,
    };
    let encoded = proto::json::any_from_value(&kind.message(), &spec);
    Some(
        encoded
            .map(|any| (kind, any.value.to_vec()))
            .map_err(|error| (error.path().unwrap_or_default().to_owned(), error.problem())),
    )
}

fn read<T: Message + Default + Resource>(meta: &Metadata, bytes: &[u8]) -> Result<T, String> {
    let spec = T::decode(bytes).map_err(|error| error.to_string())?;
    Checked::new(meta.clone(), spec)
        .map(|(checked, _)| checked.spec)
        .map_err(|invalid| invalid.to_string())
}
