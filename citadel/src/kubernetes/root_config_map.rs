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
use proto_component::kubernetes::WatchBackoff;
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

/// What is there, and what follows from it.
#[derive(Debug, Default)]
struct Work {
    namespaces: BTreeSet<String>,
    /// Those whose ConfigMap is as it must be. Nothing is sure before there is a whole list of them.
    good: Option<BTreeSet<String>>,
    /// A list that is being read.
    listed: BTreeSet<String>,
    /// Something was tried in vain.
    has_failed: bool,
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
        let mut namespaces = namespaces.backoff(WatchBackoff::default()).boxed();
        let mut config_maps = config_maps.backoff(WatchBackoff::default()).boxed();
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
                () = self.changed.notified() => work.none_is_good(),
                () = tokio::time::sleep(RETRY), if work.has_failed => {}
            }
            self.write(&mut work).await;
        }
    }

    /// Writes what is not as it must be.
    async fn write(&self, work: &mut Work) {
        let roots = self.ca.bundle().roots_pem();
        work.has_failed = false;
        for namespace in work.wanted() {
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
                Ok(Ok(_)) => {
                    work.written(namespace);
                    continue;
                }
                Ok(Err(kube::Error::Api(status))) if status.code == NOT_FOUND => {
                    // The namespace has gone while nobody told us.
                    work.forget(&namespace);
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the API server does not answer".to_owned(),
            };
            tracing::warn!(target: "ca", namespace, error, "write ConfigMap {CONFIG_MAP}");
            work.has_failed = true;
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
                } else {
                    self.namespaces.insert(name);
                }
            }
            Event::Delete(namespace) => self.forget(&namespace.name_any()),
            Event::Init | Event::InitDone => {}
        }
    }

    fn config_map(&mut self, event: Event<ConfigMap>, roots: &str) {
        let is_good = |config_map: &ConfigMap| {
            let text = config_map.data.as_ref().and_then(|data| data.get(ROOT_KEY));
            text.is_some_and(|text| text == roots)
        };
        let namespace = |config_map: ConfigMap| config_map.namespace().unwrap_or_default();
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(config_map) => {
                if is_good(&config_map) {
                    self.listed.insert(namespace(config_map));
                }
            }
            // Whoever was deleted before the list was made is not in it, and nobody tells us.
            Event::InitDone => self.good = Some(std::mem::take(&mut self.listed)),
            Event::Apply(config_map) if is_good(&config_map) => self.written(namespace(config_map)),
            Event::Apply(config_map) | Event::Delete(config_map) => {
                if let Some(good) = &mut self.good {
                    good.remove(&namespace(config_map));
                }
            }
        }
    }

    /// Where the ConfigMap is to be written, once it is known where there is a good one.
    fn wanted(&self) -> Vec<String> {
        let good = self.good.iter();
        good.flat_map(|good| self.namespaces.difference(good).cloned())
            .collect()
    }

    fn written(&mut self, namespace: String) {
        if let Some(good) = &mut self.good {
            good.insert(namespace);
        }
    }

    fn none_is_good(&mut self) {
        self.listed.clear();
        if let Some(good) = &mut self.good {
            good.clear();
        }
    }

    fn forget(&mut self, namespace: &str) {
        self.namespaces.remove(namespace);
    }
}

#[cfg(test)]
mod tests {
    use kube::api::ObjectMeta;

    use super::*;

    fn namespace(name: &str) -> Namespace {
        Namespace {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        }
    }

    fn config_map(namespace: &str, root: &str) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(CONFIG_MAP.to_owned()),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            data: Some([(ROOT_KEY.to_owned(), root.to_owned())].into()),
            ..ConfigMap::default()
        }
    }

    /// Namespaces `a` and `b`, whose ConfigMaps are as `listed`.
    fn listed(listed: Vec<ConfigMap>) -> Work {
        let mut work = Work::default();
        for name in ["a", "b"] {
            work.namespace(Event::InitApply(namespace(name)));
        }
        assert!(work.wanted().is_empty(), "it is not known what is there");
        work.config_map(Event::Init, "root");
        for config_map in listed {
            work.config_map(Event::InitApply(config_map), "root");
        }
        work.config_map(Event::InitDone, "root");
        work
    }

    #[test]
    fn what_a_list_does_not_have_is_written_and_what_is_good_is_left_alone() {
        assert_eq!(listed(Vec::new()).wanted(), ["a", "b"]);
        let work = listed(vec![config_map("a", "root"), config_map("b", "old root")]);
        assert_eq!(work.wanted(), ["b"]);
    }

    #[test]
    fn what_was_deleted_while_nobody_watched_is_written_anew() {
        let mut work = listed(Vec::new());
        for name in ["a", "b"] {
            work.written(name.to_owned());
        }
        assert!(work.wanted().is_empty());
        // The watch is begun anew, with a list: what is known holds until it is whole.
        work.config_map(Event::Init, "root");
        work.config_map(Event::InitApply(config_map("b", "root")), "root");
        assert!(work.wanted().is_empty());
        work.config_map(Event::InitDone, "root");
        assert_eq!(work.wanted(), ["a"]);
    }

    #[test]
    fn what_is_spoilt_deleted_or_old_is_written_anew_as_long_as_there_is_the_namespace() {
        let mut work = listed(vec![config_map("a", "root"), config_map("b", "root")]);
        work.config_map(Event::Apply(config_map("a", "spoilt")), "root");
        assert_eq!(work.wanted(), ["a"]);
        work.config_map(Event::Apply(config_map("a", "root")), "root");
        work.config_map(Event::Delete(config_map("b", "root")), "root");
        assert_eq!(work.wanted(), ["b"]);
        work.none_is_good();
        assert_eq!(work.wanted(), ["a", "b"]);
        work.namespace(Event::Delete(namespace("a")));
        assert_eq!(work.wanted(), ["b"]);
        let mut going = namespace("b");
        going.metadata.deletion_timestamp =
            Some(serde_json::from_value(json!("2030-01-01T00:00:00Z")).unwrap());
        work.namespace(Event::Apply(going));
        assert!(work.wanted().is_empty());
    }
}
