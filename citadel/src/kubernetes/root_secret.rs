//! The self-signed root in the Secret `istio-ca-secret`, as Istio keeps it (`ca-cert.pem`, `ca-key.pem`): the pod's folder
//! may vanish, the cluster's root may not. Whoever is first writes it; everybody else takes it from there. What replaces it names
//! the version that it replaces.

use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::future::BoxFuture;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, ObjectMeta, PartialObjectMeta, Patch, PatchParams, PostParams};
use proto_component::drain::Drain;
use zeroize::Zeroizing;

use crate::ca::RootFiles;

/// The Secret's name.
pub const SECRET: &str = "istio-ca-secret";
const KIND: &str = "istio.io/ca-root";
const DEADLINE: Duration = Duration::from_secs(10);
const NOT_FOUND: u16 = 404;
const CONFLICT: u16 = 409;

/// The Secret of one namespace.
#[derive(Clone)]
pub struct RootSecret {
    secrets: Api<Secret>,
    changes: Api<PartialObjectMeta<Secret>>,
}

/// What the Secret has.
pub struct KeptRoot {
    /// The root.
    pub files: RootFiles,
    /// The Secret's.
    version: Option<String>,
}

impl RootSecret {
    /// The Secret in `namespace`.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            changes: Api::namespaced(client, namespace),
        }
    }

    /// The root that the cluster has, if it has one.
    ///
    /// # Errors
    /// When the API server does not answer, or the Secret is not a root.
    pub async fn read(&self) -> anyhow::Result<Option<KeptRoot>> {
        let found = tokio::time::timeout(DEADLINE, self.secrets.get_opt(SECRET))
            .await
            .context("the API server does not answer")?
            .with_context(|| format!("read Secret {SECRET}"))?;
        let Some(secret) = found else {
            return Ok(None);
        };
        let text = |(name, ByteString(bytes)): (String, ByteString)| {
            let text = String::from_utf8(bytes)
                .with_context(|| format!("Secret {SECRET}: {name} is not text"))?;
            anyhow::Ok((name, text.into()))
        };
        let data = secret.data.unwrap_or_default().into_iter();
        let files = data.map(text).collect::<anyhow::Result<_>>()?;
        Ok(Some(KeptRoot {
            files: RootFiles(files),
            version: secret.metadata.resource_version,
        }))
    }

    /// Writes the first root; says `false` if another was faster.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn create(&self, files: &RootFiles) -> anyhow::Result<bool> {
        let (parameters, mut secret) = (PostParams::default(), secret(files));
        let create = self.secrets.create(&parameters, &secret);
        let created = tokio::time::timeout(DEADLINE, create).await;
        super::wipe(&mut secret);
        match created {
            Ok(Ok(mut sent_back)) => {
                super::wipe(&mut sent_back);
                Ok(true)
            }
            Ok(Err(kube::Error::Api(status))) if status.code == CONFLICT => Ok(false),
            Ok(Err(error)) => Err(error).with_context(|| format!("create Secret {SECRET}")),
            Err(_) => bail!("create Secret {SECRET}: the API server does not answer"),
        }
    }

    /// Puts a renewed root in the place of the one before; says `false` if that is not there any more.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn replace(&self, before: &KeptRoot, files: &RootFiles) -> anyhow::Result<bool> {
        let parameters = PatchParams::default();
        let mut secret = secret(files);
        secret.metadata.resource_version.clone_from(&before.version);
        let mut patch = serde_json::to_value(&secret)?;
        super::wipe(&mut secret);
        // Merging would keep what a rotation has left behind.
        for gone in before.files.0.keys() {
            if !files.0.contains_key(gone) {
                patch["data"][gone] = serde_json::Value::Null;
            }
        }
        let patch = Patch::Merge(&patch);
        let replace = self.secrets.patch(SECRET, &parameters, &patch);
        match tokio::time::timeout(DEADLINE, replace).await {
            Ok(Ok(mut sent_back)) => {
                super::wipe(&mut sent_back);
                Ok(true)
            }
            Ok(Err(kube::Error::Api(status))) if [NOT_FOUND, CONFLICT].contains(&status.code) => {
                Ok(false)
            }
            Ok(Err(error)) => Err(error).with_context(|| format!("replace Secret {SECRET}")),
            Err(_) => bail!("replace Secret {SECRET}: the API server does not answer"),
        }
    }

    /// Calls `load` each time it may have changed, until the drain.
    pub(crate) async fn follow<'a>(
        &self,
        load: impl Fn() -> BoxFuture<'a, anyhow::Result<()>>,
        drain: &Drain,
    ) {
        super::follow(&self.changes, SECRET, || false, load, drain).await;
    }
}

fn secret(files: &RootFiles) -> Secret {
    let entry = |(name, text): (&String, &Zeroizing<String>)| {
        (name.clone(), ByteString(text.as_bytes().to_vec()))
    };
    Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some(KIND.to_owned()),
        data: Some(files.0.iter().map(entry).collect()),
        ..Secret::default()
    }
}
