//! Revocations in the ConfigMap `istio-ca-revocations` of Citadel's own namespace: there they outlive the pod, and all replicas
//! have the same.
//!
//! Who is barred stands in the ConfigMap, and every replica follows it; what is revoked is the union of what each has. A replica
//! that learns of a barred identity adds the certificates that it has issued itself: each has a ledger of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use proto_component::drain::Drain;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::{Mutex, MutexGuard};

use crate::ledger::Ledger;
use crate::revocation::{Revocations, Revoked};
use crate::trust::Trust;

/// The ConfigMap's name.
pub const REVOCATIONS: &str = "istio-ca-revocations";
const KEY: &str = "revocations.json";
const DEADLINE: Duration = Duration::from_secs(10);
/// How soon what failed is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Others may write at the same time.
const TRIES: usize = 10;
const CONFLICT: u16 = 409;

/// Keeps this replica's revocations and the ConfigMap alike.
pub struct SharedRevocations {
    config_maps: Api<ConfigMap>,
    revocations: Revocations,
    ledger: Ledger,
    trust: Arc<Trust>,
    /// What is done here and what others have done is taken one at a time.
    changing: Mutex<()>,
}

/// What an operator has done to an identity here.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// Only certificates are revoked.
    Certificates,
    /// It gets no certificates.
    Barred(&'a str),
    /// It may have certificates again.
    Restored(&'a str),
}

/// The ConfigMap's content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    #[serde(default)]
    barred: BTreeSet<String>,
    /// By identity: serial number, end of its life and when it was revoked (Unix seconds). Small: 10,000 must fit.
    #[serde(default)]
    revoked: BTreeMap<String, BTreeSet<(String, i64, i64)>>,
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
            config_maps: Api::namespaced(client, namespace),
            revocations,
            ledger,
            trust,
            changing: Mutex::default(),
        }
    }

    /// To be held from before a change here until it is pushed.
    pub async fn turn(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().await
    }

    /// Takes what is there, before anybody is served.
    ///
    /// # Errors
    /// When the API server does not answer, or the store fails.
    pub async fn load(&self) -> anyhow::Result<()> {
        let _turn = self.turn().await;
        match self.read().await? {
            Some((_, content)) => self.adopt(&content).await,
            None if self.own()?.is_empty() => Ok(()),
            None => self.push(Change::Certificates).await,
        }
    }

    /// Follows the ConfigMap until the drain.
    pub async fn run(&self, drain: Drain) {
        let ours = watcher::Config::default().fields(&format!("metadata.name={REVOCATIONS}"));
        let mut events = watcher(self.config_maps.clone(), ours)
            .default_backoff()
            .boxed();
        let mut has_failed = false;
        loop {
            tokio::select! {
                () = drain.signaled() => return,
                Some(event) = events.next() => match event {
                    Ok(Event::Apply(_) | Event::InitApply(_) | Event::Delete(_)) => {}
                    Ok(Event::Init | Event::InitDone) => continue,
                    Err(error) => {
                        tracing::warn!(target: "ca", %error, "watch ConfigMap {REVOCATIONS}");
                        continue;
                    }
                },
                () = tokio::time::sleep(RETRY), if has_failed => {}
            }
            let outcome = self.load().await;
            has_failed = outcome.is_err();
            if let Err(error) = outcome {
                let error = format!("{error:#}");
                tracing::error!(target: "ca", error, "follow ConfigMap {REVOCATIONS}");
            }
        }
    }

    /// Tells the others what was done here.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn push(&self, change: Change<'_>) -> anyhow::Result<()> {
        for _ in 0..TRIES {
            let found = self.read().await?;
            let (version, before) = match found {
                Some((version, content)) => (Some(version), content),
                None => (None, Content::default()),
            };
            let own = self.own()?;
            let mut content = before.clone();
            if version.is_none() {
                content.barred.clone_from(&own.barred);
            }
            content.add(own);
            match change {
                Change::Certificates => {}
                Change::Barred(identity) => {
                    content.barred.insert(identity.to_owned());
                }
                Change::Restored(identity) => {
                    content.barred.remove(identity);
                }
            }
            content.forget(OffsetDateTime::now_utc());
            if (version.is_some() && content == before) || self.write(version, &content).await? {
                return Ok(());
            }
        }
        bail!("write ConfigMap {REVOCATIONS}: others write all the time")
    }

    /// Makes this replica's revocations like `content`, and adds to it what only this replica knows.
    async fn adopt(&self, content: &Content) -> anyhow::Result<()> {
        let revoked: Vec<Revoked> = content.entries().collect();
        let (revocations, ledger) = (self.revocations.clone(), self.ledger.clone());
        let (trust, barred) = (self.trust.clone(), content.barred.clone());
        let work = move || {
            let now = OffsetDateTime::now_utc();
            if revocations.adopt(&barred, &revoked, &ledger, now)? {
                trust.refresh()?;
                tracing::warn!(target: "ca", barred = barred.len(), "revocations of other replicas are in force");
            }
            anyhow::Ok(())
        };
        tokio::task::spawn_blocking(work).await??;
        let mut all = content.clone();
        all.add(self.own()?);
        if all == *content {
            return Ok(());
        }
        self.push(Change::Certificates).await
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

    /// What is there, with its version.
    async fn read(&self) -> anyhow::Result<Option<(String, Content)>> {
        let found = tokio::time::timeout(DEADLINE, self.config_maps.get_opt(REVOCATIONS))
            .await
            .context("the API server does not answer")?
            .with_context(|| format!("read ConfigMap {REVOCATIONS}"))?;
        let Some(found) = found else { return Ok(None) };
        let text = found.data.as_ref().and_then(|data| data.get(KEY));
        let content = text.map_or(Ok(Content::default()), |text| serde_json::from_str(text));
        let content = content.with_context(|| format!("ConfigMap {REVOCATIONS}: {KEY}"))?;
        let version = found.metadata.resource_version.unwrap_or_default();
        Ok(Some((version, content)))
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
