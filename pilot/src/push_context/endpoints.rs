//! Endpoints by service and by address. Replaced alone when only endpoints change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{Endpoint, ServiceKey};

/// The endpoints of one service.
pub type Endpoints = Arc<Vec<Arc<Endpoint>>>;

/// All endpoints.
#[derive(Debug, Default)]
pub struct EndpointIndex {
    by_service: BTreeMap<ServiceKey, Endpoints>,
    by_address: HashMap<IpAddr, Vec<(ServiceKey, Arc<Endpoint>)>>,
}

impl EndpointIndex {
    /// Builds the index.
    #[must_use]
    pub fn new(by_service: BTreeMap<ServiceKey, Endpoints>) -> Self {
        let mut by_address: HashMap<IpAddr, Vec<(ServiceKey, Arc<Endpoint>)>> = HashMap::new();
        for (key, endpoints) in &by_service {
            for endpoint in endpoints.iter() {
                if let Ok(address) = endpoint.address.parse() {
                    by_address
                        .entry(address)
                        .or_default()
                        .push((key.clone(), Arc::clone(endpoint)));
                }
            }
        }
        EndpointIndex {
            by_service,
            by_address,
        }
    }

    /// A service's endpoints.
    #[must_use]
    pub fn of(&self, key: &ServiceKey) -> &[Arc<Endpoint>] {
        self.by_service
            .get(key)
            .map_or(&[], |endpoints| endpoints.as_slice())
    }

    /// The services that have an endpoint at `address`, by service.
    #[must_use]
    pub fn at(&self, address: &IpAddr) -> &[(ServiceKey, Arc<Endpoint>)] {
        self.by_address.get(address).map_or(&[], Vec::as_slice)
    }

    /// The identities of a service's endpoints, sorted.
    #[must_use]
    pub fn identities(&self, key: &ServiceKey) -> BTreeSet<&str> {
        self.of(key)
            .iter()
            .map(|endpoint| endpoint.identity.as_str())
            .filter(|identity| !identity.is_empty())
            .collect()
    }

    /// Every service with its endpoints.
    pub fn iter(&self) -> impl Iterator<Item = (&ServiceKey, &Endpoints)> {
        self.by_service.iter()
    }
}
