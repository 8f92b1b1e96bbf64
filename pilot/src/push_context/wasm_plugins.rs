//! WasmPlugins by namespace: for a workload the root namespace's and its own, larger priorities first.

use std::collections::HashMap;

use proto::istio::extensions::v1alpha1::WasmPlugin;

use crate::config::{Config, by_namespace};
use crate::model::Proxy;

/// All of them.
#[derive(Debug, Default)]
pub struct WasmPluginIndex {
    by_namespace: HashMap<String, Vec<Config<WasmPlugin>>>,
    root: String,
}

impl WasmPluginIndex {
    /// Builds the index.
    pub fn new<'a>(configs: impl Iterator<Item = &'a Config<WasmPlugin>>, root: &str) -> Self {
        WasmPluginIndex {
            by_namespace: by_namespace(configs),
            root: root.to_owned(),
        }
    }

    /// Those for `proxy`'s workload, in the order of their filters.
    #[must_use]
    pub fn select(&self, proxy: &Proxy) -> Vec<&Config<WasmPlugin>> {
        if self.by_namespace.is_empty() {
            return Vec::new();
        }
        let own = (proxy.namespace != self.root).then_some(proxy.namespace.as_str());
        let mut selected: Vec<_> = std::iter::once(self.root.as_str())
            .chain(own)
            .filter_map(|place| self.by_namespace.get(place))
            .flatten()
            .filter(|plugin| {
                let selector = plugin.spec.selector.as_ref();
                let has_target =
                    plugin.spec.target_ref.is_some() || !plugin.spec.target_refs.is_empty();
                !has_target
                    && selector.is_none_or(|selector| proxy.is_selected_by(&selector.match_labels))
            })
            .collect();
        selected.sort_by_key(|plugin| std::cmp::Reverse(plugin.spec.priority.unwrap_or(0)));
        selected
    }

    /// True when there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_namespace.is_empty()
    }
}
