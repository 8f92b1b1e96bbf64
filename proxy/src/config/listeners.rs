//! Listeners and their routes: checked, warmed, put in force.

use super::{
    ConfigStore, Entry, ExtensionSlot, Kind, RouteSlot, Update, UsedSlots, store::Failures,
};
use crate::{
    invalid::Invalid,
    listener::{ListenerConfig, ListenerContext},
    transport::SecretSlot,
    xds::{INITIAL_FETCH_TIMEOUT, Source, fetch_timeout},
};
use prost::Message as _;
use prost_types::Any;
use proto::envoy::config::{listener::v3::Listener as Wire, route::v3::RouteConfiguration};
use proto_component::task;
use std::{collections::HashSet, sync::Arc, time::Duration};

impl ConfigStore {
    /// Builds a listener of the bootstrap; it serves once it is warm.
    pub(crate) fn add_static_listener(self: &Arc<Self>, wire: Wire) -> Result<(), String> {
        let any = proto::any::pack(&wire);
        self.apply_listener(wire, &any, "", true)
    }

    /// Checks a listener of the bootstrap without putting it in force.
    pub(crate) fn check_listener(&self, wire: Wire) -> Result<(), Invalid> {
        let used = UsedSlots::default();
        let context = ListenerContext {
            server: &self.server,
            routes: &self.routes,
            extensions: &self.extensions,
            used: &used,
            secrets: &self.secrets,
        };
        ListenerConfig::new(wire, None, &context).map(|_| ())
    }

    pub(super) fn apply_listeners(self: &Arc<Self>, update: Update) -> Result<(), String> {
        let mut failures = Failures::default();
        let mut seen = HashSet::new();
        let mut wires = Vec::new();
        for resource in update.resources {
            match proto::any::unpack::<Wire>(&resource.any) {
                Ok(wire) if !seen.insert(wire.name.clone()) => {
                    failures.add(&wire.name, "duplicate listener");
                }
                Ok(wire) => wires.push((wire, resource)),
                Err(error) => failures.add("?", error),
            }
        }
        // What goes, goes first: a new listener may want the address of an old one.
        let gone: Vec<String> = {
            let state = self.state.lock();
            let dynamic = state
                .listeners
                .iter()
                .filter(|(_, entry)| !entry.is_static)
                .map(|(name, _)| name);
            dynamic
                .filter(|name| {
                    update.removed.contains(name) || (update.is_full && !seen.contains(*name))
                })
                .cloned()
                .collect()
        };
        for name in &gone {
            self.state.lock().listeners.remove(name);
            self.listeners.remove(name);
        }
        for (wire, resource) in wires {
            let name = wire.name.clone();
            if let Err(error) = self.apply_listener(wire, &resource.any, &resource.version, false) {
                tracing::warn!(target: "config", listener = %name, %error, "listener refused");
                if let Some(entry) = self.state.lock().listeners.get_mut(&name) {
                    entry.refuse(&error);
                }
                failures.add(&name, error);
            }
        }
        failures.into_result(Kind::Listener)
    }

    fn apply_listener(
        self: &Arc<Self>,
        wire: Wire,
        any: &Any,
        version: &str,
        is_static: bool,
    ) -> Result<(), String> {
        let before = {
            let mut state = self.state.lock();
            match state.listeners.get_mut(&wire.name) {
                Some(entry) if entry.is_static != is_static => {
                    return Err("a static listener of that name exists".into());
                }
                Some(entry) => {
                    let is_same = entry.raw.is(any)
                        || entry.newest().is_some_and(|config| config.wire == wire);
                    if is_same && entry.newest().is_some() {
                        entry.confirm(version);
                        return Ok(());
                    }
                    entry.active.clone()
                }
                None => None,
            }
        };
        let used = UsedSlots::default();
        let context = ListenerContext {
            server: &self.server,
            routes: &self.routes,
            extensions: &self.extensions,
            used: &used,
            secrets: &self.secrets,
        };
        let config = ListenerConfig::new(wire, before.as_deref(), &context)
            .map_err(|error| error.to_string())?;
        let config = Arc::new(config);
        let slots = config.slots();
        let (routes, extensions) = (used.routes.into_inner(), used.extensions.into_inner());
        {
            let mut state = self.state.lock();
            let old = state.listeners.remove(&*config.name);
            let mut entry = Entry::new(any, version, is_static);
            entry.active = old.and_then(|old| old.active);
            entry.warming = Some(config.clone());
            state.listeners.insert(config.name.to_string(), entry);
        }
        if is_warm(&slots, &routes, &extensions) {
            return self.activate_listener(&config);
        }
        self.listeners.stats.total_listeners_warming.inc();
        let store = self.clone();
        task::spawn("warm-listener", async move {
            if !warm(&slots, &routes, &extensions).await {
                tracing::warn!(target: "config", listener = %config.name, "initial fetch timed out");
            }
            store.listeners.stats.total_listeners_warming.dec();
            if let Err(error) = store.activate_listener(&config) {
                tracing::warn!(target: "config", listener = %config.name, %error, "listener not in force");
            }
        });
        Ok(())
    }

    fn activate_listener(&self, config: &Arc<ListenerConfig>) -> Result<(), String> {
        let mut state = self.state.lock();
        let Some(entry) = state.listeners.get_mut(&*config.name) else {
            return Ok(());
        };
        if !entry
            .warming
            .as_ref()
            .is_some_and(|warming| Arc::ptr_eq(warming, config))
        {
            // A newer version has taken its place meanwhile.
            return Ok(());
        }
        let outcome = self.listeners.set(config.clone());
        entry.warming = None;
        match outcome {
            Ok(()) => {
                entry.active = Some(config.clone());
                Ok(())
            }
            Err(error) => {
                let text = error.to_string();
                entry.refuse(&text);
                if entry.active.is_none() {
                    state.listeners.remove(&*config.name);
                }
                Err(text)
            }
        }
    }

    pub(super) fn apply_routes(&self, from: &Source, update: Update) -> Result<(), String> {
        let mut failures = Failures::default();
        for resource in update.resources {
            // Told apart before they are read whole: a large table that has not changed costs a comparison.
            let Some(slot) = self.slot_of(from, &resource) else {
                continue;
            };
            if slot.confirm(&resource.any, &resource.version) {
                continue;
            }
            let wire = match proto::any::unpack::<RouteConfiguration>(&resource.any) {
                Ok(wire) => wire,
                Err(error) => {
                    failures.add("?", error);
                    continue;
                }
            };
            let name = wire.name.clone();
            let demand = &self.server.demand;
            if let Err(error) = slot.store(wire, &resource.any, &resource.version, demand) {
                tracing::warn!(target: "config", route = %name, %error, "route configuration refused");
                failures.add(&name, error);
            }
        }
        for name in update.removed {
            // QUIRK: as in Envoy a route configuration stays in force when it is taken away.
            if let Some(slot) = self.routes.get(from, &name) {
                slot.set_missing();
            }
        }
        self.refresh_virtual_hosts();
        failures.into_result(Kind::Route)
    }

    /// Who wants the route configuration in `resource`, if anybody does.
    fn slot_of(&self, from: &Source, resource: &super::Resource) -> Option<Arc<RouteSlot>> {
        if !resource.name.is_empty() {
            return self.routes.get(from, &resource.name);
        }
        let named = Named::decode(resource.any.value.as_slice()).ok()?;
        self.routes.get(from, &named.name)
    }

    /// Waits until no listener is warming any more.
    pub(crate) async fn listeners_ready(&self) {
        loop {
            let is_warming = self.with_state(|state| {
                state
                    .listeners
                    .values()
                    .any(|entry| entry.warming.is_some())
            });
            if !is_warming {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}

fn is_warm(
    slots: &[Arc<SecretSlot>],
    routes: &[Arc<RouteSlot>],
    extensions: &[Arc<ExtensionSlot>],
) -> bool {
    slots.iter().all(|slot| slot.load().is_some())
        && routes.iter().all(|slot| slot.is_ready())
        && extensions.iter().all(|slot| slot.is_ready())
}

/// Waits for each, as long as its source says; `false` if one did not come in time.
async fn warm(
    slots: &[Arc<SecretSlot>],
    routes: &[Arc<RouteSlot>],
    extensions: &[Arc<ExtensionSlot>],
) -> bool {
    let secrets = slots.iter().map(|slot| {
        let patience = slot
            .source
            .as_ref()
            .map_or(INITIAL_FETCH_TIMEOUT, fetch_timeout);
        in_time(patience, slot.ready())
    });
    let routes = routes.iter().map(|slot| async {
        in_time(slot.fetch_timeout(), slot.ready()).await && slot.has_hosts().await
    });
    let extensions = extensions
        .iter()
        .map(|slot| in_time(slot.fetch_timeout(), slot.ready()));
    let (secrets, routes, extensions) = futures::future::join3(
        futures::future::join_all(secrets),
        futures::future::join_all(routes),
        futures::future::join_all(extensions),
    )
    .await;
    let mut all = secrets.into_iter().chain(routes).chain(extensions);
    all.all(|is_there| is_there)
}

async fn in_time(patience: Duration, ready: impl Future<Output = ()>) -> bool {
    tokio::time::timeout(patience, ready).await.is_ok()
}

/// The one field by which route configurations are told apart.
#[derive(Clone, PartialEq, prost::Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}
