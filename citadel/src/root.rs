//! The life of a self-signed root: [`RootKeeper`] keeps it where all replicas have it, [`RootRotator`] replaces it before it ends.
//!
//! In a cluster the Secret is the truth. A change is made to what the Secret has, replaces just that version of it and is in
//! force only then; whoever comes second takes over what the first has done. So any replica may rotate the root, and none
//! signs with one that the others do not have.

mod rotator;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use anyhow::{Context as _, bail};
use futures::future::BoxFuture;
use proto_component::drain::Drain;
use proto_component::tls;
use time::OffsetDateTime;
use tokio::sync::Mutex;

use crate::ca::{RootFiles, SelfSigned, SelfSignedError, SelfSignedSettings};
use crate::kubernetes::{KeptRoot, RootSecret};
use crate::store::Store;

pub use rotator::{RootRotator, Rotation};

/// Others may write at the same time.
const TRIES: usize = 10;

/// The root, and where it is kept.
pub struct RootKeeper {
    ca: Arc<SelfSigned>,
    /// None outside of a cluster: the store is enough there.
    secret: Option<RootSecret>,
    /// What is done here and what others have done is taken one at a time.
    changing: Mutex<()>,
}

impl RootKeeper {
    /// The cluster's root, else the store's, else a new one.
    ///
    /// # Errors
    /// When the API server does not answer, or a root is unusable.
    pub async fn open(
        store: &Store,
        settings: SelfSignedSettings,
        secret: Option<RootSecret>,
        now: OffsetDateTime,
    ) -> anyhow::Result<Self> {
        if let Some(secret) = &secret
            && let Some(kept) = secret.read().await?
        {
            SelfSigned::adopt(store, &kept.files, &tls::provider(), now)?;
        }
        let keeper = Self {
            ca: Arc::new(SelfSigned::open(store, settings, tls::provider(), now)?),
            secret,
            changing: Mutex::default(),
        };
        keeper.load(now).await?;
        Ok(keeper)
    }

    /// The root.
    pub fn ca(&self) -> &Arc<SelfSigned> {
        &self.ca
    }

    /// Begins a rotation.
    ///
    /// # Errors
    /// When there is one already, or the API server refuses.
    pub async fn rotate(&self, now: OffsetDateTime) -> anyhow::Result<()> {
        let make = || self.ca.rotated(now).map(Some);
        self.change(now, make).await.map(drop)
    }

    /// Puts in force what `make` makes of the newest root, once it is kept; says whether it has made something.
    ///
    /// # Errors
    /// Those of `make`, and when the API server refuses.
    pub(crate) async fn change(
        &self,
        now: OffsetDateTime,
        make: impl Fn() -> Result<Option<RootFiles>, SelfSignedError>,
    ) -> anyhow::Result<bool> {
        let _one_at_a_time = self.changing.lock().await;
        for _ in 0..TRIES {
            let before = self.load(now).await?;
            let Some(files) = make()? else {
                return Ok(false);
            };
            if let (Some(secret), Some(before)) = (&self.secret, before)
                && !secret.replace(&before, &files).await?
            {
                continue;
            }
            self.ca.take(&files, now)?;
            return Ok(true);
        }
        bail!("replace the root's Secret: others write all the time")
    }

    /// Takes over what other replicas have done, until the drain; `changed` is told of it, and sometimes of nothing.
    pub async fn follow(&self, changed: impl Fn() + Send + Sync, drain: &Drain) {
        let Some(secret) = &self.secret else { return };
        let load = || -> BoxFuture<'_, _> {
            Box::pin(async {
                let _one_at_a_time = self.changing.lock().await;
                self.load(OffsetDateTime::now_utc()).await?;
                changed();
                Ok(())
            })
        };
        secret.follow(load, drain).await;
    }

    /// Takes over what the Secret has, and makes it if there is none.
    async fn load(&self, now: OffsetDateTime) -> anyhow::Result<Option<KeptRoot>> {
        let Some(secret) = &self.secret else {
            return Ok(None);
        };
        let kept = match secret.read().await? {
            Some(kept) => kept,
            None => {
                // Another that is faster wins: what counts is what is there.
                secret.create(&self.ca.files()?).await?;
                secret.read().await?.context("the root's Secret vanished")?
            }
        };
        if self.ca.take(&kept.files, now)? {
            tracing::info!(target: "ca", "the root of the Secret is in force");
        }
        Ok(Some(kept))
    }
}
