//! Revocations in the ConfigMap `istio-ca-revocations` of Citadel's own namespace: there they outlive the pod, and all replicas
//! have the same.
//!
//! Who is barred stands in the ConfigMap, and every replica follows it; what is revoked is the union of what each has. A replica
//! that learns of a barred identity adds the certificates that it has issued itself: each has a ledger of its own. What an
//! operator has done here counts from then on; the ConfigMap gets it as soon as the API server takes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, ObjectMeta, PartialObjectMeta, PostParams};
use proto_component::drain::Drain;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::{Mutex, MutexGuard};

use crate::ledger::Ledger;
use crate::revocation::{Revocations, Revoked};
use crate::trust::Trust;

#[cfg(test)]
mod tests;

/// The ConfigMap's name.
pub const REVOCATIONS: &str = "istio-ca-revocations";
const KEY: &str = "revocations.json";
const DEADLINE: Duration = Duration::from_secs(10);
/// Others may write at the same time.
const TRIES: usize = 10;
const CONFLICT: u16 = 409;

/// Keeps this replica's revocations and the ConfigMap alike.
pub struct SharedRevocations {
    config_maps: Api<ConfigMap>,
    changes: Api<PartialObjectMeta<ConfigMap>>,
    revocations: Revocations,
    ledger: Ledger,
    trust: Arc<Trust>,
    /// What is done here and what others have done is taken one at a time.
    changing: Mutex<()>,
    /// Whether the two may differ: a change was begun, and it is not known to be in both.
    is_behind: AtomicBool,
}

/// The ConfigMap's content. What lacks a part is not ours: nobody is restored because of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    barred: BTreeSet<String>,
    /// By identity: serial number, end of its life and when it was revoked (Unix seconds). Small: 10,000 must fit.
    revoked: BTreeMap<String, BTreeSet<(String, i64, i64)>>,
}

/// What the API server has.
#[derive(Debug, Default)]
struct Found {
    /// The ConfigMap's, if there is one.
    version: Option<String>,
    /// None in a ConfigMap that has none, either.
    content: Option<Content>,
}

impl SharedRevocations {
    /// Those in `namespace`.
    pub fn new(
        client: Client,
        namespace: &str,
        revocations: Revocations,
        ledger: Ledger,
        trust: Arc<Trust>,
    ) -> Self {
        Self {
            config_maps: Api::namespaced(client.clone(), namespace),
            changes: Api::namespaced(client, namespace),
            revocations,
            ledger,
            trust,
            changing: Mutex::default(),
            is_behind: AtomicBool::new(true),
        }
    }

    /// To be held from before a change here until it is pushed.
    pub async fn turn(&self) -> MutexGuard<'_, ()> {
        let turn = self.changing.lock().await;
        self.is_behind.store(true, Ordering::Relaxed);
        turn
    }

    /// Takes what is there, before anybody is served.
    ///
    /// # Errors
    /// When the API server does not answer, or the store fails.
    pub async fn load(&self) -> anyhow::Result<()> {
        let _turn = self.turn().await;
        match self.read().await?.content {
            Some(content) => self.adopt(content).await,
            None if self.own()?.is_empty() && self.revocations.untold()?.is_empty() => {
                self.is_behind.store(false, Ordering::Relaxed);
                Ok(())
            }
            None => self.push().await,
        }
    }

    /// Follows the ConfigMap until the drain.
    pub async fn run(&self, drain: Drain) {
        let has_untold = || {
            self.revocations
                .untold()
                .is_ok_and(|untold| !untold.is_empty())
        };
        let is_behind = || self.is_behind.load(Ordering::Relaxed) || has_untold();
        let load = || -> BoxFuture<'_, _> { Box::pin(self.load()) };
        super::follow(&self.changes, REVOCATIONS, is_behind, load, &drain).await;
    }

    /// Tells the others what was done here.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn push(&self) -> anyhow::Result<()> {
        for _ in 0..TRIES {
            let found = self.read().await?;
            let own = self.own()?;
            let mut content = found.content.clone().unwrap_or_else(|| Content {
                barred: own.barred.clone(),
                ..Content::default()
            });
            content.add(own);
            let untold = self.revocations.untold()?;
            for (identity, is_barred) in &untold {
                if *is_barred {
                    content.barred.insert(identity.clone());
                } else {
                    content.barred.remove(identity);
                }
            }
            content.forget(OffsetDateTime::now_utc());
            let is_there = found.content.as_ref() == Some(&content);
            if is_there || self.write(found.version, &content).await? {
                let revocations = self.revocations.clone();
                let told = move || revocations.told(untold.into_keys());
                tokio::task::spawn_blocking(told).await??;
                self.is_behind.store(false, Ordering::Relaxed);
                return Ok(());
            }
        }
        bail!("write ConfigMap {REVOCATIONS}: others write all the time")
    }

    /// Makes this replica's revocations like `content`, and adds to it what only this replica knows.
    async fn adopt(&self, content: Content) -> anyhow::Result<()> {
        let (revocations, ledger) = (self.revocations.clone(), self.ledger.clone());
        let trust = self.trust.clone();
        let work = move || {
            let revoked: Vec<Revoked> = content.entries().collect();
            let now = OffsetDateTime::now_utc();
            let adopted = revocations.adopt(&content.barred, &revoked, &ledger, now);
            // Also after a failure, of what came before it; and of what was adopted before a failure here.
            trust.refresh()?;
            if adopted? {
                tracing::warn!(target: "ca", barred = content.barred.len(), "revocations of other replicas are in force");
            }
            anyhow::Ok(content)
        };
        let content = tokio::task::spawn_blocking(work).await??;
        let mut all = content.clone();
        all.add(self.own()?);
        if all == content && self.revocations.untold()?.is_empty() {
            self.is_behind.store(false, Ordering::Relaxed);
            return Ok(());
        }
        self.push().await
    }

    fn own(&self) -> anyhow::Result<Content> {
        let mut own = Content {
            barred: self.revocations.barred()?,
            ..Content::default()
        };
        for entry in self.revocations.current(OffsetDateTime::now_utc())? {
            let (end, since) = (entry.not_after, entry.revoked_at);
            let row = (entry.serial, end.unix_timestamp(), since.unix_timestamp());
            own.revoked.entry(entry.identity).or_default().insert(row);
        }
        Ok(own)
    }

    async fn read(&self) -> anyhow::Result<Found> {
        let found = tokio::time::timeout(DEADLINE, self.config_maps.get_opt(REVOCATIONS))
            .await
            .context("the API server does not answer")?
            .with_context(|| format!("read ConfigMap {REVOCATIONS}"))?;
        let Some(found) = found else {
            return Ok(Found::default());
        };
        let text = found.data.as_ref().and_then(|data| data.get(KEY));
        let content = text.map(|text| serde_json::from_str(text)).transpose();
        Ok(Found {
            version: found.metadata.resource_version,
            content: content.with_context(|| format!("ConfigMap {REVOCATIONS}: {KEY}"))?,
        })
    }

    /// Writes in the place of `version`; says `false` if another was faster.
    async fn write(&self, version: Option<String>, content: &Content) -> anyhow::Result<bool> {
        let is_new = version.is_none();
        let object = ConfigMap {
            metadata: ObjectMeta {
                name: Some(REVOCATIONS.to_owned()),
                resource_version: version,
                ..ObjectMeta::default()
            },
            data: Some([(KEY.to_owned(), serde_json::to_string(content)?)].into()),
            ..ConfigMap::default()
        };
        let parameters = PostParams::default();
        let write = async {
            if is_new {
                self.config_maps.create(&parameters, &object).await
            } else {
                let replace = self.config_maps.replace(REVOCATIONS, &parameters, &object);
                replace.await
            }
        };
        match tokio::time::timeout(DEADLINE, write).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(kube::Error::Api(status))) if status.code == CONFLICT => Ok(false),
            Ok(Err(error)) => Err(error).with_context(|| format!("write ConfigMap {REVOCATIONS}")),
            Err(_) => bail!("write ConfigMap {REVOCATIONS}: the API server does not answer"),
        }
    }
}

impl Content {
    fn is_empty(&self) -> bool {
        self.barred.is_empty() && self.revoked.is_empty()
    }

    /// Adds what is revoked; not who is barred.
    fn add(&mut self, other: Self) {
        for (identity, rows) in other.revoked {
            let known = self.revoked.entry(identity).or_default();
            let serials: BTreeSet<String> = known.iter().map(|row| row.0.clone()).collect();
            known.extend(rows.into_iter().filter(|row| !serials.contains(&row.0)));
        }
    }

    /// Forgets what has ended by itself.
    fn forget(&mut self, now: OffsetDateTime) {
        let now = now.unix_timestamp();
        for rows in self.revoked.values_mut() {
            rows.retain(|(_, end, _)| *end > now);
        }
        self.revoked.retain(|_, rows| !rows.is_empty());
    }

    /// What is revoked; a moment that is none is passed over.
    fn entries(&self) -> impl Iterator<Item = Revoked> {
        let rows = self.revoked.iter();
        let rows = rows.flat_map(|(identity, rows)| rows.iter().map(move |row| (identity, row)));
        rows.filter_map(|(identity, (serial, end, since))| {
            Some(Revoked {
                serial: serial.clone(),
                identity: identity.clone(),
                not_after: OffsetDateTime::from_unix_timestamp(*end).ok()?,
                revoked_at: OffsetDateTime::from_unix_timestamp(*since).ok()?,
            })
        })
    }
}
