//! Puts Pilot together: settings, sources, the discovery task, the ports; then runs until the process drains.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use proto::istio::mesh::v1alpha1::MeshConfig;
use proto_component::drain::Drain;
use proto_component::file_watcher::{Debounce, FileWatcher};
use proto_component::grpc::{self, ClientOptions, GrpcMetrics, ServerOptions};
use proto_component::listen::Listener;
use proto_component::monitoring::{Monitoring, serve_http};
use proto_component::process::{Process, Usage};
use proto_component::task;
use proto_component::tls::{ClientAuth, PemFiles, ServerTls};
use proto_mcp::metrics::McpMetrics;
use proto_mcp::sink::{Sink, SinkOptions, SinkView};
use tokio::sync::mpsc;

use crate::args::{Discovery as Args, RegistryKind};
use crate::config::{Update, file, mcp};
use crate::metrics::Metrics;
use crate::model::Mesh;
use crate::xds::discovery::{self, UPDATES};
use crate::xds::server::Server;
use crate::xds::stream::StreamLimits;
use crate::xds::{Discovery, debug};

/// Runs `pilot-discovery discovery`.
///
/// # Errors
/// When a flag does not fit, a file cannot be read, or a port is taken.
pub async fn run(args: Args, process: Process) -> anyhow::Result<()> {
    if args.registries.contains(&RegistryKind::Kubernetes) {
        let text =
            "--registries Kubernetes: services come over MCP (from galley); use --registries MCP";
        return Err(Usage(text.to_owned()).into());
    }
    let mesh_config = read_mesh(&args)?;
    let mesh = Arc::new(Mesh::from(&mesh_config));
    let metrics = Metrics::register(&process.registry).context("register metrics")?;
    let discovery = Discovery::new(args.features.clone(), metrics);

    // Sockets first: a port that is taken must be said at once.
    let plaintext = Listener::bind_text(&args.grpc_address, "--grpcAddr").await?;
    let secure = bind_secure(&args).await?;
    let http = Listener::bind_text(&args.http_address, "--httpAddr").await?;
    let monitoring = debug::pages(Monitoring::new(&process), &discovery)
        .bind(&args.monitoring_address, "--monitoringAddr")
        .await?;

    let (updates, received) = mpsc::channel(UPDATES);
    let config_ready = process.readiness.condition("config");
    let sources = start_sources(&args, &mesh_config, &process, &updates)?;
    watch_mesh(&args, updates);

    monitoring.start(&process);
    start_http(http, &discovery, &process);

    let limits = StreamLimits {
        drain: process.drain.clone(),
        max_age: args.keepalive.max_server_connection_age,
    };
    let options = ServerOptions {
        max_concurrent_streams: args.features.grpc_max_streams,
        ..ServerOptions::default()
    }
    .with_keepalive(&args.keepalive);
    let grpc_metrics = GrpcMetrics::register(&process.registry, &[]).ok();
    let server = Server::new(Arc::clone(&discovery), limits);
    tracing::info!(address = %plaintext.address(), "xds");
    let mut serving = vec![serve(
        plaintext.plaintext(&process.drain),
        &server,
        &options,
        grpc_metrics.clone(),
        &process,
    )];
    for (listener, tls) in secure {
        tracing::info!(address = %listener.address(), "xds with tls");
        serving.push(serve(
            listener.tls(tls, &process.drain),
            &server,
            &options,
            grpc_metrics.clone(),
            &process,
        ));
    }
    let ready = Arc::clone(&discovery);
    task::spawn("ready", async move {
        ready.ready().await;
        config_ready.set();
    });
    discovery::run(
        discovery,
        args.domain.clone(),
        mesh,
        received,
        sources.synced(),
        process.drain.clone(),
    )
    .await;
    for server in serving {
        server.await.context("xds server")??;
    }
    Ok(())
}

/// The pages of the monitoring port, on the port where Istio's tools look for them.
fn start_http(listener: Listener, discovery: &Arc<Discovery>, process: &Process) {
    let pages = debug::pages(Monitoring::new(process), discovery).router();
    tracing::info!(address = %listener.address(), "http");
    let drain = process.drain.clone();
    let incoming = listener.plaintext(&Drain::never());
    task::spawn("http", async move {
        serve_http(incoming, pages, async move { drain.expired().await }).await;
    });
}

fn serve(
    incoming: proto_component::listen::Incoming,
    server: &Server,
    options: &ServerOptions,
    metrics: Option<GrpcMetrics>,
    process: &Process,
) -> tokio::task::JoinHandle<anyhow::Result<()>> {
    let (routes, options, drain) = (server.routes(), options.clone(), process.drain.clone());
    task::spawn("xds", async move {
        grpc::serve(incoming, routes, &options, metrics, drain).await
    })
}

/// The ports with TLS, if there is a certificate: one demands the client's too.
async fn bind_secure(args: &Args) -> anyhow::Result<Vec<(Listener, ServerTls)>> {
    let folder = &args.features.cert_dir;
    let files = || {
        PemFiles::new(
            folder.join("cert-chain.pem"),
            folder.join("key.pem"),
            Some(folder.join("root-cert.pem")),
        )
    };
    if !folder.join("cert-chain.pem").exists() {
        tracing::info!(folder = %folder.display(), "no certificate: xds is served without tls only");
        return Ok(Vec::new());
    }
    let ports = [
        (
            &args.mtls_grpc_address,
            "--mtlsGrpcAddr",
            ClientAuth::Required,
        ),
        (
            &args.secure_grpc_address,
            "--secureGrpcAddr",
            ClientAuth::Optional,
        ),
    ];
    let mut bound = Vec::new();
    for (address, flag, auth) in ports {
        if address.is_empty() {
            continue;
        }
        let tls = ServerTls::from_files(files(), auth, &["h2"])
            .map_err(|error| Usage(error.to_string()))?;
        bound.push((Listener::bind_text(address, flag).await?, tls));
    }
    Ok(bound)
}

/// The mesh's settings from their file.
fn read_mesh(args: &Args) -> anyhow::Result<MeshConfig> {
    let path = mesh_path(args);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        // A file that was asked for must be there; the default one need not.
        Err(error)
            if error.kind() == std::io::ErrorKind::NotFound && args.mesh_config.is_none() =>
        {
            tracing::warn!(file = %path.display(), "no mesh settings: the defaults hold");
            String::new()
        }
        Err(error) => {
            return Err(Usage(format!("--meshConfig {}: {error}", path.display())).into());
        }
    };
    parse_mesh(&text, &args.trust_domain)
        .map_err(|error| Usage(format!("--meshConfig {}: {error}", path.display())).into())
}

fn mesh_path(args: &Args) -> PathBuf {
    args.mesh_config
        .clone()
        .unwrap_or_else(|| PathBuf::from("/etc/istio/config/mesh"))
}

fn parse_mesh(text: &str, trust_domain: &str) -> Result<MeshConfig, String> {
    let mut mesh = proto_mesh::mesh_config::from_yaml(text).map_err(|error| error.to_string())?;
    if !trust_domain.is_empty() {
        trust_domain.clone_into(&mut mesh.trust_domain);
    }
    Ok(mesh)
}

/// Follows the file of the mesh's settings. A broken file changes nothing.
fn watch_mesh(args: &Args, updates: mpsc::Sender<Update>) {
    let (path, trust_domain) = (mesh_path(args), args.trust_domain.clone());
    task::spawn("mesh-config", async move {
        let mut watcher = FileWatcher::files([&path]);
        loop {
            watcher.changed().await;
            let text = match std::fs::read_to_string(&path) {
                Ok(text) => text,
                Err(error) => {
                    tracing::warn!(file = %path.display(), %error, "mesh settings cannot be read; the last ones hold");
                    continue;
                }
            };
            match parse_mesh(&text, &trust_domain) {
                Ok(mesh) => {
                    tracing::info!(file = %path.display(), "mesh settings read again");
                    if updates
                        .send(Update::Mesh(Arc::new(Mesh::from(&mesh))))
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
                Err(error) => {
                    tracing::error!(file = %path.display(), error, "mesh settings are wrong; the last good ones hold");
                }
            }
        }
    });
}

/// Where configuration comes from.
enum Sources {
    Mcp(SinkView),
    Folder(tokio::sync::oneshot::Receiver<()>),
    None,
}

impl Sources {
    async fn synced(self) {
        match self {
            Sources::Mcp(view) => view.synced().await,
            Sources::Folder(loaded) => {
                // The reader has ended without having loaded: nothing will ever be synced.
                if loaded.await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
            Sources::None => {}
        }
    }
}

fn start_sources(
    args: &Args,
    mesh: &MeshConfig,
    process: &Process,
    updates: &mpsc::Sender<Update>,
) -> anyhow::Result<Sources> {
    let addresses = mcp::sources(mesh);
    if let Some(folder) = &args.config_dir {
        if !addresses.is_empty() {
            tracing::warn!("--configDir is given: the mesh's configSources are not asked");
        }
        let (loaded, first) = tokio::sync::oneshot::channel();
        task::spawn(
            "config-files",
            follow_folder(folder.clone(), updates.clone(), loaded),
        );
        return Ok(Sources::Folder(first));
    }
    let Some(address) = addresses.first() else {
        tracing::warn!(
            "no source of configuration: neither configSources in the mesh's settings nor --configDir"
        );
        return Ok(Sources::None);
    };
    if addresses.len() > 1 {
        tracing::warn!(
            used = address,
            "several configSources: only the first is asked"
        );
    }
    let channel = grpc::channel(address, None, &ClientOptions::default())
        .map_err(|error| Usage(format!("configSources: {error}")))?;
    let metrics = McpMetrics::register("pilot", &process.registry).context("register metrics")?;
    let options = SinkOptions {
        id: format!("pilot-discovery.{}", args.namespace),
        collections: mcp::subscriptions(),
        max_message: args.mcp_max_message,
        ..SinkOptions::default()
    };
    tracing::info!(target: "mcp", address, "source of configuration");
    let sink = Sink::dial(channel, options, metrics, process.drain.clone());
    let view = sink.view();
    task::spawn("mcp", mcp::run(sink, updates.clone()));
    Ok(Sources::Mcp(view))
}

async fn follow_folder(
    folder: PathBuf,
    updates: mpsc::Sender<Update>,
    loaded: tokio::sync::oneshot::Sender<()>,
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
