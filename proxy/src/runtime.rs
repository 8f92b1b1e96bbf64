//! The runtime: values by key in layers, a later layer before an earlier one. Static layers come with the bootstrap, others by
//! RTDS, and one may be changed by hand (`/runtime_modify`).

mod reading;

use crate::{
    invalid::{At as _, Invalid},
    stat_group,
    stats::Scope,
};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use prost_types::{Struct, Value, value::Kind};
use proto::envoy::config::bootstrap::v3::{LayeredRuntime, runtime_layer::LayerSpecifier};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

pub(crate) use reading::{RuntimeFlag, RuntimeFraction, RuntimeNumber, Setting, current};

/// Values by key.
#[derive(Default)]
struct Values {
    by_key: HashMap<String, Value, foldhash::quality::RandomState>,
    /// What stands before the first dot of any key.
    families: HashSet<String, foldhash::quality::RandomState>,
}

/// The values of now, for those that are not read on a worker's thread alone.
#[derive(Clone, Default)]
pub(crate) struct RuntimeView(Arc<ArcSwap<Values>>);

stat_group! {
    /// `runtime.…`
    pub(crate) struct RuntimeStats {
        admin_overrides_active: Gauge, deprecated_feature_seen_since_process_start: Gauge, deprecated_feature_use: Counter,
        load_error: Counter, load_success: Counter, num_keys: Gauge, num_layers: Gauge, override_dir_exists: Counter,
        override_dir_not_exists: Counter,
    }
}

/// Values by key, layered.
pub(crate) struct Runtime {
    layers: Mutex<Vec<Layer>>,
    merged: RuntimeView,
    stats: Arc<RuntimeStats>,
}

struct Layer {
    name: String,
    kind: LayerKind,
    values: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum LayerKind {
    Static,
    Admin,
    Discovered(String),
}

/// What cannot be changed by hand.
#[derive(Debug, thiserror::Error)]
#[error("No admin layer specified")]
pub(crate) struct NoAdminLayer;

impl Runtime {
    /// No layers yet.
    pub(crate) fn new(root: &Scope) -> Self {
        Self {
            layers: Mutex::default(),
            merged: RuntimeView::default(),
            stats: root.scope("runtime").group(),
        }
    }

    /// This thread's settings are read here from now on.
    pub(crate) fn enter(&self) {
        reading::enter(&self.merged);
    }

    /// The values of now, and of later.
    pub(crate) fn view(&self) -> RuntimeView {
        self.merged.clone()
    }

    /// Takes over the bootstrap's layers. Without any there is one for changes by hand, as Envoy has it.
    pub(crate) fn configure(&self, wire: Option<&LayeredRuntime>) -> Result<(), Invalid> {
        let mut layers = Vec::new();
        for (index, layer) in wire.iter().flat_map(|wire| &wire.layers).enumerate() {
            let at = format!("layers[{index}]");
            let (kind, values) = match &layer.layer_specifier {
                Some(LayerSpecifier::StaticLayer(values)) => (LayerKind::Static, flatten(values)),
                Some(LayerSpecifier::AdminLayer(_)) => (LayerKind::Admin, BTreeMap::new()),
                Some(LayerSpecifier::RtdsLayer(rtds)) => {
                    (LayerKind::Discovered(rtds.name.clone()), BTreeMap::new())
                }
                Some(LayerSpecifier::DiskLayer(_)) => {
                    return Err(Invalid::unsupported("disk_layer").at(at));
                }
                None => return Err(Invalid::new("a layer specifier is needed").at(at)),
            };
            let is_second_admin = kind == LayerKind::Admin
                && layers
                    .iter()
                    .any(|layer: &Layer| layer.kind == LayerKind::Admin);
            if is_second_admin {
                return Err(Invalid::new(
                    "Too many admin layers specified in LayeredRuntime",
                ))
                .at(at);
            }
            layers.push(Layer {
                name: layer.name.clone(),
                kind,
                values,
            });
        }
        if wire.is_none() {
            layers.push(Layer {
                name: "admin".to_owned(),
                kind: LayerKind::Admin,
                values: BTreeMap::new(),
            });
        }
        *self.layers.lock() = layers;
        self.merge();
        Ok(())
    }

    /// A layer has come by RTDS.
    pub(crate) fn set_discovered(&self, resource: &str, values: &Struct) {
        let values = flatten(values);
        for layer in self.layers.lock().iter_mut() {
            if layer.kind == LayerKind::Discovered(resource.to_owned()) {
                layer.values.clone_from(&values);
            }
        }
        self.merge();
    }

    /// Changes values by hand; an empty one takes the override away.
    pub(crate) fn modify<'a>(
        &self,
        values: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Result<(), NoAdminLayer> {
        {
            let mut layers = self.layers.lock();
            let layer = layers
                .iter_mut()
                .find(|layer| layer.kind == LayerKind::Admin)
                .ok_or(NoAdminLayer)?;
            for (key, value) in values {
                if value.is_empty() {
                    layer.values.remove(key);
                } else {
                    layer.values.insert(key.to_owned(), parse(value));
                }
            }
            let active = u64::from(!layer.values.is_empty());
            self.stats.admin_overrides_active.set(active);
        }
        self.merge();
        Ok(())
    }

    /// The number under `key`.
    pub(crate) fn number(&self, key: &str) -> Option<f64> {
        match self.merged.0.load().by_key.get(key)?.kind.as_ref()? {
            Kind::NumberValue(number) => Some(*number),
            Kind::StringValue(text) => text.parse().ok(),
            _ => None,
        }
    }

    /// Names of the layers, and of each key its value in every layer, empty where it has none.
    pub(crate) fn entries(&self) -> (Vec<String>, BTreeMap<String, Vec<String>>) {
        let layers = self.layers.lock();
        let names = layers.iter().map(|layer| layer.name.clone()).collect();
        let mut entries: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (index, layer) in layers.iter().enumerate() {
            for (key, value) in &layer.values {
                let row = entries
                    .entry(key.clone())
                    .or_insert_with(|| vec![String::new(); layers.len()]);
                row[index] = text(value);
            }
        }
        (names, entries)
    }

    fn merge(&self) {
        let layers = self.layers.lock();
        let mut merged = Values::default();
        for (key, value) in layers.iter().flat_map(|layer| &layer.values) {
            let family = key.split('.').next().unwrap_or_default();
            merged.families.insert(family.to_owned());
            merged.by_key.insert(key.clone(), value.clone());
        }
        self.stats.load_success.inc();
        self.stats.num_keys.set(merged.by_key.len() as u64);
        self.stats.num_layers.set(layers.len() as u64);
        self.merged.0.store(Arc::new(merged));
    }
}

/// `{a: {b: 1}}` is the key `a.b`; a fraction stays a value.
fn flatten(values: &Struct) -> BTreeMap<String, Value> {
    fn walk(prefix: &str, fields: &Struct, into: &mut BTreeMap<String, Value>) {
        for (name, value) in &fields.fields {
            let key = if prefix.is_empty() {
                name.clone()
            } else {
                format!("{prefix}.{name}")
            };
            match &value.kind {
                Some(Kind::StructValue(inner))
                    if !inner.fields.contains_key("numerator")
                        && !inner.fields.contains_key("denominator") =>
                {
                    walk(&key, inner, into);
                }
                _ => {
                    into.insert(key, value.clone());
                }
            }
        }
    }
    let mut flat = BTreeMap::new();
    walk("", values, &mut flat);
    flat
}

fn parse(text: &str) -> Value {
    let kind = match text {
        "true" => Kind::BoolValue(true),
        "false" => Kind::BoolValue(false),
        _ => text
            .parse()
            .map_or_else(|_| Kind::StringValue(text.to_owned()), Kind::NumberValue),
    };
    Value { kind: Some(kind) }
}

fn text(value: &Value) -> String {
    match &value.kind {
        Some(Kind::NumberValue(number)) => number.to_string(),
        Some(Kind::StringValue(text)) => text.clone(),
        Some(Kind::BoolValue(is)) => is.to_string(),
        Some(Kind::StructValue(fields)) => {
            let fields: Vec<String> = fields
                .fields
                .iter()
                .map(|(name, value)| format!("{name}: {}", self::text(value)))
                .collect();
            format!("{{{}}}", fields.join(", "))
        }
        Some(Kind::ListValue(list)) => {
            let values: Vec<String> = list.values.iter().map(self::text).collect();
            format!("[{}]", values.join(", "))
        }
        Some(Kind::NullValue(_)) | None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Store;

    fn runtime(text: &str) -> Runtime {
        let runtime = Runtime::new(&Arc::new(Store::default()).root());
        let wire: LayeredRuntime = proto::yaml::from_str(text).unwrap();
        runtime.configure(Some(&wire)).unwrap();
        runtime
    }

    #[test]
    fn a_later_layer_wins_and_structs_are_dotted_keys() {
        let runtime = runtime(
            "layers: [{name: base, static_layer: {a: {b: 1, c: 2}}}, {name: r, rtds_layer: {name: x, rtds_config: {ads: {}}}}, {name: hand, admin_layer: {}}]",
        );
        assert_eq!(runtime.number("a.b"), Some(1.0));
        let three = Value {
            kind: Some(Kind::NumberValue(3.0)),
        };
        let values = Struct {
            fields: [("a.b".to_owned(), three)].into(),
        };
        runtime.set_discovered("x", &values);
        assert_eq!(runtime.number("a.b"), Some(3.0));
        runtime.modify([("a.b", "4")].into_iter()).unwrap();
        assert_eq!(runtime.number("a.b"), Some(4.0));
        let (layers, entries) = runtime.entries();
        assert_eq!(layers, ["base", "r", "hand"]);
        assert_eq!(entries["a.b"], ["1", "3", "4"]);
        assert_eq!(entries["a.c"], ["2", "", ""]);
        runtime.modify([("a.b", "")].into_iter()).unwrap();
        assert_eq!(runtime.number("a.b"), Some(3.0));
    }

    #[test]
    fn without_an_admin_layer_nothing_can_be_changed() {
        let runtime = runtime("layers: [{name: base, static_layer: {a: 1}}]");
        assert!(runtime.modify([("a", "2")].into_iter()).is_err());
    }
}
