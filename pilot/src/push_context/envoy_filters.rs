//! EnvoyFilters by namespace, read once: every patch decoded, ready to be applied to what the generators made.
//!
//! A proxy follows the root namespace's first, then its own namespace's; in each by priority, then by age.

use std::collections::HashMap;
use std::sync::Arc;

use proto::istio::networking::v1alpha3::{self as wire, envoy_filter::ApplyTo};
use proto::istio::r#type::v1beta1::PolicyTargetReference;

mod legacy;
mod patch;

pub use patch::{Patch, Value};

use super::attachment;
use crate::config::{Config, by_age};
use crate::model::Proxy;

/// One resource.
#[derive(Debug)]
struct EnvoyFilter {
    namespace: String,
    selector: std::collections::BTreeMap<String, String>,
    targets: Vec<PolicyTargetReference>,
    patches: Vec<Arc<Patch>>,
}

impl EnvoyFilter {
    fn is_for(&self, proxy: &Proxy) -> bool {
        if self.targets.is_empty() {
            return proxy.is_selected_by(&self.selector);
        }
        let mut targets = self.targets.iter();
        self.namespace == proxy.namespace
            && targets.any(|target| attachment::is_gateway_of(proxy, target))
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct EnvoyFilterIndex {
    by_namespace: HashMap<String, Vec<EnvoyFilter>>,
    root: String,
    /// Patches that could not be read: which, and why.
    pub problems: Vec<(String, String)>,
}

/// What is to be done to one proxy's configuration, in order.
#[derive(Clone, Debug, Default)]
pub struct Patches {
    all: Vec<Arc<Patch>>,
}

impl Patches {
    /// True when there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Those for one kind of object.
    pub fn of(&self, apply_to: ApplyTo) -> impl Iterator<Item = &Patch> {
        let all = self.all.iter().map(AsRef::as_ref);
        all.filter(move |patch| patch.apply_to == apply_to)
    }

    /// True when any is for one of these.
    #[must_use]
    pub fn has_any(&self, wanted: &[ApplyTo]) -> bool {
        self.all
            .iter()
            .any(|patch| wanted.contains(&patch.apply_to))
    }

    /// Tells one list of patches from another.
    pub fn identities(&self) -> impl Iterator<Item = usize> {
        self.all.iter().map(|patch| Arc::as_ptr(patch).addr())
    }
}

impl EnvoyFilterIndex {
    /// Reads them. What cannot be read is left out and reported.
    pub fn new<'a>(
        configs: impl Iterator<Item = &'a Config<wire::EnvoyFilter>>,
        root: &str,
    ) -> Self {
        let mut problems = Vec::new();
        let mut sorted = by_age(configs);
        sorted.sort_by_key(|config| config.spec.priority);
        let mut by_namespace: HashMap<String, Vec<EnvoyFilter>> = HashMap::new();
        for config in sorted {
            let name = config.meta.full_name();
            let mut patches = Vec::new();
            for (index, wire) in config.spec.config_patches.iter().enumerate() {
                match Patch::read(wire) {
                    Ok(patch) => patches.push(Arc::new(patch)),
                    Err(reason) => {
                        problems.push((format!("{name} configPatches[{index}]"), reason));
                    }
                }
            }
            let selector = config.spec.workload_selector.as_ref();
            by_namespace
                .entry(config.meta.namespace.clone())
                .or_default()
                .push(EnvoyFilter {
                    namespace: config.meta.namespace.clone(),
                    selector: selector
                        .map(|selector| selector.labels.clone())
                        .unwrap_or_default(),
                    targets: config.spec.target_refs.clone(),
                    patches,
                });
        }
        EnvoyFilterIndex {
            by_namespace,
            root: root.to_owned(),
            problems,
        }
    }

    /// What `proxy` has to be patched with.
    #[must_use]
    pub fn select(&self, proxy: &Proxy) -> Patches {
        if self.by_namespace.is_empty() {
            return Patches::default();
        }
        let own = (proxy.namespace != self.root).then_some(proxy.namespace.as_str());
        let places = std::iter::once(self.root.as_str()).chain(own);
        let all = places
            .filter_map(|place| self.by_namespace.get(place))
            .flatten()
            .filter(|filter| filter.is_for(proxy))
            .flat_map(|filter| &filter.patches)
            .filter(|patch| patch.is_for(proxy))
            .cloned()
            .collect();
        Patches { all }
    }
}
