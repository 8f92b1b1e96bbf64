//! The one writer of the configuration, and what is remembered of each resource for dumps and comparisons.

use super::{Kind, RouteSlots, Update};
use crate::{
    invalid::Invalid,
    listener::{ListenerConfig, Listeners},
    server::ServerContext,
    transport::{Secret, SecretSlots},
    upstream::Cluster,
};
use parking_lot::Mutex;
use prost_types::Any;
use proto::envoy::extensions::transport_sockets::tls::v3::Secret as WireSecret;
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::watch;

/// How long a resource is waited for before its holder goes on without it.
pub(crate) const INITIAL_FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// Everything configured.
pub(crate) struct ConfigStore {
    /// The process's shared parts.
    pub(crate) server: Arc<ServerContext>,
    /// Secrets by name.
    pub(crate) secrets: SecretSlots,
    /// Route configurations by name.
    pub(crate) routes: RouteSlots,
    /// Listeners at work.
    pub(crate) listeners: Arc<Listeners>,
    pub(super) state: Mutex<State>,
    wanted: watch::Sender<Wanted>,
}

/// What is remembered.
#[derive(Default)]
pub(crate) struct State {
    /// Clusters by name.
    pub(crate) clusters: BTreeMap<String, Entry<Arc<Cluster>>>,
    /// Listeners by name.
    pub(crate) listeners: BTreeMap<String, Entry<Arc<ListenerConfig>>>,
    /// Endpoints by EDS name.
    pub(crate) assignments: BTreeMap<String, Entry<Any>>,
    /// Version of the last good response by type.
    pub(crate) versions: BTreeMap<Kind, String>,
}

/// One resource.
pub(crate) struct Entry<T> {
    /// Whether it comes from the bootstrap.
    pub(crate) is_static: bool,
    /// Its version.
    pub(crate) version: String,
    /// When it came.
    pub(crate) updated: SystemTime,
    /// The version in force.
    pub(crate) active: Option<T>,
    /// A newer version on its way.
    pub(crate) warming: Option<T>,
    /// The message last accepted.
    pub(crate) any: Any,
    /// Why the newest version was refused.
    pub(crate) error: Option<(String, SystemTime)>,
}

/// Names to ask for, by type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// EDS.
    pub(crate) endpoints: Vec<String>,
    /// RDS.
    pub(crate) routes: Vec<String>,
    /// SDS over ADS.
    pub(crate) secrets: Vec<String>,
}

impl<T> Entry<T> {
    /// A resource that has just come.
    pub(crate) fn new(any: Any, version: &str, is_static: bool) -> Self {
        Self {
            is_static,
            version: version.to_owned(),
            updated: SystemTime::now(),
            active: None,
            warming: None,
            any,
            error: None,
        }
    }
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
            Kind::Cluster => "cluster(s)",
            Kind::Listener => "listener(s)",
            Kind::Endpoint => "endpoint assignment(s)",
            Kind::Route => "route configuration(s)",
            Kind::Secret => "secret(s)",
        };
        Err(format!("Error adding/updating {what} {}", lines.join("\n")))
    }
}

impl ConfigStore {
    /// Nothing configured yet.
    pub(crate) fn new(server: Arc<ServerContext>) -> Arc<Self> {
        let listeners = Arc::new(Listeners::new(server.clone()));
        Arc::new(Self {
            server,
            listeners,
            secrets: SecretSlots::default(),
            routes: RouteSlots::default(),
            state: Mutex::default(),
            wanted: watch::channel(Wanted::default()).0,
        })
    }

    /// Applies what an xDS server sent. The error is the NACK's detail; what was good is in force all the same.
    pub(crate) fn apply(self: &Arc<Self>, kind: Kind, update: Update) -> Result<(), String> {
        let version = update.version.clone();
        let outcome = match kind {
            Kind::Cluster => self.apply_clusters(update),
            Kind::Endpoint => self.apply_endpoints(update),
            Kind::Listener => self.apply_listeners(update),
            Kind::Route => self.apply_routes(update),
            Kind::Secret => self.apply_secrets(update),
        };
        if outcome.is_ok() {
            self.state.lock().versions.insert(kind, version);
        }
        self.refresh_wanted();
        outcome
    }

    /// What is to be asked for, told whenever it changes.
    pub(crate) fn wanted(&self) -> watch::Receiver<Wanted> {
        self.wanted.subscribe()
    }

    /// Looks at what is remembered.
    pub(crate) fn with_state<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.lock())
    }

    pub(super) fn refresh_wanted(&self) {
        let mut wanted = Wanted {
            routes: self.routes.prune(),
            ..Wanted::default()
        };
        let state = self.state.lock();
        for entry in state.clusters.values() {
            for cluster in entry.active.iter().chain(&entry.warming) {
                if let crate::upstream::Discovery::Eds { service_name, .. } =
                    &cluster.config.discovery
                {
                    wanted.endpoints.push(service_name.clone());
                }
            }
        }
        drop(state);
        wanted.endpoints.sort_unstable();
        wanted.endpoints.dedup();
        self.secrets.prune();
        let over_ads = |slot: &Arc<crate::transport::SecretSlot>| {
            slot.source.as_ref().is_some_and(crate::xds::is_ads)
        };
        wanted.secrets = self
            .secrets
            .all()
            .into_iter()
            .filter(over_ads)
            .map(|slot| slot.name.clone())
            .collect();
        self.wanted.send_if_modified(|current| {
            let is_changed = *current != wanted;
            *current = wanted;
            is_changed
        });
    }

    fn apply_secrets(&self, update: Update) -> Result<(), String> {
        let mut failures = Failures::default();
        for resource in update.resources {
            match proto::any::unpack::<WireSecret>(&resource.any) {
                Ok(wire) => {
                    if let Err(error) = self.set_secret(&wire, crate::xds::is_ads) {
                        failures.add(&wire.name, error);
                    }
                }
                Err(error) => failures.add("?", error),
            }
        }
        failures.into_result(Kind::Secret)
    }

    /// Puts a secret into every slot of its name whose source fits.
    pub(crate) fn set_secret(
        &self,
        wire: &WireSecret,
        fits: impl Fn(&proto::envoy::config::core::v3::ConfigSource) -> bool,
    ) -> Result<(), Invalid> {
        let secret = Secret::new(wire)?;
        for slot in self.secrets.all() {
            if slot.name == wire.name && slot.source.as_ref().is_some_and(&fits) {
                slot.store(secret.clone());
            }
        }
        tracing::info!(target: "secret", name = %wire.name, "secret updated");
        Ok(())
    }
}
