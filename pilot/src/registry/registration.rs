//! Machines that register themselves: a proxy whose node names a WorkloadGroup (`AUTO_REGISTER_GROUP`) has a workload entry of
//! that group while it is connected and a grace period longer. It must have proved that it is of the group's namespace, as others
//! will send it their requests. Where the group has a probe, the machine gets none before its agent calls it healthy
//! ([`HEALTH`]).
//!
//! A machine is known to the replica that it is connected to. In a cluster it is written down there ([`cluster`]), and so known to
//! the other replicas.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use proto::istio::networking::v1alpha3::{WorkloadEntry, WorkloadGroup};
use proto_mesh::kubernetes::NOT_READY_ENDPOINTS;
use proto_mesh::{Checked, Metadata};
use tokio::sync::Notify;

pub mod cluster;

use crate::config::Synthetic;
use crate::config::store::Collection;
use crate::model::Proxy;

/// Type of the requests in which an agent tells how its workload is: an error means unhealthy.
pub const HEALTH: &str = "type.googleapis.com/istio.v1.HealthInformation";
/// Metadata key: the group that the machine wants to be of.
const GROUP: &str = "AUTO_REGISTER_GROUP";
/// Annotation of an entry: the group that it is of.
pub(super) const GROUP_ANNOTATION: &str = "istio.io/autoRegistrationGroup";
/// Annotation of an entry: the machine serves only while it is called healthy.
pub(super) const HEALTH_CHECKED: &str = "proxy.istio.io/health-checks-enabled";
/// Longest name of an object.
const NAME: usize = 253;

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
    /// Those that are open.
    open: usize,
    /// When the last stream was opened.
    connected: Timestamp,
    /// When the last open one ended.
    disconnected: Timestamp,
    health: Option<Health>,
}

/// What an agent says of its workload.
#[derive(Clone, Debug, PartialEq)]
struct Health {
    /// What is wrong, if anything is.
    error: Option<String>,
    /// When it was said.
    at: Timestamp,
}

/// All machines by `namespace/name` of their entry.
#[derive(Debug, Default)]
pub struct Registrations {
    machines: Mutex<BTreeMap<String, Machine>>,
    /// What other replicas have written down of theirs.
    others: Mutex<BTreeMap<String, Arc<Synthetic<WorkloadEntry>>>>,
    arrived: Notify,
    /// The same, for whoever writes it down.
    to_write: Notify,
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
        let name = name.trim_end_matches('-');
        // The end tells machines apart.
        let name = name.get(name.len().saturating_sub(NAME)..).unwrap_or(name);
        let key = format!("{}/{name}", proxy.namespace);
        let now = Timestamp::now();
        let mut machines = self.machines.lock();
        let machine = machines.entry(key.clone()).or_insert_with(|| Machine {
            group: format!("{}/{group}", proxy.namespace),
            network: network.to_owned(),
            address,
            locality: String::new(),
            labels: BTreeMap::new(),
            streams: 0,
            open: 0,
            connected: now,
            disconnected: now,
            health: None,
        });
        machine.streams += 1;
        machine.open += 1;
        machine.connected = now;
        machine.locality.clone_from(&proxy.locality);
        machine.labels.clone_from(&proxy.labels);
        drop(machines);
        self.tell();
        Ok(Some(key))
    }

    /// A stream of a machine has ended; perhaps another one follows.
    pub fn disconnect(&self, key: &str) {
        if let Some(machine) = self.machines.lock().get_mut(key) {
            machine.open = machine.open.saturating_sub(1);
            machine.disconnected = Timestamp::now();
        }
        self.to_write.notify_one();
    }

    /// Groups are others than before, and so may be the entries.
    pub fn groups_changed(&self) {
        self.to_write.notify_one();
    }

    /// Every stream ends.
    fn disconnect_all(&self) {
        for machine in self.machines.lock().values_mut() {
            machine.open = 0;
            machine.disconnected = Timestamp::now();
        }
    }

    /// Takes in what the cluster holds of machines.
    fn tell_others(&self, entries: BTreeMap<String, Arc<Synthetic<WorkloadEntry>>>) {
        let mut others = self.others.lock();
        if *others != entries {
            *others = entries;
            self.arrived.notify_one();
        }
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
        self.tell();
    }

    /// What a machine says of its health: what is wrong, if anything is.
    pub fn report(&self, key: &str, error: Option<String>) {
        if let Some(machine) = self.machines.lock().get_mut(key)
            && machine
                .health
                .as_ref()
                .is_none_or(|health| health.error != error)
        {
            let at = Timestamp::now();
            machine.health = Some(Health { error, at });
        }
        self.tell();
    }

    fn tell(&self) {
        self.arrived.notify_one();
        self.to_write.notify_one();
    }

    /// Resolves when something has changed since it was awaited last.
    pub async fn changed(&self) {
        self.arrived.notified().await;
    }

    /// The machines' entries, made from their groups, and those of other replicas' machines; a machine whose group is not there has
    /// none.
    #[must_use]
    pub fn entries(
        &self,
        groups: &Collection<Checked<WorkloadGroup>>,
    ) -> Vec<Arc<Synthetic<WorkloadEntry>>> {
        let machines = self.machines.lock();
        let others = self.others.lock();
        let others = others
            .iter()
            .filter(|(key, _)| !machines.contains_key(*key));
        let own = machines.iter().filter_map(|(key, machine)| {
            let group = groups.get(&machine.group)?;
            Some(Arc::new(entry(key, machine, group)))
        });
        own.chain(others.map(|(_, entry)| Arc::clone(entry)))
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
    let is_checked = group.spec.probe.is_some();
    if is_checked {
        annotations.insert(HEALTH_CHECKED.to_owned(), "true".to_owned());
    }
    let is_ready = match &machine.health {
        Some(health) => health.error.is_none(),
        None => !is_checked,
    };
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
