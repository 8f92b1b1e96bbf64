//! Quotas of the 1.4 line by service: the Mixer filter asks for them.

use std::collections::BTreeMap;

use proto::istio::mixer::v1::config::client::QuotaSpec;

use crate::config::store::ConfigStore;

/// The quotas of each service, by host.
#[derive(Debug, Default)]
pub struct QuotaIndex {
    by_host: BTreeMap<String, Vec<QuotaSpec>>,
    everywhere: Vec<QuotaSpec>,
}

impl QuotaIndex {
    /// Builds the index.
    #[must_use]
    pub fn new(store: &ConfigStore, domain: &str) -> Self {
        let mut index = QuotaIndex::default();
        for binding in store.quota_spec_bindings.values() {
            let own = &binding.meta.namespace;
            let or_own = |namespace: &String| {
                if namespace.is_empty() {
                    own.clone()
                } else {
                    namespace.clone()
                }
            };
            let specs: Vec<QuotaSpec> = binding
                .spec
                .quota_specs
                .iter()
                .filter_map(|reference| {
                    let key = format!("{}/{}", or_own(&reference.namespace), reference.name);
                    store
                        .quota_specs
                        .get(&key)
                        .map(|config| config.spec.clone())
                })
                .collect();
            for service in &binding.spec.services {
                if service.service == "*" {
                    index.everywhere.extend(specs.iter().cloned());
                    continue;
                }
                let host = if service.service.is_empty() {
                    let place = if service.domain.is_empty() {
                        format!("svc.{domain}")
                    } else {
                        service.domain.clone()
                    };
                    format!("{}.{}.{place}", service.name, or_own(&service.namespace))
                } else {
                    service.service.clone()
                };
                index
                    .by_host
                    .entry(host)
                    .or_default()
                    .extend(specs.iter().cloned());
            }
        }
        index
    }

    /// The quotas of a service.
    #[must_use]
    pub fn of(&self, host: &str) -> Vec<QuotaSpec> {
        let own = self.by_host.get(host).into_iter().flatten();
        own.chain(&self.everywhere).cloned().collect()
    }
}
