//! Builds a running injector: settings, webhook with its certificate, monitoring, and the watch over the files.

use std::sync::Arc;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use axum::Json;
use axum::routing::get;
use proto_component::Process;
use proto_component::file_watcher::FileWatcher;
use proto_component::listen::Listener;
use proto_component::monitoring::{Monitoring, serve_http};
use proto_component::process::Usage;
use proto_component::redact::redact;
use proto_component::task;
use proto_component::tls::PemFiles;
use proto_component::tls::{ClientAuth, ServerTls};
use tokio::sync::oneshot;

use crate::args::ServeArgs;
use crate::config::{Files, Settings};
use crate::proxy_configs::{self, ProxyConfigs, Source};
use crate::registration;
use crate::webhook::{Metrics, Webhook, routes};

/// Serves the webhook until the process drains.
///
/// # Errors
/// When a file cannot be used or a port cannot be taken.
pub async fn run(args: ServeArgs, process: Process) -> anyhow::Result<()> {
    let files = args.files.files();
    let mut settings = Settings::load(&files).map_err(|error| Usage(error.to_string()))?;
    if args.watches_proxy_configs {
        let client = args.registration.client.client().await?;
        settings.proxy_configs = follow_cluster(client, &process);
    }
    let settings = Arc::new(ArcSwap::from_pointee(settings));
    let tls = ServerTls::from_files(
        PemFiles::new(&args.tls_cert_file, &args.tls_key_file, None),
        ClientAuth::None,
        &["http/1.1"],
    )
    .map_err(|error| Usage(error.to_string()))?;

    let metrics = Metrics::new(&process.registry).context("register metrics")?;
    let shown = settings.clone();
    let configz = get(move || {
        let settings = shown.load();
        let mut shown = serde_json::json!({"version": settings.version, "values": settings.values, "mesh": settings.mesh});
        redact(&mut shown);
        async move { Json(shown) }
    });
    Monitoring::new(&process)
        .private_debug("/debug/configz", "settings in force", configz)
        .bind(&format!(":{}", args.monitoring_port), "--monitoringPort")
        .await?
        .start(&process);

    let listener = Listener::bind_text(&format!(":{}", args.port), "--port").await?;
    tracing::info!(address = %listener.address(), version = settings.load().version, "webhook");
    let incoming = listener.tls(tls, &process.drain);
    task::spawn("settings", follow(files, settings.clone()));
    if args.registration.is_kept {
        let client = args.registration.client.client().await?;
        registration::keep(&client, args.registration, process.drain.clone());
    }
    process.readiness.condition("webhook").set();
    let drain = process.drain.clone();
    serve_http(
        incoming,
        routes(Webhook { settings, metrics }),
        async move { drain.signaled().await },
    )
    .await;
    Ok(())
}

/// The cluster's ProxyConfigs; the process is not ready before they are known.
fn follow_cluster(client: kube::Client, process: &Process) -> Source {
    let known = Arc::new(ArcSwap::from_pointee(ProxyConfigs::default()));
    let condition = process.readiness.condition("proxy-configs");
    let (listed, is_listed) = oneshot::channel();
    let changes = proxy_configs::watch(client);
    task::spawn(
        "proxy-configs",
        proxy_configs::follow(changes, known.clone(), listed),
    );
    task::spawn("proxy-configs-listed", async move {
        if is_listed.await.is_ok() {
            condition.set();
        }
    });
    Source::Cluster(known)
}

/// Takes the files over whenever they change and are sound.
async fn follow(files: Files, settings: Arc<ArcSwap<Settings>>) {
    let paths = [
        &files.inject_config,
        &files.inject_values,
        &files.mesh_config,
    ];
    let mut watcher = FileWatcher::files(paths.into_iter().flatten());
    loop {
        watcher.changed().await;
        match Settings::load(&files) {
            Ok(mut loaded) => {
                loaded.proxy_configs = settings.load().proxy_configs.clone();
                tracing::info!(version = loaded.version, "settings changed");
                settings.store(Arc::new(loaded));
            }
            Err(error) => {
                tracing::error!(%error, "settings not taken over; the last good ones stay in force");
            }
        }
    }
}
