//! Citadel in a cluster: the API server as witness of tokens, a Secret as the root's safe, a ConfigMap in every namespace
//! from which workloads learn the root, a ConfigMap that replicas share their revocations by, and, for pods that mount them, Secrets with certificates.

mod revocation_map;
mod root_config_map;
mod root_secret;
#[cfg(test)]
pub(crate) mod testing;
mod workload_secret;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::watch_object;
use kube::{Client, Resource};
use proto_component::drain::Drain;
use proto_component::kubernetes::{KubeArgs, WatchBackoff};
use zeroize::Zeroize as _;

pub use revocation_map::{REVOCATIONS, SharedRevocations};
pub use root_config_map::{CONFIG_MAP, ROOT_KEY, RootConfigMaps};
pub use root_secret::{KeptRoot, RootSecret, SECRET};
pub use workload_secret::{Account, SecretSettings, WorkloadSecrets};

/// How soon what failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

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

/// Calls `load` each time the object of that name may have changed, and again soon after a failure and while `is_behind`, until
/// the drain.
async fn follow<'a, K>(
    objects: &Api<PartialObjectMeta<K>>,
    name: &str,
    is_behind: impl Fn() -> bool,
    load: impl Fn() -> BoxFuture<'a, anyhow::Result<()>>,
    drain: &Drain,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
{
    let changes = watch_object(objects.clone(), name).backoff(WatchBackoff::default());
    let mut changes = changes.boxed();
    let mut has_failed = false;
    loop {
        tokio::select! {
            () = drain.signaled() => return,
            // Also said when there is no such object, or no longer.
            Some(change) = changes.next() => if let Err(error) = change {
                tracing::warn!(target: "ca", %error, name, "watch an object of Citadel's own");
                continue;
            },
            () = tokio::time::sleep(RETRY) => if !has_failed && !is_behind() {
                continue;
            },
        }
        let outcome = load().await;
        has_failed = outcome.is_err();
        if let Err(error) = outcome {
            let error = format!("{error:#}");
            tracing::error!(target: "ca", error, name, "follow an object of Citadel's own");
        }
    }
}
