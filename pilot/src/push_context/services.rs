//! Services by host, and who sees which.

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::{Registry, Service};

/// All services, oldest first: where two want the same thing, the older has it.
#[derive(Debug, Default)]
pub struct ServiceIndex {
    all: Vec<Arc<Service>>,
    by_host: HashMap<String, Vec<Arc<Service>>>,
}

impl ServiceIndex {
    /// Builds the index.
    #[must_use]
    pub fn new(mut all: Vec<Arc<Service>>) -> Self {
        all.sort_by(|a, b| {
            (a.created, &a.host, &a.namespace).cmp(&(b.created, &b.host, &b.namespace))
        });
        let mut by_host: HashMap<String, Vec<Arc<Service>>> = HashMap::new();
        for service in &all {
            by_host
                .entry(service.host.clone())
                .or_default()
                .push(Arc::clone(service));
        }
        ServiceIndex { all, by_host }
    }

    /// Every service, oldest first.
    #[must_use]
    pub fn all(&self) -> &[Arc<Service>] {
        &self.all
    }

    /// The service that a client in `namespace` means by `host`: its own namespace's, then the platform's, then the oldest.
    #[must_use]
    pub fn lookup(&self, host: &str, namespace: &str) -> Option<&Arc<Service>> {
        let candidates = self.by_host.get(host)?;
        candidates
            .iter()
            .filter(|service| service.visibility.is_visible_to(namespace))
            .min_by_key(|service| {
                (
                    service.namespace != namespace,
                    service.registry != Registry::Kubernetes,
                )
            })
    }

    /// One service a host, as a client in `namespace` sees them, oldest first.
    #[must_use]
    pub fn visible_to(&self, namespace: &str) -> Vec<Arc<Service>> {
        self.all
            .iter()
            .filter(|service| {
                self.lookup(&service.host, namespace)
                    .is_some_and(|chosen| Arc::ptr_eq(chosen, service))
            })
            .cloned()
            .collect()
    }
}
