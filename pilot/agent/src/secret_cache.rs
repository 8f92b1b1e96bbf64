//! The secrets of this moment. One writer a kind (the rotation, the credential files), many readers (SDS streams), who wait on
//! a change counter.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::watch;

use crate::credentials::{self, Credential};
use crate::secret::{Anchors, DEFAULT, ROOT_CA, Standing, Versioned, Workload};

/// The cache; cheap to clone.
#[derive(Clone)]
pub struct SecretCache(Arc<Inner>);

struct Inner {
    workload: ArcSwap<Option<Workload>>,
    /// Those that Citadel pushes; without them a certificate's own root counts.
    anchors: ArcSwapOption<Anchors>,
    credentials: PathBuf,
    files: parking_lot::Mutex<BTreeMap<String, Credential>>,
    changes: watch::Sender<u64>,
}

impl SecretCache {
    /// An empty cache; gateway credentials are looked for below `credentials`.
    pub fn new(credentials: PathBuf) -> Self {
        Self(Arc::new(Inner {
            workload: ArcSwap::from_pointee(None),
            anchors: ArcSwapOption::empty(),
            credentials,
            files: parking_lot::Mutex::default(),
            changes: watch::channel(0).0,
        }))
    }

    /// Puts a new certificate in place.
    pub fn set_workload(&self, workload: Workload) {
        self.0.workload.store(Arc::new(Some(workload)));
        self.changed();
    }

    /// Puts new anchors in place.
    pub fn set_anchors(&self, anchors: Anchors) {
        if self.0.anchors.load().as_deref() != Some(&anchors) {
            self.0.anchors.store(Some(Arc::new(anchors)));
            self.changed();
        }
    }

    /// What the anchors mean for the certificate in use.
    pub fn standing(&self) -> Standing {
        let (workload, anchors) = (self.0.workload.load(), self.0.anchors.load());
        match (&**workload, anchors.as_ref()) {
            (Some(workload), Some(anchors)) => anchors.standing(workload),
            _ => Standing::Good,
        }
    }

    /// The certificate in use.
    pub fn workload(&self) -> Arc<Option<Workload>> {
        self.0.workload.load_full()
    }

    /// The roots that others' certificates must lead to, PEM.
    pub fn trusted(&self) -> Option<String> {
        if let Some(anchors) = self.0.anchors.load().as_ref() {
            return Some(anchors.trusted().to_owned());
        }
        let workload = self.0.workload.load();
        workload
            .as_ref()
            .as_ref()
            .map(|workload| workload.trusted().to_owned())
    }

    /// The secret of this name, if it is at hand.
    pub fn get(&self, name: &str) -> Option<Versioned> {
        let workload = self.0.workload.load();
        match name {
            DEFAULT => workload.as_ref().as_ref().map(Workload::certificate),
            ROOT_CA => match self.0.anchors.load().as_ref() {
                Some(anchors) => Some(anchors.secret()),
                None => workload.as_ref().as_ref().map(Workload::roots),
            },
            _ => {
                let credential = Credential::named(&self.0.credentials, name)?;
                let secret = credential.read(name);
                // Remembered even while the files are missing: they may appear.
                let mut files = self.0.files.lock();
                if files.len() < credentials::MAX || files.contains_key(name) {
                    files.insert(name.to_owned(), credential);
                }
                secret
            }
        }
    }

    /// Tells of each change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Looks whether the files of credentials that somebody asked for have changed.
    pub(crate) fn check_files(&self) {
        let mut is_changed = false;
        for credential in self.0.files.lock().values_mut() {
            is_changed |= credential.refresh();
        }
        if is_changed {
            self.changed();
        }
    }

    fn changed(&self) {
        self.0.changes.send_modify(|count| *count += 1);
    }
}
