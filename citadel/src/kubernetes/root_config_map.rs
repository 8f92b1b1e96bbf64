//! The root in the ConfigMap `istio-ca-root-cert` of every namespace, where sidecars mount it: written when a namespace
//! appears, when the root changes, and when somebody else changes or deletes it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt as _};
use proto_component::drain::Drain;
use serde_json::json;
use tokio::sync::Notify;

use crate::ca::CertificateAuthority;

/// The ConfigMap's name.
pub const CONFIG_MAP: &str = "istio-ca-root-cert";
/// Its key.
pub const ROOT_KEY: &str = "root-cert.pem";
const FIELD_MANAGER: &str = "istio-citadel";
const DEADLINE: Duration = Duration::from_secs(10);
/// How long until what failed is tried again.
const RETRY: Duration = Duration::from_secs(5);
const NOT_FOUND: u16 = 404;

/// Keeps the ConfigMaps.
pub struct RootConfigMaps {
    client: Client,
    ca: Arc<dyn CertificateAuthority>,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct Work {
    namespaces: BTreeSet<String>,
    pending: BTreeSet<String>,
}

impl RootConfigMaps {
    /// A keeper that writes the roots of `ca`.
    pub fn new(client: Client, ca: Arc<dyn CertificateAuthority>) -> Self {
        Self {
            client,
            ca,
            changed: Arc::default(),
        }
    }

    /// Tell this when the root has changed.
    pub fn changed(&self) -> Arc<Notify> {
        self.changed.clone()
    }

    /// Keeps them until the drain.
    pub async fn run(&self, drain: &Drain) {
        let namespaces = watcher(
            Api::<Namespace>::all(self.client.clone()),
            watcher::Config::default(),
        );
        let ours = watcher::Config::default().fields(&format!("metadata.name={CONFIG_MAP}"));
        let config_maps = watcher(Api::<ConfigMap>::all(self.client.clone()), ours);
        let mut namespaces = namespaces.default_backoff().boxed();
        let mut config_maps = config_maps.default_backoff().boxed();
        let mut work = Work::default();
        loop {
            tokio::select! {
                () = drain.signaled() => return,
                Some(event) = namespaces.next() => match event {
                    Ok(event) => work.namespace(event),
                    Err(error) => tracing::warn!(target: "ca", %error, "watch namespaces"),
                },
                Some(event) = config_maps.next() => match event {
                    Ok(event) => work.config_map(event, &self.ca.bundle().roots_pem()),
                    Err(error) => tracing::warn!(target: "ca", %error, "watch ConfigMaps"),
                },
                () = self.changed.notified() => work.all(),
                () = tokio::time::sleep(RETRY), if !work.pending.is_empty() => {}
            }
            self.write(&mut work).await;
        }
    }

    /// Writes what is pending; what fails stays pending.
    async fn write(&self, work: &mut Work) {
        let roots = self.ca.bundle().roots_pem();
        for namespace in std::mem::take(&mut work.pending) {
            let config_maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &namespace);
            let object = json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": CONFIG_MAP, "labels": {"istio.io/config": "true"}},
                "data": {ROOT_KEY: &roots},
            });
            let parameters = PatchParams::apply(FIELD_MANAGER).force();
            let patch = Patch::Apply(&object);
            let written = config_maps.patch(CONFIG_MAP, &parameters, &patch);
            let error = match tokio::time::timeout(DEADLINE, written).await {
                Ok(Ok(_)) => continue,
                Ok(Err(kube::Error::Api(status))) if status.code == NOT_FOUND => {
                    // The namespace has gone while nobody told us.
                    work.forget(&namespace);
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the API server does not answer".to_owned(),
            };
            tracing::warn!(target: "ca", namespace, error, "write ConfigMap {CONFIG_MAP}");
            work.pending.insert(namespace);
        }
    }
}

impl Work {
    fn namespace(&mut self, event: Event<Namespace>) {
        match event {
            Event::Apply(namespace) | Event::InitApply(namespace) => {
                let name = namespace.name_any();
                // Nothing can be made in a namespace that is going away.
                if namespace.metadata.deletion_timestamp.is_some() {
                    self.forget(&name);
                } else if self.namespaces.insert(name.clone()) {
                    self.pending.insert(name);
                }
            }
            Event::Delete(namespace) => self.forget(&namespace.name_any()),
            Event::Init | Event::InitDone => {}
        }
    }

    fn config_map(&mut self, event: Event<ConfigMap>, roots: &str) {
        let (config_map, is_good) = match event {
            Event::Apply(config_map) | Event::InitApply(config_map) => {
                let data = config_map.data.as_ref();
                let is_good = data
                    .and_then(|data| data.get(ROOT_KEY))
                    .is_some_and(|text| text == roots);
                (config_map, is_good)
            }
            Event::Delete(config_map) => (config_map, false),
            Event::Init | Event::InitDone => return,
        };
        let namespace = config_map.namespace().unwrap_or_default();
        if !is_good && self.namespaces.contains(&namespace) {
            self.pending.insert(namespace);
        }
    }

    fn all(&mut self) {
        self.pending.clone_from(&self.namespaces);
    }

    fn forget(&mut self, namespace: &str) {
        self.namespaces.remove(namespace);
        self.pending.remove(namespace);
    }
}
