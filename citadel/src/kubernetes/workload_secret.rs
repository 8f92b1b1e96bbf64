//! Secrets `istio.ACCOUNT` with a certificate and its key for the service accounts of chosen namespaces, for pods that mount
//! them instead of asking by themselves (the 1.4 line's secret mode): made when an account appears, made anew before the
//! certificate ends, when the root changes and when somebody spoils or deletes them, deleted with their account.
//!
//! [`Plan`] says what is to be done; it knows nothing of the API server.

mod plan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use kube::{Client, Resource};
use proto_component::drain::Drain;
use proto_component::kubernetes::WatchBackoff;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::ca::{CertificateAuthority, SignRequest};
use crate::ledger::{Issued, Ledger};
use crate::metrics::SecretMetrics;
use crate::pki::{PrivateKey, San, fingerprint, revoked_by, to_pem};
use crate::revocation::{Revocations, RevokeError};
use crate::trust::Anchors;

use plan::{Plan, Step, Wanted};

pub use plan::Account;

/// The Secrets' type, by which they are told from others.
const KIND: &str = "istio.io/key-and-cert";
/// Names the account.
const ANNOTATION: &str = "istio.io/service-account.name";
/// Its keys.
const CHAIN: &str = "cert-chain.pem";
const KEY: &str = "key.pem";
/// What the certificate leads to.
const ROOT: &str = "root-cert.pem";
/// Who has lost its certificate; always there, but empty while nobody has.
const CRLS: &str = proto_component::tls::CRLS;
/// A Secret takes 1 MiB in all.
const LONGEST_LISTS: usize = 900 << 10;
const FIELD_MANAGER: &str = "istio-citadel";
const DEADLINE: Duration = Duration::from_secs(10);
/// How soon what failed is tried again, and how often the remaining lives are looked at.
const RETRY: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_secs(60);

/// What the certificates say.
#[derive(Debug, Clone)]
pub struct SecretSettings {
    /// First part of identities.
    pub trust_domain: String,
    /// How long they live.
    pub ttl: Duration,
    /// They are made anew when less than this is left.
    pub grace: Duration,
    /// Host names beside the identity, by account (`NAMESPACE/ACCOUNT`).
    pub dns_names: BTreeMap<Account, Vec<String>>,
    /// Only these namespaces; all if there are none.
    pub namespaces: Vec<String>,
    /// Namespaces without labels are managed.
    pub is_default_managed: bool,
    /// Citadel's own namespace.
    pub own_namespace: String,
    /// Put the identity into the subject too.
    pub dual_use: bool,
}

/// Keeps the Secrets.
pub struct WorkloadSecrets {
    client: Client,
    ca: Arc<dyn CertificateAuthority>,
    ledger: Ledger,
    revocations: Revocations,
    anchors: watch::Receiver<Arc<Anchors>>,
    settings: SecretSettings,
    metrics: SecretMetrics,
}

impl WorkloadSecrets {
    /// A keeper of Secrets signed by `ca`.
    pub fn new(
        client: Client,
        ca: Arc<dyn CertificateAuthority>,
        ledger: Ledger,
        revocations: Revocations,
        anchors: watch::Receiver<Arc<Anchors>>,
        settings: SecretSettings,
        metrics: SecretMetrics,
    ) -> Self {
        Self {
            client,
            ca,
            ledger,
            revocations,
            anchors,
            settings,
            metrics,
        }
    }

    /// Keeps them until the drain.
    pub async fn run(&mut self, drain: &Drain) {
        let all = watcher::Config::default;
        let ours = all().fields(&format!("type={KIND}"));
        let mut namespaces = events::<Namespace>(&self.client, all());
        let mut accounts = events::<ServiceAccount>(&self.client, all());
        let mut secrets = events::<Secret>(&self.client, ours);
        let mut plan = Plan::new(&self.settings);
        let mut look = tokio::time::interval(LOOK);
        let mut wanted = Wanted::default();
        loop {
            let has_failed = plan.has_failed();
            tokio::select! {
                () = drain.signaled() => return,
                Some(event) = namespaces.next() => plan.namespace(event),
                Some(event) = accounts.next() => plan.account(event),
                Some(event) = secrets.next() => plan.secret(event),
                Ok(()) = self.anchors.changed() => {}
                _ = look.tick() => {}
                () = tokio::time::sleep(RETRY), if has_failed => {}
            }
            let anchors = self.anchors.borrow_and_update().clone();
            let now = OffsetDateTime::now_utc();
            if let Err(error) = self.want(&mut wanted, &anchors, now) {
                tracing::error!(target: "secretcontroller", %error, "read what is revoked");
            }
            for step in plan.steps(&wanted, now) {
                let outcome = tokio::time::timeout(DEADLINE, self.take(&step, &anchors)).await;
                let error = match outcome {
                    Ok(Ok(())) => continue,
                    Ok(Err(error)) => format!("{error:#}"),
                    Err(_) => "the API server does not answer".to_owned(),
                };
                tracing::warn!(target: "secretcontroller", error, ?step, "keep a Secret");
                plan.failed(step);
            }
        }
    }

    /// Brings up to date what is wanted: what is revoked may change without the lists (somebody may be restored).
    fn want(
        &self,
        wanted: &mut Wanted,
        anchors: &Anchors,
        now: OffsetDateTime,
    ) -> Result<(), RevokeError> {
        if wanted.version != anchors.version {
            let revoked = self.revocations.current(now)?;
            wanted.revoked = revoked.into_iter().map(|entry| entry.serial).collect();
            wanted.lists = revoked_by(lists(anchors));
            if anchors.crls.len() > LONGEST_LISTS {
                tracing::error!(target: "secretcontroller", "more is revoked than a Secret can hold: rotate the root");
            }
            wanted.roots.clone_from(&anchors.roots);
            wanted.version.clone_from(&anchors.version);
        }
        let barred = self.revocations.barred()?;
        let account = |uri: &String| Account::of(uri, &self.settings.trust_domain);
        wanted.barred = barred.iter().filter_map(account).collect();
        Ok(())
    }

    async fn take(&self, step: &Step, anchors: &Anchors) -> anyhow::Result<()> {
        match step {
            Step::Tell(account) => {
                let lists = ByteString(lists(anchors).as_bytes().to_vec());
                let patch = serde_json::json!({"data": {CRLS: lists}});
                let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &account.namespace);
                let parameters = PatchParams::default();
                let told = secrets
                    .patch(&account.secret(), &parameters, &Patch::Merge(&patch))
                    .await;
                // The API server sends all of it.
                super::wipe(&mut told?);
                Ok(())
            }
            Step::Write(account) => {
                let data = self.issue(account, anchors).await?;
                let mut secret = secret(account, data);
                let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &account.namespace);
                let parameters = PatchParams::apply(FIELD_MANAGER).force();
                let written = secrets
                    .patch(&account.secret(), &parameters, &Patch::Apply(&secret))
                    .await;
                super::wipe(&mut secret);
                // The API server sends it back.
                super::wipe(&mut written?);
                self.metrics.created.inc();
                Ok(())
            }
            Step::Delete { namespace, name } => {
                let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
                match secrets.delete(name, &DeleteParams::default()).await {
                    Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                    outcome => {
                        outcome?;
                        self.metrics.deleted.inc();
                        Ok(())
                    }
                }
            }
        }
    }

    /// A new key and its certificate, in the ledger before anybody has them.
    async fn issue(
        &self,
        account: &Account,
        anchors: &Anchors,
    ) -> anyhow::Result<BTreeMap<String, String>> {
        let key = PrivateKey::generate()?;
        let public = key.public()?;
        let identity = account.identity(&self.settings.trust_domain)?;
        let mut sans = vec![San::Uri(identity.clone())];
        let names = self.settings.dns_names.get(account);
        sans.extend(names.into_iter().flatten().cloned().map(San::Dns));
        let request = SignRequest {
            public_key: &public,
            sans: &sans,
            ttl: self.settings.ttl,
            dual_use: self.settings.dual_use,
        };
        let now = OffsetDateTime::now_utc();
        let certificate = self.ca.sign(&request, now).inspect_err(|error| {
            let labels = [error.label()];
            self.metrics.sign_error.with_label_values(&labels).inc();
        })?;
        let issued = Issued {
            serial: certificate.serial.clone(),
            identity,
            issued_at: now,
            not_before: certificate.validity.not_before,
            not_after: certificate.validity.not_after,
            authenticator: "SecretController".to_owned(),
            peer: None,
            key_fingerprint: fingerprint(public.der()),
        };
        self.ledger.record(&issued).await?;
        let bundle = self.ca.bundle();
        let chain: String = std::iter::once(certificate.pem)
            .chain(bundle.intermediates.iter().map(to_pem))
            .collect();
        Ok(BTreeMap::from([
            (CHAIN.to_owned(), chain),
            (KEY.to_owned(), key.to_pem().to_string()),
            (ROOT.to_owned(), anchors.roots.clone()),
            (CRLS.to_owned(), lists(anchors).to_owned()),
        ]))
    }
}

/// What happens to objects of a kind; a watch that fails is begun anew.
fn events<K>(
    client: &Client,
    config: watcher::Config,
) -> futures::stream::BoxStream<'static, watcher::Event<K>>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    let stream = watcher(Api::<K>::all(client.clone()), config).backoff(WatchBackoff::default());
    let good = stream.filter_map(|event| async {
        event
            .inspect_err(|error| tracing::warn!(target: "secretcontroller", %error, kind = %K::kind(&()), "watch"))
            .ok()
    });
    good.boxed()
}

/// The revocation lists, unless they are too long for a Secret.
fn lists(anchors: &Anchors) -> &str {
    if anchors.crls.len() <= LONGEST_LISTS {
        return &anchors.crls;
    }
    ""
}

fn secret(account: &Account, data: BTreeMap<String, String>) -> Secret {
    let bytes = |(name, text): (String, String)| (name, ByteString(text.into_bytes()));
    Secret {
        metadata: ObjectMeta {
            name: Some(account.secret()),
            namespace: Some(account.namespace.clone()),
            annotations: Some(BTreeMap::from([(
                ANNOTATION.to_owned(),
                account.name.clone(),
            )])),
            ..ObjectMeta::default()
        },
        type_: Some(KIND.to_owned()),
        data: Some(data.into_iter().map(bytes).collect()),
        ..Secret::default()
    }
}
