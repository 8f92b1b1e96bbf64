//! The one writer of the configuration, and what is remembered of each resource.

use super::{
    Entry, ExtensionSlots, Key, Kind, RouteSlots, Update,
    known_clusters::KnownClusters,
    wanted::{Wants, source_of},
};
use crate::{
    invalid::Invalid,
    listener::{ListenerConfig, Listeners},
    server::ServerContext,
    transport::{Secret, SecretSlots},
    xds::{Source, XdsStats},
};
use parking_lot::Mutex;
use proto::envoy::{
    config::core::v3::TypedExtensionConfig,
    extensions::transport_sockets::tls::v3::Secret as WireSecret,
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

/// Everything configured.
pub(crate) struct ConfigStore {
    /// The process's shared parts.
    pub(crate) server: Arc<ServerContext>,
    /// Secrets by name.
    pub(crate) secrets: SecretSlots,
    /// Route configurations by name.
    pub(crate) routes: Arc<RouteSlots>,
    /// Extensions by name.
    pub(crate) extensions: Arc<ExtensionSlots>,
    /// Listeners at work.
    pub(crate) listeners: Arc<Listeners>,
    /// What subscriptions count.
    pub(crate) xds_stats: XdsStats,
    pub(super) state: Mutex<State>,
    pub(super) wants: Wants,
    /// Told when a warming cluster may have become warm.
    pub(super) warmed: Arc<Notify>,
    answers: watch::Sender<[bool; Kind::ALL.len()]>,
}

/// What is remembered.
#[derive(Default)]
pub(crate) struct State {
    /// Clusters by name.
    pub(crate) clusters: KnownClusters,
    /// Clusters that wait for their hosts or secrets, and until when.
    pub(super) warming: HashMap<Arc<str>, Instant>,
    /// Clusters that are there only because requests asked for them.
    pub(super) on_demand: HashSet<Arc<str>>,
    /// Listeners by name.
    pub(crate) listeners: BTreeMap<String, Entry<Arc<ListenerConfig>>>,
    /// Endpoints by source and EDS name.
    pub(crate) assignments: BTreeMap<Source, BTreeMap<Arc<str>, Entry<()>>>,
    /// Version of the last good response by type.
    pub(crate) versions: BTreeMap<Kind, String>,
}

/// Failures of an update, by resource name.
#[derive(Debug, Default)]
pub(crate) struct Failures(Vec<(String, String)>);

impl Failures {
    /// Notes one.
    pub(crate) fn add(&mut self, name: &str, error: impl std::fmt::Display) {
        self.0.push((name.to_owned(), error.to_string()));
    }

    /// The NACK's detail, or nothing when all was well.
    pub(crate) fn into_result(self, kind: Kind) -> Result<(), String> {
        if self.0.is_empty() {
            return Ok(());
        }
        let lines: Vec<String> = self
            .0
            .into_iter()
            .map(|(name, error)| format!("{name}: {error}"))
            .collect();
        let what = match kind {
            Kind::Cluster | Kind::OnDemandCluster => "cluster(s)",
            Kind::Listener => "listener(s)",
            Kind::Endpoint => "endpoint assignment(s)",
            Kind::Route => "route configuration(s)",
            Kind::Secret => "secret(s)",
            Kind::Runtime => "runtime layer(s)",
            Kind::Extension => "extension(s)",
            Kind::VirtualHost => "virtual host(s)",
        };
        Err(format!("Error adding/updating {what} {}", lines.join("\n")))
    }
}

impl ConfigStore {
    /// Nothing configured yet.
    pub(crate) fn new(server: Arc<ServerContext>) -> Arc<Self> {
        let listeners = Arc::new(Listeners::new(server.clone()));
        Arc::new(Self {
            listeners,
            xds_stats: XdsStats::new(&server.stats),
            secrets: SecretSlots::default(),
            routes: Arc::default(),
            extensions: Arc::default(),
            state: Mutex::default(),
            wants: Wants::default(),
            warmed: Arc::default(),
            answers: watch::channel([false; Kind::ALL.len()]).0,
            server,
        })
    }

    /// Applies what an xDS server sent. The error is the NACK's detail; what was good is in force all the same.
    pub(crate) fn apply(self: &Arc<Self>, key: &Key, update: Update) -> Result<(), String> {
        let version = update.version.clone();
        let kind = key.kind;
        let outcome = match kind {
            Kind::Cluster | Kind::OnDemandCluster => self.apply_clusters(kind, &update),
            Kind::Endpoint => self.apply_endpoints(&key.source, update),
            Kind::Listener => self.apply_listeners(update),
            Kind::Route => self.apply_routes(&key.source, update),
            Kind::VirtualHost => self.apply_virtual_hosts(key, update),
            Kind::Secret => self.apply_secrets(key, update),
            Kind::Runtime => self.apply_runtime(update),
            Kind::Extension => self.apply_extensions(&key.source, update),
        };
        if outcome.is_ok() {
            self.state.lock().versions.insert(kind, version);
        }
        // Endpoints, routes and values lead to nothing further.
        if matches!(
            kind,
            Kind::Cluster | Kind::OnDemandCluster | Kind::Listener | Kind::Extension
        ) {
            self.refresh_wanted();
        }
        self.note_answer(kind);
        outcome
    }

    /// The first answer about `kind` has come.
    fn note_answer(&self, kind: Kind) {
        self.answers
            .send_if_modified(|answers| !std::mem::replace(&mut answers[kind.index()], true));
    }

    /// Waits for the first answer about `kind`, good or bad.
    pub(crate) async fn answered(&self, kind: Kind) {
        let mut answers = self.answers.subscribe();
        // The sender lives as long as we do.
        let _ = answers.wait_for(|answers| answers[kind.index()]).await;
    }

    /// Looks at what is remembered.
    pub(crate) fn with_state<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.lock())
    }

    fn apply_runtime(&self, update: Update) -> Result<(), String> {
        let mut failures = Failures::default();
        for resource in update.resources {
            match proto::any::unpack::<proto::envoy::service::runtime::v3::Runtime>(&resource.any) {
                Ok(wire) => self
                    .server
                    .runtime
                    .set_discovered(&wire.name, &wire.layer.unwrap_or_default()),
                Err(error) => failures.add("?", error),
            }
        }
        for name in update.removed {
            self.server
                .runtime
                .set_discovered(&name, &prost_types::Struct::default());
        }
        failures.into_result(Kind::Runtime)
    }

    fn apply_extensions(&self, from: &Source, update: Update) -> Result<(), String> {
        let mut failures = Failures::default();
        for resource in update.resources {
            let wire = match proto::any::unpack::<TypedExtensionConfig>(&resource.any) {
                Ok(wire) => wire,
                Err(error) => {
                    failures.add("?", error);
                    continue;
                }
            };
            let name = wire.name.clone();
            let Some(slot) = self.extensions.get(from, &name) else {
                continue;
            };
            if let Err(error) = slot.store(wire, &resource.any, &resource.version) {
                tracing::warn!(target: "config", extension = %name, %error, "extension refused");
                failures.add(&name, error);
            }
        }
        for name in update.removed {
            if let Some(slot) = self.extensions.get(from, &name) {
                slot.remove();
            }
        }
        failures.into_result(Kind::Extension)
    }

    fn apply_secrets(&self, key: &Key, update: Update) -> Result<(), String> {
        let mut failures = Failures::default();
        for resource in update.resources {
            match proto::any::unpack::<WireSecret>(&resource.any) {
                // A server may send more than was asked for on this stream.
                Ok(wire) if key.single.as_deref().is_some_and(|name| name != wire.name) => {}
                Ok(wire) => {
                    if let Err(error) = self.set_secret(&wire, &key.source, &resource.version) {
                        failures.add(&wire.name, error);
                    }
                }
                Err(error) => failures.add("?", error),
            }
        }
        self.warmed.notify_one();
        failures.into_result(Kind::Secret)
    }

    /// Puts a secret into every slot of its name whose source fits.
    fn set_secret(&self, wire: &WireSecret, from: &Source, version: &str) -> Result<(), Invalid> {
        let secret = Secret::new(wire)?;
        for slot in self.secrets.all() {
            if slot.name == wire.name && source_of(&slot).as_ref() == Some(from) {
                slot.follow_files(wire);
                slot.store(secret.clone(), version.into());
            }
        }
        tracing::info!(target: "secret", name = %wire.name, "secret updated");
        Ok(())
    }
}
