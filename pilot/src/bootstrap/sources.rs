//! Starts what configuration and services come from: MCP or a folder, and the API server if it is one of the registries.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use kube::Client;
use proto::istio::mesh::v1alpha1::MeshConfig;
use proto_component::Process;
use proto_component::file_watcher::{Debounce, FileWatcher};
use proto_component::grpc::{self, ClientOptions};
use proto_component::kubernetes::token::TokenReviewer;
use proto_component::process::Usage;
use proto_component::task;
use proto_mcp::metrics::McpMetrics;
use proto_mcp::sink::{Sink, SinkOptions, SinkView};
use tokio::sync::{mpsc, oneshot, watch};

use crate::args::{Discovery as Args, RegistryKind};
use crate::config::{Update, file, mcp};
use crate::model::Mesh;
use crate::registry::kubernetes::{self, secrets};
use crate::registry::registration::cluster;
use crate::xds::Discovery;
use crate::xds::access::AccessReviewer;
use crate::xds::authenticate::Authenticator;

use super::own_certificate;

/// The account of the source of configuration.
const GALLEY_ACCOUNT: &str = "istio-galley-service-account";

/// Where configuration comes from.
enum Config {
    Mcp(SinkView),
    Folder(oneshot::Receiver<()>),
    None,
}

/// Where configuration and services come from.
pub(super) struct Sources {
    config: Config,
    cluster: Option<oneshot::Receiver<()>>,
    /// Tells who opens a stream, by the cluster if there is one.
    pub(super) authenticator: Authenticator,
}

impl Sources {
    /// Resolves once all of them have told everything.
    pub(super) async fn synced(self) {
        match self.config {
            Config::Mcp(view) => view.synced().await,
            Config::Folder(loaded) => told(loaded).await,
            Config::None => {}
        }
        if let Some(cluster) = self.cluster {
            told(cluster).await;
        }
    }
}

/// Resolves once the other end has told everything; never, if it has ended without.
async fn told(all: oneshot::Receiver<()>) {
    if all.await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What is needed to start them.
pub(super) struct Starting<'a> {
    pub(super) args: &'a Args,
    pub(super) process: &'a Process,
    pub(super) discovery: &'a Arc<Discovery>,
    pub(super) updates: &'a mpsc::Sender<Update>,
}

impl Starting<'_> {
    /// Starts everything that the flags and the mesh's settings name.
    pub(super) async fn start(
        &self,
        mesh: &MeshConfig,
        changes: watch::Receiver<Arc<Mesh>>,
    ) -> anyhow::Result<Sources> {
        let place = |kind| self.args.registries.iter().position(|found| *found == kind);
        let of_cluster = place(RegistryKind::Kubernetes);
        let of_mcp = place(RegistryKind::Mcp);
        self.discovery.store.lock().is_mcp_first =
            of_mcp.is_some_and(|mcp| of_cluster.is_none_or(|cluster| mcp < cluster));
        let (cluster, authenticator) = match of_cluster {
            Some(_) => {
                let client = (self.args.kubernetes.client().await)
                    .map_err(|error| Usage(format!("--registries Kubernetes: {error:#}")))?;
                let audiences = self.args.features.token_audiences.clone();
                let authenticator = Authenticator {
                    reviewer: Some(TokenReviewer::new(client.clone(), audiences)),
                    access: Some(AccessReviewer::new(client.clone())),
                };
                (Some(self.follow_cluster(client, changes)), authenticator)
            }
            None => (None, Authenticator::default()),
        };
        Ok(Sources {
            config: self.start_config(mesh, of_mcp.is_some())?,
            cluster,
            authenticator,
        })
    }

    fn follow_cluster(
        &self,
        client: Client,
        mesh: watch::Receiver<Arc<Mesh>>,
    ) -> oneshot::Receiver<()> {
        let options = kubernetes::Options {
            domain: self.args.domain.clone(),
            namespace: self.args.app_namespace.clone(),
            mesh,
            events: self.discovery.metrics.cluster_events.clone(),
        };
        tracing::info!(target: "kubernetes", cluster = self.args.features.cluster_id, "source of services");
        let drain = &self.process.drain;
        let first = kubernetes::start(&client, options, self.updates.clone(), drain);
        let features = &self.args.features;
        let machines = cluster::Options {
            replica: features.pod_name.clone(),
            grace: features.workload_entry_grace_period,
            max_age: self.args.keepalive.max_server_connection_age,
        };
        let discovery = Arc::clone(self.discovery);
        cluster::start(client.clone(), discovery, machines, drain.clone());
        let wanted = self.discovery.gateway_namespaces.subscribe();
        secrets::start(client, wanted, self.updates.clone(), drain.clone());
        first
    }

    fn start_config(&self, mesh: &MeshConfig, has_services: bool) -> anyhow::Result<Config> {
        let named = mcp::sources(mesh);
        if let Some(folder) = &self.args.config_dir {
            if !named.is_empty() {
                tracing::warn!("--configDir is given: the mesh's configSources are not asked");
            }
            let (loaded, first) = oneshot::channel();
            task::spawn(
                "config-files",
                follow_folder(folder.clone(), self.updates.clone(), loaded),
            );
            return Ok(Config::Folder(first));
        }
        let Some(source) = named.first() else {
            tracing::warn!(
                "no source of configuration: neither configSources in the mesh's settings nor --configDir"
            );
            return Ok(Config::None);
        };
        let address = &source.address;
        if named.len() > 1 {
            tracing::warn!(
                used = address,
                "several configSources: only the first is asked"
            );
        }
        let args = self.args;
        let domain = match mesh.trust_domain.as_str() {
            "" => &args.domain,
            domain => domain,
        };
        let galley = format!(
            "spiffe://{domain}/ns/{}/sa/{GALLEY_ACCOUNT}",
            args.namespace
        );
        let tls = mcp::source_tls(source, &own_certificate(args), &galley)
            .map_err(|error| Usage(format!("configSources: {address}: {error}")))?;
        let is_tls = tls.is_some();
        let channel = grpc::channel(address, tls, &ClientOptions::default())
            .map_err(|error| Usage(format!("configSources: {error}")))?;
        let metrics =
            McpMetrics::register("pilot", &self.process.registry).context("register metrics")?;
        let options = SinkOptions {
            id: format!("pilot-discovery.{}", self.args.namespace),
            collections: mcp::subscriptions(has_services),
            max_message: self.args.mcp_max_message,
            ..SinkOptions::default()
        };
        tracing::info!(target: "mcp", address, tls = is_tls, "source of configuration");
        let sink = Sink::dial(channel, options, metrics, self.process.drain.clone());
        let view = sink.view();
        task::spawn("mcp", mcp::run(sink, self.updates.clone()));
        Ok(Config::Mcp(view))
    }
}

async fn follow_folder(
    folder: PathBuf,
    updates: mpsc::Sender<Update>,
    loaded: oneshot::Sender<()>,
) {
    let debounce = Debounce {
        quiet: Duration::from_millis(20),
        cap: Duration::from_millis(200),
        ..Debounce::default()
    };
    let mut watcher = FileWatcher::folders([&folder], debounce);
    let mut loaded = Some(loaded);
    loop {
        if load_folder(&folder, &updates).await.is_err() {
            return;
        }
        if let Some(loaded) = loaded.take() {
            // Nobody waits any more when the process already ends.
            let _ = loaded.send(());
        }
        watcher.changed().await;
    }
}

async fn load_folder(
    folder: &Path,
    updates: &mpsc::Sender<Update>,
) -> Result<(), mpsc::error::SendError<Update>> {
    match file::load_folder(folder) {
        Ok(found) => {
            for problem in &found.problems {
                tracing::warn!(target: "config", place = problem.place, problem = problem.problem, "left out");
            }
            for update in found.updates {
                updates.send(update).await?;
            }
        }
        Err(error) => {
            tracing::warn!(target: "config", folder = %folder.display(), %error, "cannot be read; what is known holds");
        }
    }
    Ok(())
}
