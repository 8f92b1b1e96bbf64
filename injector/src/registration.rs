//! The webhook's registration: the chart's `MutatingWebhookConfiguration` sends the API server to us, and we write into it
//! whom the API server shall trust; again whenever the certificate changes or somebody takes it away.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{ArgAction, Args};
use futures::StreamExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use proto_component::backoff::Backoff;
use proto_component::drain::Drain;
use proto_component::file_watcher::FileWatcher;
use proto_component::kubernetes::lease::{self, LeaseArgs};
use proto_component::kubernetes::{self, KubeArgs};
use proto_component::task;
use serde_json::json;

/// The Lease of whoever of several replicas writes to the cluster.
const LEASE: &str = "istio-sidecar-injector";

/// Flags about the registration.
#[derive(Clone, Debug, Args)]
pub struct RegistrationArgs {
    /// How to reach the API server.
    #[command(flatten)]
    pub client: KubeArgs,
    /// Write the CA's certificate into the webhook's registration, and keep it there.
    #[arg(long = "reconcileWebhookConfig", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true")]
    pub is_kept: bool,
    /// Whom the API server shall trust, PEM.
    #[arg(
        long = "caCertFile",
        value_name = "FILE",
        default_value = "/etc/istio/certs/root-cert.pem"
    )]
    pub authority: PathBuf,
    /// Name of the MutatingWebhookConfiguration.
    #[arg(
        long = "webhookConfigName",
        value_name = "NAME",
        default_value = "istio-sidecar-injector"
    )]
    pub configuration: String,
    /// Name of the webhook in it.
    #[arg(
        long = "webhookName",
        value_name = "NAME",
        default_value = "sidecar-injector.istio.io"
    )]
    pub webhook: String,
    /// Of several replicas the leader keeps the registration.
    #[command(flatten)]
    pub election: LeaseArgs,
}

/// Keeps the registration while this replica leads, until the drain.
pub fn keep(client: &Client, args: RegistrationArgs, drain: Drain) {
    let mut leadership = lease::elect(client.clone(), LEASE, &args.election, drain.clone());
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    task::spawn("webhook-registration", async move {
        while leadership.gained().await {
            tokio::select! {
                () = follow(&api, &args, &drain) => return,
                () = leadership.lost() => {}
            }
        }
    });
}

async fn follow(api: &Api<MutatingWebhookConfiguration>, args: &RegistrationArgs, drain: &Drain) {
    // The chart's role allows this one by name.
    let own = format!("metadata.name={}", args.configuration);
    let mut changes = kubernetes::watch_selected(api.clone(), &own, "").boxed();
    let mut files = FileWatcher::files([&args.authority]);
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
    loop {
        let name = &args.configuration;
        match register(api, args).await {
            Ok(is_new) => {
                backoff.reset();
                if is_new {
                    tracing::info!(name, "webhook registered");
                }
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, name, "cannot register the webhook; trying again");
                if !backoff.wait(drain).await {
                    return;
                }
                continue;
            }
        }
        tokio::select! {
            () = files.changed() => {}
            _ = changes.next() => {}
            () = drain.signaled() => return,
        }
    }
}

/// Writes the certificate where it is not there already; false if it was.
async fn register(
    api: &Api<MutatingWebhookConfiguration>,
    args: &RegistrationArgs,
) -> anyhow::Result<bool> {
    let bundle = read_authority(&args.authority)?;
    let current = api.get_opt(&args.configuration).await?.with_context(|| {
        format!(
            "there is no MutatingWebhookConfiguration {}",
            args.configuration
        )
    })?;
    let webhooks = current.webhooks.iter().flatten();
    let webhook = webhooks
        .into_iter()
        .find(|webhook| webhook.name == args.webhook)
        .with_context(|| format!("{} has no webhook {}", current.name_any(), args.webhook))?;
    if webhook.client_config.ca_bundle.as_ref() == Some(&bundle) {
        return Ok(false);
    }
    // A merge by the webhooks' names, which leaves everything else as it is.
    let patch = json!({"webhooks": [{"name": args.webhook, "clientConfig": {"caBundle": bundle}}]});
    api.patch(
        &args.configuration,
        &PatchParams::default(),
        &Patch::Strategic(patch),
    )
    .await?;
    Ok(true)
}

fn read_authority(path: &Path) -> anyhow::Result<ByteString> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    if !text.starts_with(b"-----BEGIN CERTIFICATE") {
        bail!("{} holds no certificate", path.display());
    }
    Ok(ByteString(text))
}
