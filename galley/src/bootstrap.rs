//! Builds the server's parts in the order of the data, takes the sockets, then starts everything.

use crate::{
    analysis::{
        folder::{self, Folder, Found},
        status,
    },
    args::ServerArgs,
    debug,
    event::{Event, SourceName},
    ingress_status::{self, IngressStatus},
    metrics::{RuntimeMetrics, ValidationMetrics},
    probe,
    processor::{Outputs, Processor, View},
    schema,
    server::{RefusalLog, allow_all, follow_access_list},
    snapshot::store::{self, Kept, Store},
    source,
    validation::{registration, webhook},
};
use anyhow::Context as _;
use arc_swap::ArcSwap;
use proto_component::{
    Process,
    drain::Drain,
    grpc::{ClientOptions, GrpcMetrics, ServerOptions, channel, serve},
    kubernetes::lease,
    listen::Listener,
    monitoring::{Monitoring, serve_http},
    process::Usage,
    task,
    tls::{ClientAuth, ClientTls, PemFiles, ServerIdentity, ServerTls},
};
use proto_mcp::{
    metrics::McpMetrics,
    source::{STREAM_PATH, Source},
    xds::{self, Xds},
};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::{mpsc, watch};
use tonic::service::Routes;

/// The Lease of whoever of several replicas writes to the cluster.
const LEASE: &str = "istio-galley";
/// Events on their way to the processor: each is a full state, so few are enough.
const EVENTS: usize = 4;

/// Runs the server until the drain.
pub async fn run(args: ServerArgs, process: Process) -> anyhow::Result<()> {
    for flag in args.compatibility.given() {
        tracing::warn!(flag, "the flag is Istio's and has no effect here");
    }
    let kubernetes = kubernetes(&args).await?;
    let mut sources: Vec<SourceName> = Vec::new();
    sources.extend(args.config_path.as_ref().map(|_| SourceName::Files));
    sources.extend(
        kubernetes
            .as_ref()
            .filter(|k| k.is_source)
            .map(|_| SourceName::Cluster),
    );
    if sources.is_empty() {
        let hint =
            "--configPath DIR or --enable-kubernetes: configuration must come from somewhere";
        return Err(Usage(hint.to_owned()).into());
    }
    let drain = process.drain.clone();
    let metrics = RuntimeMetrics::register(&process.registry)?;

    // The sockets first: what cannot run says so at once.
    let ready = process.readiness.condition("configuration");
    let view = Arc::new(ArcSwap::from_pointee(View::default()));
    let source = mcp_source(&args, &process)?;
    let found = Found::default();
    let pages = Monitoring::new(&process);
    let monitoring = debug::pages(pages, view.clone(), source.clone(), found.clone())
        .bind(&format!(":{}", args.monitoring_port), "--monitoringPort")
        .await?;
    let mcp = bind_mcp(&args).await?;
    let webhook = bind_webhook(&args).await?;

    // From source to snapshot.
    let (store_queue, store_latest) = watch::channel(None);
    let stored = open_store(&args, store_latest, &metrics, &process).await?;
    let outputs = Outputs {
        source: source.clone(),
        store: store_queue,
        view,
        metrics,
        ingress_status: kubernetes.as_ref().and_then(Kubernetes::ingress_status),
        ready,
    };
    let (events, taken) = mpsc::channel::<Event>(EVENTS);
    Processor::new(
        args.domain.clone(),
        args.enable_service_discovery,
        sources,
        stored,
        outputs,
    )
    .start(taken, drain.clone());
    source::mesh_file::watch(args.mesh_config_file.clone(), events.clone(), drain.clone());
    if let Some(path) = args.config_path.clone() {
        source::file::watch(path.clone(), events.clone(), drain.clone());
        if args.kubernetes.writes_status {
            let mesh_config = args.mesh_config_file.clone();
            let folder = Folder { path, mesh_config };
            folder::keep(folder, &found, source.changes(), drain.clone());
        }
    }
    let validation_metrics = ValidationMetrics::register(&process.registry)?;
    if let Some(kubernetes) = kubernetes {
        kubernetes.start(&args, events, &source, &validation_metrics, &drain);
    }

    // Those who ask.
    monitoring.start(&process);
    if let Some(mcp) = mcp {
        start_mcp(mcp, &args, &source, &process)?;
    }
    if let Some((listener, tls)) = webhook {
        start_webhook(listener, tls, validation_metrics, &process);
    }
    push_to_sink(&args, &source)?;
    start_probes(&args, &process);
    drain.signaled().await;
    Ok(())
}

/// What is done with a cluster.
struct Kubernetes {
    client: kube::Client,
    is_source: bool,
    ingress_status: IngressStatus,
}

/// A client of the cluster, if anything needs one.
async fn kubernetes(args: &ServerArgs) -> anyhow::Result<Option<Kubernetes>> {
    let flags = &args.kubernetes;
    let is_source = flags.is_source(args.config_path.is_some());
    // Status is written to a cluster's objects; what a folder has is told otherwise.
    if !is_source && !flags.registers_webhook {
        return Ok(None);
    }
    let client = flags.client.client().await;
    // Without any flag about it, a cluster is only a guess; the hint says what else may have been meant.
    let client =
        client.map_err(|error| Usage(format!("no --configPath, and no cluster: {error:#}")))?;
    let namespace = flags.deployment_namespace.clone();
    Ok(Some(Kubernetes {
        client,
        is_source,
        ingress_status: IngressStatus::new(namespace, args.enable_service_discovery),
    }))
}

impl Kubernetes {
    fn ingress_status(&self) -> Option<IngressStatus> {
        self.is_source.then(|| self.ingress_status.clone())
    }

    fn start(
        self,
        args: &ServerArgs,
        events: mpsc::Sender<Event>,
        source: &Source,
        metrics: &ValidationMetrics,
        drain: &Drain,
    ) {
        let flags = &args.kubernetes;
        if self.is_source {
            let wanted = source::kube::Wanted {
                service_entries: args.enable_service_discovery,
                pods: args.serves_pods,
            };
            source::kube::watch(&self.client, wanted, events, drain.clone());
        }
        let leadership = lease::elect(self.client.clone(), LEASE, &flags.election, drain.clone());
        if flags.registers_webhook && args.enable_validation {
            registration::keep(
                self.client.clone(),
                flags.clone(),
                metrics.clone(),
                leadership.clone(),
                drain.clone(),
            );
        } else if flags.registers_webhook {
            let name = flags.webhook_name.clone();
            let client = self.client.clone();
            registration::remove(client, name, leadership.clone(), drain.clone());
        }
        if !self.is_source {
            return;
        }
        if flags.writes_status {
            let client = self.client.clone();
            status::keep(client, source.changes(), leadership.clone(), drain.clone());
        }
        let wanted = self.ingress_status.wanted();
        ingress_status::keep(self.client, wanted, leadership, drain.clone());
    }
}

fn mcp_source(args: &ServerArgs, process: &Process) -> anyhow::Result<Source> {
    let authorize = if args.insecure {
        allow_all()
    } else {
        let log = RefusalLog {
            burst: args.authz_failure_log_burst,
            every: args.authz_failure_log_freq,
        };
        follow_access_list(args.access_list_file.clone(), log, process.drain.clone())?
    };
    let metrics = McpMetrics::register("galley", &process.registry)?;
    let drain = process.drain.clone();
    Ok(Source::new(
        schema::collections(),
        metrics,
        authorize,
        drain,
    ))
}

async fn open_store(
    args: &ServerArgs,
    latest: watch::Receiver<Option<Kept>>,
    metrics: &RuntimeMetrics,
    process: &Process,
) -> anyhow::Result<Option<Kept>> {
    let Some(folder) = &args.data_dir else {
        tracing::info!("no --data-dir: the last good snapshot is not kept");
        return Ok(None);
    };
    let store = Store::open(folder).await?;
    let stored = match store.load() {
        Ok(stored) => stored,
        Err(error) => {
            let error = format!("{error:#}");
            tracing::error!(target: "snapshot", error, "the last good snapshot cannot be used");
            None
        }
    };
    store::keep(
        store,
        stored.clone(),
        latest,
        metrics.clone(),
        process.drain.clone(),
    );
    Ok(stored)
}

/// The MCP socket with its TLS; none if the server is switched off.
async fn bind_mcp(args: &ServerArgs) -> anyhow::Result<Option<(Listener, Option<ServerTls>)>> {
    if !args.enable_server {
        return Ok(None);
    }
    let tls = if args.insecure {
        None
    } else {
        let tls = ServerTls::from_files(mtls_files(args), ClientAuth::Required, &["h2"])
            .context("MCP server (--tlsCertFile, --tlsKeyFile, --caCertFile, or --insecure)")?;
        Some(tls)
    };
    let listener = Listener::bind_text(&args.server_address, "--server-address").await?;
    Ok(Some((listener, tls)))
}

fn start_mcp(
    (listener, tls): (Listener, Option<ServerTls>),
    args: &ServerArgs,
    source: &Source,
    process: &Process,
) -> anyhow::Result<()> {
    let drain = short_drain(&process.drain);
    tracing::info!(target: "mcp", address = %listener.address(), tls = tls.is_some(), "serving MCP");
    let incoming = match tls {
        Some(tls) => listener.tls(tls, &drain),
        None => listener.plaintext(&drain),
    };
    let options = ServerOptions {
        max_concurrent_streams: args.max_concurrent_streams,
        ..ServerOptions::default()
    }
    .with_keepalive(&args.keepalive);
    let paths = [STREAM_PATH, xds::STREAM_PATH, xds::DELTA_PATH].map(|path| (path, "bidi_stream"));
    let metrics = GrpcMetrics::register(&process.registry, &paths)?;
    let largest = args.max_received_message_size;
    let routes = Routes::new(source.service(largest))
        .add_service(Xds::new(source.clone(), schema::type_urls()).service(largest));
    task::spawn_drained("mcp-server", async move {
        if let Err(error) = serve(incoming, routes, &options, Some(metrics), drain).await {
            tracing::error!(target: "mcp", %error, "MCP server ended");
        }
    });
    Ok(())
}

/// How long a sink may take to read what it was sent when we end.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A drain that begins with the process' own and has less grace: streams never end by themselves, and a sink that stopped
/// reading must not hold up the end.
fn short_drain(drain: &Drain) -> Drain {
    let (trigger, short) = proto_component::drain::channel();
    let drain = drain.clone();
    task::spawn("mcp-drain", async move {
        drain.signaled().await;
        trigger.drain(drain.remaining().unwrap_or(LAST_WORDS).min(LAST_WORDS));
    });
    short
}

/// The webhook's socket with its certificate; none if it is switched off, or its port is 0.
async fn bind_webhook(args: &ServerArgs) -> anyhow::Result<Option<(Listener, ServerTls)>> {
    if !args.enable_validation {
        return Ok(None);
    }
    let or =
        |own: &Option<PathBuf>, shared: &PathBuf| own.clone().unwrap_or_else(|| shared.clone());
    let files = PemFiles::new(
        or(&args.validation_cert_file, &args.tls_cert_file),
        or(&args.validation_key_file, &args.tls_key_file),
        None,
    );
    let tls = ServerTls::from_files(files, ClientAuth::None, &["http/1.1"])
        .context("webhook (--tlsCertFile, --tlsKeyFile, or --enable-validation=false)")?;
    let address = format!(":{}", args.validation_port);
    let listener = Listener::bind_text(&address, "--validation-port").await?;
    Ok(Some((listener, tls)))
}

fn start_webhook(
    listener: Listener,
    tls: ServerTls,
    metrics: ValidationMetrics,
    process: &Process,
) {
    tracing::info!(target: "validation", address = %listener.address(), "serving the admission webhook");
    let drain = process.drain.clone();
    let incoming = listener.tls(tls, &drain);
    let router = webhook::router(metrics);
    task::spawn_drained("webhook", async move {
        let end = drain.clone();
        tokio::select! {
            () = serve_http(incoming, router, async move { end.signaled().await }) => {}
            () = drain.expired() => {}
        }
    });
}

fn push_to_sink(args: &ServerArgs, source: &Source) -> anyhow::Result<()> {
    let Some(target) = &args.sink_address else {
        return Ok(());
    };
    let tls = match args.sink_auth_mode.as_str() {
        "" | "NONE" => None,
        "MUTUAL_TLS" => Some(ClientTls::from_files(
            mtls_files(args),
            match args.sink_names.as_slice() {
                [] => ServerIdentity::Name,
                names => ServerIdentity::AnyOf(names.to_vec()),
            },
            &["h2"],
        )?),
        other => {
            let hint = format!("--sinkAuthMode {other}: use NONE or MUTUAL_TLS");
            return Err(Usage(hint).into());
        }
    };
    let options = ClientOptions {
        keepalive_interval: args.keepalive.interval,
        keepalive_timeout: args.keepalive.timeout,
        ..ClientOptions::default()
    };
    let channel =
        channel(target, tls, &options).map_err(|error| Usage(format!("--sinkAddress: {error}")))?;
    let version = proto_component::version::version().version.to_owned();
    let mut metadata = vec![("config.source.version".to_owned(), version)];
    for pair in &args.sink_meta {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| Usage(format!("--sinkMeta {pair}: write KEY=VALUE")))?;
        metadata.push((key.to_lowercase(), value.to_owned()));
    }
    let source = source.clone();
    task::spawn("mcp-push", async move {
        source.push_to(channel, &metadata).await;
    });
    Ok(())
}

fn start_probes(args: &ServerArgs, process: &Process) {
    let drain = &process.drain;
    if let Some(path) = args.liveness_probe_path.clone() {
        probe::keep_alive(path, args.liveness_probe_interval / 2, None, drain.clone());
    }
    if let Some(path) = args.readiness_probe_path.clone() {
        let ready = Some(process.readiness.clone());
        probe::keep_alive(
            path,
            args.readiness_probe_interval / 2,
            ready,
            drain.clone(),
        );
    }
}

fn mtls_files(args: &ServerArgs) -> PemFiles {
    PemFiles::new(
        args.tls_cert_file.clone(),
        args.tls_key_file.clone(),
        Some(args.ca_cert_file.clone()),
    )
}
