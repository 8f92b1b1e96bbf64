//! Citadel in a cluster: the API server as witness of tokens, a Secret as the root's safe, a ConfigMap in every namespace
//! from which workloads learn the root, a ConfigMap that replicas share their revocations by, and, for pods that mount them, Secrets with certificates.

mod revocation_map;
mod root_config_map;
mod root_secret;
mod workload_secret;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use proto_component::backoff::Backoff;
use proto_component::drain::Drain;
use proto_component::kubernetes::KubeArgs;
use proto_component::tls;
use time::OffsetDateTime;
use tokio::sync::Notify;
use zeroize::Zeroize as _;

use crate::ca::{SelfSigned, SelfSignedSettings};
use crate::store::Store;

pub use revocation_map::{Change, REVOCATIONS, SharedRevocations};
pub use root_config_map::{CONFIG_MAP, ROOT_KEY, RootConfigMaps};
pub use root_secret::{RootSecret, SECRET};
pub use workload_secret::{Account, SecretSettings, WorkloadSecrets};

/// Wipes what is in a Secret that has been sent.
fn wipe(secret: &mut Secret) {
    let texts = secret.data.iter_mut().flat_map(BTreeMap::values_mut);
    texts.for_each(|text| text.0.zeroize());
}

/// A client of the API server: that of `kubeconfig`, in a pod of a cluster the pod's own, else none.
///
/// # Errors
/// When the file or the pod's credentials are unusable.
pub async fn client(kubeconfig: Option<&Path>) -> anyhow::Result<Option<Client>> {
    // What the kubelet puts into every pod's environment.
    let is_in_cluster = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    if kubeconfig.is_none() && !is_in_cluster {
        return Ok(None);
    }
    let cluster = KubeArgs {
        kubeconfig: kubeconfig.map(Path::to_owned),
        context: None,
    };
    cluster.client().await.map(Some)
}

/// The self-signed root: in a cluster the Secret is the truth, and the store follows it.
///
/// # Errors
/// When the API server does not answer, or a root is unusable.
pub async fn open_root(
    store: &Store,
    settings: SelfSignedSettings,
    secret: Option<&RootSecret>,
    now: OffsetDateTime,
) -> anyhow::Result<SelfSigned> {
    let open = || SelfSigned::open(store, settings.clone(), tls::provider(), now);
    let Some(secret) = secret else {
        return Ok(open()?);
    };
    if secret.read().await?.is_none() {
        // Another that is faster wins; what counts is read below.
        secret.create(&open()?.files()?).await?;
    }
    let files = secret.read().await?.context("the root's Secret vanished")?;
    SelfSigned::adopt(store, &files, &tls::provider(), now)?;
    Ok(open()?)
}

/// Carries each renewed root into the Secret, and only then to the namespaces. `is_pending`: there is one that is not there yet.
pub async fn keep_root(
    root: Option<Arc<SelfSigned>>,
    secret: &RootSecret,
    new_root: &Notify,
    is_pending: &mut bool,
    config_maps: &Notify,
    drain: &Drain,
) {
    loop {
        if !*is_pending {
            tokio::select! {
                () = new_root.notified() => *is_pending = true,
                () = drain.signaled() => return,
            }
        }
        let mut backoff = Backoff::default();
        while let Some(root) = &root {
            let written = match root.files() {
                Ok(files) => secret.replace(&files).await,
                Err(error) => Err(error.into()),
            };
            let Err(error) = written else { break };
            tracing::error!(target: "ca", error = format!("{error:#}"), "keep the new root");
            if !backoff.wait(drain).await {
                return;
            }
        }
        *is_pending = false;
        config_maps.notify_one();
    }
}
