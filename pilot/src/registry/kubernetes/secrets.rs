//! The Secrets of the namespaces in which there are gateways, and of no others: a watcher for each of these namespaces.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use proto_component::drain::Drain;
use proto_component::kubernetes::{self, Change};
use proto_component::task;
use tokio::sync::{mpsc, watch};

use crate::config::Update;
use crate::model::Credential;

/// Namespaces that are followed at most.
const NAMESPACES: usize = 256;
/// What is no gateway's: Helm's own state, tokens.
const OTHERS: &str = "type!=helm.sh/release.v1,type!=kubernetes.io/service-account-token,type!=kubernetes.io/dockerconfigjson";

/// Follows the Secrets of every namespace in `wanted`, until the drain.
pub fn start(
    client: Client,
    mut wanted: watch::Receiver<BTreeSet<String>>,
    updates: mpsc::Sender<Update>,
    drain: Drain,
) {
    task::spawn("secrets", async move {
        let mut followed: BTreeSet<String> = BTreeSet::new();
        loop {
            let new: Vec<String> = wanted
                .borrow_and_update()
                .difference(&followed)
                .take(NAMESPACES.saturating_sub(followed.len()))
                .cloned()
                .collect();
            for namespace in new {
                tracing::info!(target: "kubernetes", namespace, "following the Secrets of a gateway's namespace");
                let api = Api::namespaced(client.clone(), &namespace);
                followed.insert(namespace.clone());
                let (updates, drain) = (updates.clone(), drain.clone());
                task::spawn("secrets-watcher", async move {
                    tokio::select! {
                        () = follow(api, namespace, updates) => {}
                        () = drain.signaled() => {}
                    }
                });
            }
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() { return },
                () = drain.signaled() => return,
            }
        }
    });
}

/// Tells what the Secrets of one namespace hold, whenever it is different.
async fn follow(api: Api<Secret>, namespace: String, updates: mpsc::Sender<Update>) {
    let mut changes = std::pin::pin!(kubernetes::watch_selected(api, OTHERS, ""));
    let mut known: BTreeMap<String, Arc<Credential>> = BTreeMap::new();
    let mut listing: Option<BTreeSet<String>> = None;
    let mut failure = String::new();
    while let Some(change) = changes.next().await {
        let is_told = match change {
            Change::Listing => {
                listing = Some(BTreeSet::new());
                false
            }
            Change::Object(secret) => {
                let name = secret.metadata.name.clone().unwrap_or_default();
                if let Some(listing) = &mut listing {
                    listing.insert(name.clone());
                }
                set(&mut known, name, credential(&secret)) && listing.is_none()
            }
            Change::Gone(secret) => {
                let name = secret.metadata.name.unwrap_or_default();
                set(&mut known, name, None)
            }
            Change::Listed => {
                let listed = listing.take().unwrap_or_default();
                known.retain(|name, _| listed.contains(name));
                failure.clear();
                true
            }
            Change::Absent => continue,
            Change::Failed(reason) | Change::Denied(reason) => {
                // Once for each reason, not for each attempt.
                if reason != failure {
                    tracing::warn!(target: "kubernetes", namespace, error = reason, "Secrets cannot be read; what is known holds");
                    failure = reason;
                }
                false
            }
        };
        if is_told {
            let update = Update::Credentials(namespace.clone(), Arc::new(known.clone()));
            if updates.send(update).await.is_err() {
                return;
            }
        }
    }
}

/// True when something is different.
fn set(
    known: &mut BTreeMap<String, Arc<Credential>>,
    name: String,
    credential: Option<Credential>,
) -> bool {
    match credential {
        Some(credential) if known.get(&name).is_some_and(|old| **old == credential) => false,
        Some(credential) => {
            known.insert(name, Arc::new(credential));
            true
        }
        None => known.remove(&name).is_some(),
    }
}

fn credential(secret: &Secret) -> Option<Credential> {
    let data = secret.data.as_ref()?;
    Credential::of(|key| data.get(key).map(|bytes| bytes.0.as_slice()))
}
