//! The command line of `mixs`: Istio's flags with Istio's defaults. Flags of parts that are not built here (worker pools, the
//! check cache that was always off, tracing collectors) are accepted and named once in the log.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use proto_component::args::{LogArgs, parse_duration};
use proto_component::tls::{
    self, ClientAuth, ClientTls, PemFiles, ServerIdentity, ServerTls, TlsError,
};
use proto_component::version::VersionArgs;
use proto_mesh::spiffe::SpiffeId;

use crate::attribute_args::AttributeArgs;
use crate::load_shed::{Limits, Mode};

/// The account of the usual source of configuration.
const GALLEY_ACCOUNT: &str = "istio-galley-service-account";

/// Mixer: policy checks and telemetry of the mesh.
#[derive(Debug, Parser)]
#[command(name = "mixs", disable_version_flag = true)]
pub struct Command {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
    /// Logging.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Serve checks and reports.
    Server(Box<ServerArgs>),
    /// Check the liveness or readiness of a local server by the age of its probe file.
    Probe(ProbeArgs),
    /// Print the version.
    Version(VersionArgs),
    /// Evaluate an attribute expression.
    Eval(EvalArgs),
    /// Ask a Mixer whether a request may pass.
    Check(CheckArgs),
    /// Report something to a Mixer.
    Report(ClientArgs),
}

/// Flags of `check` and `report`.
#[derive(Debug, Args)]
pub struct ClientArgs {
    /// Address of Mixer: HOST:PORT or unix:///PATH.
    #[arg(short, long, default_value = "localhost:9091")]
    pub mixer: String,
    /// How long to wait for the answer.
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Use mutual TLS.
    #[arg(long)]
    pub tls: bool,
    /// Certificates.
    #[command(flatten)]
    pub certificates: TlsArgs,
    /// Attributes.
    #[command(flatten)]
    pub attributes: AttributeArgs,
}

/// Flags of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The call.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Quotas to charge: name=amount,…
    #[arg(short, long)]
    pub quotas: Option<String>,
    /// Less than the amount is better than nothing.
    #[arg(long = "bestEffort")]
    pub best_effort: bool,
    /// Calls with the same id are charged once.
    #[arg(long = "deduplicationId")]
    pub deduplication_id: Option<String>,
}

/// Flags of `eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// The expression.
    #[arg(
        short,
        long,
        required_unless_present = "jsonl",
        conflicts_with = "jsonl"
    )]
    pub expression: Option<String>,
    /// Read cases from standard input instead, one a line, as JSON.
    #[arg(long)]
    pub jsonl: bool,
    /// Attributes.
    #[command(flatten)]
    pub attributes: AttributeArgs,
}

/// Flags of `probe`.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// The file that the server touches.
    #[arg(long = "probe-path")]
    pub path: PathBuf,
    /// How old it may be.
    #[arg(long, default_value = "4s", value_parser = parse_duration)]
    pub interval: Duration,
}

/// Flags of `server`.
#[derive(Clone, Debug, Args)]
pub struct ServerArgs {
    /// Port of the gRPC service.
    #[arg(short = 'p', long, default_value_t = 9091)]
    pub port: u16,
    /// Address of the gRPC service, instead of --port: tcp://IP:PORT or unix:///PATH.
    #[arg(long, default_value = "")]
    pub address: String,
    /// Port of metrics, health and debug pages.
    #[arg(long = "monitoringPort", default_value_t = 15014)]
    pub monitoring_port: u16,
    /// Port on which the prometheus adapter serves the mesh's metrics.
    #[arg(long = "prometheusPort", default_value_t = 42422)]
    pub prometheus_port: u16,
    /// Port of the gRPC service with mutual TLS, by the certificates below; 0: none.
    #[arg(long = "securePort", default_value_t = 0)]
    pub secure_port: u16,
    /// A second port of metrics, health and debug pages, where older installations look for them (9093); 0: none.
    #[arg(long = "selfMetricsPort", default_value_t = 0)]
    pub self_metrics_port: u16,
    /// Largest request in bytes.
    #[arg(long = "maxMessageSize", default_value_t = 1 << 20)]
    pub max_message_size: usize,
    /// Requests at once on one connection.
    #[arg(long = "maxConcurrentStreams", default_value_t = 1024)]
    pub max_concurrent_streams: u32,
    /// Where configuration comes from: mcp://HOST:PORT, mcps://HOST:PORT or fs://FOLDER.
    #[arg(long = "configStoreURL")]
    pub config_store_url: String,
    /// The namespace whose rules apply everywhere.
    #[arg(long = "configDefaultNamespace", default_value = "istio-system")]
    pub config_default_namespace: String,
    /// How long to wait for the first configuration before saying so.
    #[arg(long = "configWaitTimeout", default_value = "2m", value_parser = parse_duration)]
    pub config_wait_timeout: Duration,
    /// Certificates.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// When to refuse requests.
    #[command(flatten)]
    pub shed: LoadShedArgs,
    /// Probe files.
    #[command(flatten)]
    pub probes: ProbeFileArgs,
    /// Flags without effect.
    #[command(flatten)]
    pub ignored: IgnoredArgs,
}

/// Certificates for mcps:// and for mutual TLS.
#[derive(Clone, Debug, Args)]
pub struct TlsArgs {
    /// Certificate chain.
    #[arg(long = "certFile", default_value = "/etc/certs/cert-chain.pem")]
    pub certificate: PathBuf,
    /// Private key.
    #[arg(long = "keyFile", default_value = "/etc/certs/key.pem")]
    pub key: PathBuf,
    /// Trusted roots.
    #[arg(long = "caCertFile", default_value = "/etc/certs/root-cert.pem")]
    pub roots: PathBuf,
    /// Names (SPIFFE ids, DNS names) of which one must be in the server's certificate. Without any, mcps:// wants Galley's service
    /// account, in the trust domain and namespace of our own certificate.
    #[arg(
        long = "serverSubjectAltNames",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub server_names: Vec<String>,
}

/// Load shedding.
#[derive(Clone, Debug, Args)]
pub struct LoadShedArgs {
    /// What happens to requests that are too many.
    #[arg(long = "loadsheddingMode", value_enum, default_value = "disabled")]
    pub mode: Mode,
    /// Average latency beyond which requests are refused (0: none).
    #[arg(long = "averageLatencyThreshold", default_value = "0", value_parser = parse_duration)]
    pub average_latency: Duration,
    /// Accepted for compatibility: every request is measured.
    #[arg(long = "latencySamplesPerSecond", hide = true)]
    pub latency_samples: Option<f64>,
    /// How fast old latencies are forgotten.
    #[arg(long = "latencySampleHalflife", default_value = "1s", value_parser = parse_duration)]
    pub half_life: Duration,
    /// Requests a second below which latency does not matter.
    #[arg(long = "latencyEnforcementThreshold", default_value_t = 100.0)]
    pub enforcement_rate: f64,
    /// Requests a second beyond which they are refused (0: none).
    #[arg(long = "maxRequestsPerSecond", default_value_t = 0.0)]
    pub requests_per_second: f64,
    /// Requests at once beyond that rate (0: those of a second).
    #[arg(long = "burstSize", default_value_t = 0)]
    pub burst: u32,
}

/// Files that probes look at.
#[derive(Clone, Debug, Args)]
pub struct ProbeFileArgs {
    /// Touched while the process lives.
    #[arg(long = "livenessProbePath")]
    pub liveness_path: Option<PathBuf>,
    /// How often.
    #[arg(long = "livenessProbeInterval", default_value = "1s", value_parser = parse_duration)]
    pub liveness_interval: Duration,
    /// Touched while the server is ready.
    #[arg(long = "readinessProbePath")]
    pub readiness_path: Option<PathBuf>,
    /// How often.
    #[arg(long = "readinessProbeInterval", default_value = "1s", value_parser = parse_duration)]
    pub readiness_interval: Duration,
}

/// Flags that are taken and have no effect.
#[derive(Clone, Debug, Args)]
pub struct IgnoredArgs {
    #[arg(long = "apiWorkerPoolSize", hide = true)]
    api_workers: Option<u32>,
    #[arg(long = "adapterWorkerPoolSize", hide = true)]
    adapter_workers: Option<u32>,
    #[arg(long = "singleThreaded", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    single_threaded: Option<bool>,
    #[arg(long = "numCheckCacheEntries", hide = true)]
    check_cache_entries: Option<u32>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    profile: Option<bool>,
    #[arg(long = "useAdapterCRDs", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    adapter_crds: Option<bool>,
    #[arg(long = "useTemplateCRDs", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    template_crds: Option<bool>,
    #[arg(long = "trace_zipkin_url", hide = true)]
    zipkin: Option<String>,
    #[arg(long = "trace_jaeger_url", hide = true)]
    jaeger: Option<String>,
    #[arg(long = "trace_log_spans", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    log_spans: Option<bool>,
    #[arg(long = "trace_sampling_rate", hide = true)]
    sampling_rate: Option<f64>,
    #[arg(long = "ctrlz_port", hide = true)]
    ctrlz_port: Option<u16>,
    #[arg(long = "ctrlz_address", hide = true)]
    ctrlz_address: Option<String>,
}

impl ServerArgs {
    /// The address of the gRPC service, and the flag that sets it.
    pub(crate) fn listen_address(&self) -> (String, &'static str) {
        if self.address.is_empty() {
            (format!(":{}", self.port), "--port")
        } else {
            (self.address.clone(), "--address")
        }
    }
}

impl TlsArgs {
    /// TLS towards a source of configuration.
    ///
    /// # Errors
    /// When the files are unusable, or our own certificate does not say where Galley would be.
    pub fn source(&self) -> anyhow::Result<ClientTls> {
        if self.server_names.is_empty() {
            let galley = self.neighbour(GALLEY_ACCOUNT).context("who Galley is")?;
            return Ok(self.client_of(ServerIdentity::AnyOf(vec![galley]))?);
        }
        Ok(self.client()?)
    }

    /// TLS towards a server with one of the names, or whichever of the mesh if there are none.
    pub(crate) fn client(&self) -> Result<ClientTls, TlsError> {
        self.client_of(match self.server_names.as_slice() {
            [] => ServerIdentity::Trusted,
            names => ServerIdentity::AnyOf(names.to_vec()),
        })
    }

    fn client_of(&self, identity: ServerIdentity) -> Result<ClientTls, TlsError> {
        let files = PemFiles::new(&self.certificate, &self.key, Some(self.roots.clone()));
        ClientTls::from_files(files, identity, &["h2"])
    }

    /// The identity of another account of our namespace.
    fn neighbour(&self, account: &str) -> anyhow::Result<String> {
        let place = self.certificate.display();
        let pem = std::fs::read(&self.certificate).with_context(|| format!("read {place}"))?;
        let chain = tls::certificates(&pem, &place.to_string())?;
        let own = chain.first().and_then(|leaf| tls::spiffe_id(leaf));
        let own: SpiffeId = own
            .and_then(|id| id.parse().ok())
            .with_context(|| format!("{place} has no SPIFFE id: give --serverSubjectAltNames"))?;
        let id = SpiffeId::new(own.trust_domain(), own.namespace(), account)?;
        Ok(id.to_string())
    }

    /// TLS towards proxies, who must have a certificate.
    pub(crate) fn server(&self) -> Result<ServerTls, TlsError> {
        let files = PemFiles::new(&self.certificate, &self.key, Some(self.roots.clone()));
        ServerTls::from_files(files, ClientAuth::Required, &["h2"])
    }
}

impl LoadShedArgs {
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            mode: self.mode,
            requests_per_second: self.requests_per_second,
            burst: self.burst,
            average_latency: self.average_latency,
            half_life: self.half_life,
            enforcement_rate: self.enforcement_rate,
        }
    }
}

impl IgnoredArgs {
    /// The flags among them that were given.
    pub(crate) fn given(&self) -> Vec<&'static str> {
        [
            (self.api_workers.is_some(), "--apiWorkerPoolSize"),
            (self.adapter_workers.is_some(), "--adapterWorkerPoolSize"),
            (self.single_threaded.is_some(), "--singleThreaded"),
            (self.check_cache_entries.is_some(), "--numCheckCacheEntries"),
            (self.profile.is_some(), "--profile"),
            (self.adapter_crds == Some(false), "--useAdapterCRDs"),
            (self.template_crds == Some(false), "--useTemplateCRDs"),
            (self.zipkin.is_some(), "--trace_zipkin_url"),
            (self.jaeger.is_some(), "--trace_jaeger_url"),
            (self.log_spans.is_some(), "--trace_log_spans"),
            (self.sampling_rate.is_some(), "--trace_sampling_rate"),
            (self.ctrlz_port.is_some(), "--ctrlz_port"),
            (self.ctrlz_address.is_some(), "--ctrlz_address"),
        ]
        .into_iter()
        .filter_map(|(is_given, flag)| is_given.then_some(flag))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_of_a_1_4_deployment_are_taken() {
        let line = "mixs server --monitoringPort=15014 --address unix:///sock/mixer.socket --log_output_level=default:info \
            --configStoreURL=mcp://localhost:15019 --configDefaultNamespace=istio-system --useAdapterCRDs=false \
            --useTemplateCRDs=false --trace_zipkin_url=http://zipkin:9411/api/v1/spans --averageLatencyThreshold 100ms \
            --loadsheddingMode enforce --livenessProbePath /tmp/alive --livenessProbeInterval 2s --profile=true";
        let command = Command::parse_from(line.split_whitespace());
        let Action::Server(args) = command.action else {
            panic!("not a server");
        };
        assert_eq!(
            args.listen_address(),
            ("unix:///sock/mixer.socket".into(), "--address")
        );
        assert_eq!(args.shed.mode, Mode::Enforce);
        assert_eq!(args.shed.average_latency, Duration::from_millis(100));
        assert_eq!(
            args.ignored.given(),
            [
                "--profile",
                "--useAdapterCRDs",
                "--useTemplateCRDs",
                "--trace_zipkin_url"
            ]
        );
    }
}
