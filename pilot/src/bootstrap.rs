//! Puts Pilot together: settings, sources, the discovery task, the ports; then runs until the process drains.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use proto::istio::mesh::v1alpha1::MeshConfig;
use proto_component::drain::Drain;
use proto_component::file_watcher::FileWatcher;
use proto_component::grpc::{self, GrpcMetrics, ServerOptions};
use proto_component::listen::Listener;
use proto_component::monitoring::{Monitoring, serve_http};
use proto_component::process::{Process, Usage};
use proto_component::task;
use proto_component::tls::{ClientAuth, PemFiles, ServerTls};
use tokio::sync::{mpsc, watch};

mod ignored;
mod sources;

use crate::args::Discovery as Args;
use crate::config::Update;
use crate::metrics::{Metrics, count_troubles};
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
    warn_of_what_is_ignored(&args);
    let mesh_config = read_mesh(&args)?;
    warn_of_ignored_settings(&mesh_config);
    let mesh = Arc::new(Mesh::from(&mesh_config));
    let metrics = Metrics::register(&process.registry).context("register metrics")?;
    let discovery = Discovery::new(args.features.clone(), metrics);
    count_troubles_of(&discovery, &process)?;

    // Sockets first: a port that is taken must be said at once.
    let plaintext = Listener::bind_text(&args.grpc_address, "--grpcAddr").await?;
    let secure = bind_secure(&args).await?;
    let http = Listener::bind_text(&args.http_address, "--httpAddr").await?;
    let monitoring = debug::pages(Monitoring::new(&process), &discovery)
        .bind(&args.monitoring_address, "--monitoringAddr")
        .await?;

    let (updates, received) = mpsc::channel(UPDATES);
    let config_ready = process.readiness.condition("config");
    let (mesh_changes, followed_mesh) = watch::channel(Arc::clone(&mesh));
    let starting = sources::Starting {
        args: &args,
        process: &process,
        discovery: &discovery,
        updates: &updates,
    };
    let sources = starting.start(&mesh_config, followed_mesh).await?;
    watch_mesh(&args, updates, mesh_changes);

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
    let authenticator = sources.authenticator.clone();
    let server = Server::new(Arc::clone(&discovery), limits, authenticator);
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

/// The files of this process's own certificate.
fn own_certificate(args: &Args) -> PemFiles {
    let folder = &args.features.cert_dir;
    PemFiles::new(
        folder.join("cert-chain.pem"),
        folder.join("key.pem"),
        Some(folder.join("root-cert.pem")),
    )
}

/// The ports with TLS, if there is a certificate: one demands the client's too.
async fn bind_secure(args: &Args) -> anyhow::Result<Vec<(Listener, ServerTls)>> {
    let folder = &args.features.cert_dir;
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
        let tls = ServerTls::from_files(own_certificate(args), auth, &["h2"])
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

/// Says which settings have no effect.
fn warn_of_ignored_settings(mesh: &MeshConfig) {
    let settings = ignored::settings(mesh);
    if !settings.is_empty() {
        tracing::warn!(?settings, "these settings of the mesh have no effect");
    }
}

/// Metrics of what is wrong in the newest push context.
fn count_troubles_of(discovery: &Arc<Discovery>, process: &Process) -> anyhow::Result<()> {
    let newest = Arc::downgrade(discovery);
    count_troubles(&process.registry, move || {
        Some(Arc::clone(&newest.upgrade()?.current().push.status))
    })
    .context("register metrics")
}

/// Says which flags have no effect, and that what stands in the file of the mesh's networks is not served, if anything does.
fn warn_of_what_is_ignored(args: &Args) {
    for (flag, reason) in args.compatibility.given() {
        tracing::warn!(flag, reason, "the flag has no effect");
    }
    let path = &args.networks_config;
    let Ok(text) = std::fs::read_to_string(path) else {
        return;
    };
    let documents = proto::yaml::parse_documents(&text).into_iter().flatten();
    let is_empty = |networks: &serde_json::Value| match networks {
        serde_json::Value::Object(networks) => networks.is_empty(),
        other => other.is_null(),
    };
    let mut networks = documents.filter_map(|document| document.value.get("networks").cloned());
    if networks.any(|networks| !is_empty(&networks)) {
        tracing::warn!(file = %path.display(), "several networks are not supported: endpoints of all are sent to every proxy");
    }
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
fn watch_mesh(args: &Args, updates: mpsc::Sender<Update>, changes: watch::Sender<Arc<Mesh>>) {
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
                    warn_of_ignored_settings(&mesh);
                    let mesh = Arc::new(Mesh::from(&mesh));
                    changes.send_replace(Arc::clone(&mesh));
                    if updates.send(Update::Mesh(mesh)).await.is_err() {
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
