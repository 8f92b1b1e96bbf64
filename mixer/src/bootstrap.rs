//! Puts the server together: store → runtime → service; the ports are taken before anything starts.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use proto_component::grpc::{GrpcMetrics, ServerOptions};
use proto_component::listen::{Incoming, Listener};
use proto_component::monitoring::{self, Monitoring};
use proto_component::readiness::Readiness;
use proto_component::{Process, task};

use crate::adapter::BuildContext;
use crate::adapter::prometheus::Registry;
use crate::args::ServerArgs;
use crate::load_shed::LoadShedder;
use crate::metrics::Metrics;
use crate::runtime::Runtime;
use crate::seldom::Seldom;
use crate::server::Service;
use crate::server::transport::Transport;
use crate::{debug, probe, store};

const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A server whose ports are taken.
pub struct Server {
    incoming: Incoming,
    /// With mutual TLS.
    secured: Option<Incoming>,
    transport: Arc<Transport>,
    process: Process,
    /// The ports taken: gRPC, monitoring, prometheus, gRPC with mutual TLS.
    ports: [Option<u16>; 4],
}

impl Server {
    /// Takes the ports and starts everything but the service itself.
    ///
    /// # Errors
    /// When a port is taken, or a flag is wrong.
    pub async fn new(process: &Process, args: &ServerArgs) -> anyhow::Result<Self> {
        let ignored = args.ignored.given();
        if !ignored.is_empty() {
            tracing::warn!(flags = ignored.join(" "), "flags without effect");
        }
        let metrics = Metrics::register(&process.registry).context("register metrics")?;
        let prometheus = Arc::new(Registry::default());
        let context = BuildContext {
            prometheus: prometheus.clone(),
            dropped: metrics.dropped.clone(),
            ..BuildContext::default()
        };
        let runtime = Runtime::new(context, metrics.clone(), &args.config_default_namespace);
        let table = runtime.table();
        let pods = Arc::default();
        let (configurations, status) =
            store::start(&args.config_store_url, &args.tls, process, &pods)?;
        let (address, flag) = args.listen_address();
        let listener = Listener::bind_text(&address, flag).await?;
        let address = format!(":{}", args.prometheus_port);
        let scraped = Listener::bind_text(&address, "--prometheusPort").await?;
        let secured = secured(args, process).await?;
        if args.self_metrics_port != 0 {
            let pages = Monitoring::new(process);
            let pages = debug::pages(pages, table.clone(), status.clone());
            let address = format!(":{}", args.self_metrics_port);
            let pages = pages.bind(&address, "--selfMetricsPort").await?;
            pages.start(process);
        }
        let monitoring = debug::pages(Monitoring::new(process), table.clone(), status);
        let address = format!(":{}", args.monitoring_port);
        let monitoring = monitoring.bind(&address, "--monitoringPort").await?;
        let monitoring_port = match monitoring.address() {
            proto_component::args::Address::Tcp(address) => Some(address.port()),
            proto_component::args::Address::Unix(_) => None,
        };
        let (secured, secure_port) = secured.unzip();
        let ports = [
            listener.port(),
            monitoring_port,
            scraped.port(),
            secure_port.flatten(),
        ];
        monitoring.start(process);
        serve_prometheus(scraped, prometheus, process);
        probe::start(&args.probes, &process.readiness, &process.drain);
        let ready = process.readiness.condition("configuration");
        warn_without_configuration(process.readiness.clone(), args.config_wait_timeout);
        let following = Arc::new(runtime).run(configurations, ready, process.drain.clone());
        task::spawn("runtime", following);
        let service = Service {
            table,
            pods,
            metrics,
            shedder: LoadShedder::new(args.shed.limits()),
            failures: Seldom::default(),
        };
        let transport = Transport {
            service,
            options: ServerOptions {
                max_concurrent_streams: args.max_concurrent_streams,
                ..ServerOptions::default()
            },
            max_message: args.max_message_size,
            metrics: GrpcMetrics::register(&process.registry, &[]).context("register metrics")?,
        };
        Ok(Self {
            incoming: listener.plaintext(&process.drain),
            secured,
            transport: Arc::new(transport),
            process: process.clone(),
            ports,
        })
    }

    /// The ports taken: gRPC, monitoring, prometheus, gRPC with mutual TLS.
    #[must_use]
    pub fn ports(&self) -> [Option<u16>; 4] {
        self.ports
    }

    /// Serves until the drain.
    pub async fn run(self) {
        let [grpc_port, monitoring, prometheus, secure] = self.ports;
        tracing::info!(address = %self.incoming.address(), ?grpc_port, ?monitoring, ?prometheus, ?secure, "serving");
        let drain = self.process.drain;
        if let Some(secured) = self.secured {
            let serving = self.transport.clone().serve(secured, drain.clone());
            task::spawn_drained("grpc-tls", serving);
        }
        self.transport.serve(self.incoming, drain).await;
    }
}

/// The port with mutual TLS, if there is to be one.
async fn secured(
    args: &ServerArgs,
    process: &Process,
) -> anyhow::Result<Option<(Incoming, Option<u16>)>> {
    if args.secure_port == 0 {
        return Ok(None);
    }
    let tls = args
        .tls
        .server()
        .context("read the certificates for --securePort")?;
    let address = format!(":{}", args.secure_port);
    let listener = Listener::bind_text(&address, "--securePort").await?;
    let port = listener.port();
    Ok(Some((listener.tls(tls, &process.drain), port)))
}

/// Says so when no configuration has come in time: until then every call is answered with UNAVAILABLE.
fn warn_without_configuration(readiness: Readiness, patience: Duration) {
    task::spawn("config-wait", async move {
        if tokio::time::timeout(patience, readiness.wait())
            .await
            .is_err()
        {
            tracing::error!(waited = ?patience, missing = readiness.missing().join(", "), "no configuration has come yet");
        }
    });
}

/// The metrics of all prometheus handlers, until the process ends.
fn serve_prometheus(listener: Listener, registry: Arc<Registry>, process: &Process) {
    let page = get(move || {
        let registry = registry.clone();
        async move {
            // Much text where there are many series: not on a thread that answers calls.
            let text = tokio::task::spawn_blocking(move || registry.expose()).await;
            text.map(|text| ([(header::CONTENT_TYPE, PROMETHEUS_TEXT)], text))
                .map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
        }
    });
    let router = Router::new().route("/metrics", page);
    let incoming = listener.plaintext(&proto_component::drain::Drain::never());
    let drain = process.drain.clone();
    task::spawn("prometheus", async move {
        monitoring::serve_http(incoming, router, async move { drain.expired().await }).await;
    });
}
