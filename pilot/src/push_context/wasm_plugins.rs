//! WasmPlugins by namespace: for a workload the root namespace's and its own, larger priorities first.

use std::collections::HashMap;

use proto::istio::extensions::v1alpha1::{PluginType, WasmPlugin};

use super::attachment;
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
            .filter(|plugin| attachment::is_for(proxy, plugin))
            .collect();
        selected.sort_by_key(|plugin| std::cmp::Reverse(plugin.spec.priority.unwrap_or(0)));
        selected
    }

    /// Plugins of which something is not followed: which, and what.
    pub fn problems(&self) -> impl Iterator<Item = (String, &'static str)> {
        let all = self.by_namespace.values().flatten();
        all.filter_map(|plugin| {
            let reason = if plugin.spec.r#type() == PluginType::Network {
                "plugins of connections (type NETWORK) are not made: it is left out"
            } else if !plugin.spec.verification_key.is_empty() {
                "verificationKey is read by nobody: what is fetched is checked by sha256 only"
            } else {
                return None;
            };
            Some((plugin.meta.full_name(), reason))
        })
    }

    /// True when there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_namespace.is_empty()
    }
}
