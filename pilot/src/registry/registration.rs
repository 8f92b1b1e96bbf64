//! Machines that register themselves: a proxy whose node names a WorkloadGroup (`AUTO_REGISTER_GROUP`) has a workload entry of
//! that group while it is connected and a grace period longer. It must have proved that it is of the group's namespace, as others
//! will send it their requests. Where the group has a probe, the machine gets none before its agent calls it healthy
//! ([`HEALTH`]). Entries are each replica's own: a machine is known to the replica that it is connected to.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use proto::istio::networking::v1alpha3::{WorkloadEntry, WorkloadGroup};
use proto_mesh::kubernetes::NOT_READY_ENDPOINTS;
use proto_mesh::{Checked, Metadata};
use tokio::sync::Notify;

use crate::config::Synthetic;
use crate::config::store::Collection;
use crate::model::Proxy;

/// Type of the requests in which an agent tells how its workload is: an error means unhealthy.
pub const HEALTH: &str = "type.googleapis.com/istio.v1.HealthInformation";
/// Metadata key: the group that the machine wants to be of.
const GROUP: &str = "AUTO_REGISTER_GROUP";
/// Annotation of an entry: the group that it is of.
const GROUP_ANNOTATION: &str = "istio.io/autoRegistrationGroup";

/// Why a machine is not registered.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Nobody vouches for it.
    #[error(
        "it has not proved that it is of namespace {0:?}: mutual TLS on 15011 or a token on 15012 does"
    )]
    Unauthenticated(String),
}

/// One machine.
#[derive(Clone, Debug)]
struct Machine {
    /// `namespace/name`.
    group: String,
    address: String,
    network: String,
    locality: String,
    labels: BTreeMap<String, String>,
    /// Streams that are open, or have ended within the grace period.
    streams: usize,
    is_healthy: Option<bool>,
}

/// All machines by `namespace/name` of their entry.
#[derive(Debug, Default)]
pub struct Registrations {
    machines: Mutex<BTreeMap<String, Machine>>,
    arrived: Notify,
}

impl Registrations {
    /// Takes a connected machine in; nothing if `proxy` does not want it.
    ///
    /// # Errors
    /// When it must not be.
    pub fn enter(&self, proxy: &Proxy) -> Result<Option<String>, Refused> {
        let Some(group) = proxy.metadata_text(GROUP).filter(|group| !group.is_empty()) else {
            return Ok(None);
        };
        if !proxy.is_authenticated {
            return Err(Refused::Unauthenticated(proxy.namespace.clone()));
        }
        let address = proxy.ip().to_string();
        let network = proxy.metadata_text("NETWORK").unwrap_or_default();
        let parts = [group, &address, network].map(|part| part.replace(':', "-"));
        let name = parts.join("-");
        let key = format!("{}/{}", proxy.namespace, name.trim_end_matches('-'));
        let mut machines = self.machines.lock();
        let machine = machines.entry(key.clone()).or_insert_with(|| Machine {
            group: format!("{}/{group}", proxy.namespace),
            network: network.to_owned(),
            address,
            locality: String::new(),
            labels: BTreeMap::new(),
            streams: 0,
            is_healthy: None,
        });
        machine.streams += 1;
        machine.locality.clone_from(&proxy.locality);
        machine.labels.clone_from(&proxy.labels);
        drop(machines);
        self.arrived.notify_one();
        Ok(Some(key))
    }

    /// A stream of a machine has ended for good.
    pub fn leave(&self, key: &str) {
        let mut machines = self.machines.lock();
        if let Some(machine) = machines.get_mut(key) {
            machine.streams -= 1;
            if machine.streams == 0 {
                machines.remove(key);
            }
        }
        drop(machines);
        self.arrived.notify_one();
    }

    /// What a machine says of its health.
    pub fn report(&self, key: &str, is_healthy: bool) {
        if let Some(machine) = self.machines.lock().get_mut(key) {
            machine.is_healthy = Some(is_healthy);
        }
        self.arrived.notify_one();
    }

    /// Resolves when something has changed since it was awaited last.
    pub async fn changed(&self) {
        self.arrived.notified().await;
    }

    /// The machines' entries, made from their groups; a machine whose group is not there has none.
    #[must_use]
    pub fn entries(
        &self,
        groups: &Collection<Checked<WorkloadGroup>>,
    ) -> Vec<Arc<Synthetic<WorkloadEntry>>> {
        let machines = self.machines.lock();
        let known = machines.iter();
        known
            .filter_map(|(key, machine)| {
                let group = groups.get(&machine.group)?;
                Some(Arc::new(entry(key, machine, group)))
            })
            .collect()
    }
}

fn entry(key: &str, machine: &Machine, group: &Checked<WorkloadGroup>) -> Synthetic<WorkloadEntry> {
    let template = group.spec.template.clone().unwrap_or_default();
    let given = group.spec.metadata.clone().unwrap_or_default();
    // What the machine says of itself goes before what its group says of all.
    let mut labels: BTreeMap<String, String> = given.labels.into_iter().collect();
    labels.extend(template.labels);
    labels.extend(machine.labels.clone());
    let or = |own: &str, of_group: String| match own {
        "" => of_group,
        own => own.to_owned(),
    };
    let spec = WorkloadEntry {
        address: machine.address.clone(),
        network: or(&machine.network, template.network),
        locality: or(&machine.locality, template.locality),
        labels: labels.clone().into_iter().collect(),
        ..template
    };
    let mut annotations: BTreeMap<String, String> = given.annotations.into_iter().collect();
    annotations.insert(GROUP_ANNOTATION.to_owned(), group.meta.name.clone());
    let is_ready = machine.is_healthy.unwrap_or(group.spec.probe.is_none());
    if !is_ready {
        let address = machine.address.clone();
        annotations.insert(NOT_READY_ENDPOINTS.to_owned(), address);
    }
    let (namespace, name) = key.split_once('/').unwrap_or(("", key));
    Synthetic {
        meta: Metadata {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            labels,
            annotations,
            ..Metadata::default()
        },
        spec,
    }
}
