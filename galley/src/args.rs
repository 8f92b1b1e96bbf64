//! Galley's flags: Istio's, and `--data-dir`.

use clap::{ArgAction, Args, Parser, Subcommand};
use proto_component::{
    args::{ConfigFile, KeepaliveArgs, LogArgs, parse_duration},
    version::VersionArgs,
};
use std::{path::PathBuf, time::Duration};

mod kubernetes;

pub use kubernetes::KubernetesArgs;

use crate::{analysis::command::AnalyzeArgs, validation::command::ValidateArgs};

/// Galley: reads, checks and serves the mesh's configuration.
#[derive(Clone, Debug, Parser)]
#[command(name = "galley", disable_version_flag = true)]
pub struct Galley {
    #[command(subcommand)]
    /// What to do.
    pub command: Command,
    /// A YAML file with settings: keys are flags' names; flags on the command line win.
    #[arg(long, short, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Logging.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Where settings of the config file may be nested, as in Istio.
pub const CONFIG_FILE: ConfigFile = ConfigFile {
    flag: "config",
    short: Some('c'),
    aliases: &[
        ("general.introspection.port", "ctrlz_port"),
        ("general.monitoringPort", "monitoringPort"),
        ("general.pprofPort", "pprofPort"),
        ("general.enable_profiling", "enableProfiling"),
        ("general.kubeConfig", "kubeconfig"),
        ("general.meshConfigFile", "meshConfigFile"),
        ("general.liveness.path", "livenessProbePath"),
        ("general.liveness.interval", "livenessProbeInterval"),
        ("general.readiness.path", "readinessProbePath"),
        ("general.readiness.interval", "readinessProbeInterval"),
        ("processing.domainSuffix", "domain"),
        ("processing.source.filesystem.path", "configPath"),
        ("processing.source.kubernetes.resyncPeriod", "resyncPeriod"),
        ("processing.server.enable", "enable-server"),
        ("processing.server.address", "server-address"),
        (
            "processing.server.maxReceivedMessageSize",
            "server-maxReceivedMessageSize",
        ),
        (
            "processing.server.maxConcurrentStreams",
            "server-maxConcurrentStreams",
        ),
        (
            "processing.server.disableResourceReadyCheck",
            "disableResourceReadyCheck",
        ),
        (
            "processing.server.auth.mtls.clientCertificate",
            "tlsCertFile",
        ),
        ("processing.server.auth.mtls.privateKey", "tlsKeyFile"),
        ("processing.server.auth.mtls.caCertificates", "caCertFile"),
        (
            "processing.server.auth.mtls.accessListFile",
            "accessListFile",
        ),
        ("processing.server.auth.insecure", "insecure"),
        ("validation.enable", "enable-validation"),
        ("validation.webhookPort", "validation-port"),
    ],
};

/// Subcommands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Serve: read configuration, check it, hand it to Pilot and Mixer.
    Server(Box<ServerArgs>),
    /// Check files.
    Validate(ValidateArgs),
    /// Find mistakes that no object shows alone: of files, of a cluster, or of files over a cluster.
    Analyze(Box<AnalyzeArgs>),
    /// Print the definitions (CRDs) of the mesh's kinds.
    Crds,
    /// Ask a running server's probe file.
    Probe(ProbeArgs),
    /// Print the version.
    Version(VersionArgs),
}

/// Flags of `galley server`.
#[derive(Clone, Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct ServerArgs {
    /// Folder with YAML files (mesh kinds, and the Kubernetes kinds that services and ingresses are made of).
    #[arg(long = "configPath", value_name = "DIR")]
    pub config_path: Option<PathBuf>,
    /// Mesh configuration file; the defaults are served where it is missing.
    #[arg(
        long = "meshConfigFile",
        default_value = "/etc/mesh-config/mesh",
        value_name = "FILE"
    )]
    pub mesh_config_file: PathBuf,
    /// Where the last good snapshot is kept; it is not kept without.
    #[arg(long = "data-dir", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Domain of service names.
    #[arg(long, default_value = "cluster.local")]
    pub domain: String,
    /// Make service entries of Kubernetes services.
    #[arg(long = "enableServiceDiscovery", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true")]
    pub enable_service_discovery: bool,
    /// Serve a cluster's pods, by which Mixer knows who calls and who is called; so does --enableServiceDiscovery.
    #[arg(long = "serve-pods", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true")]
    pub serves_pods: bool,

    /// Serve MCP.
    #[arg(long = "enable-server", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true")]
    pub enable_server: bool,
    /// Address of the MCP server.
    #[arg(
        long = "server-address",
        default_value = "tcp://0.0.0.0:9901",
        value_name = "ADDRESS"
    )]
    pub server_address: String,
    /// Serve MCP in plaintext, to everybody.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true")]
    pub insecure: bool,
    /// Largest request taken, in bytes.
    #[arg(long = "server-maxReceivedMessageSize", default_value_t = 1 << 20, value_name = "BYTES")]
    pub max_received_message_size: usize,
    /// Most streams of one connection.
    #[arg(
        long = "server-maxConcurrentStreams",
        default_value_t = 1024,
        value_name = "COUNT"
    )]
    pub max_concurrent_streams: u32,
    /// gRPC keepalive.
    #[command(flatten)]
    pub keepalive: KeepaliveArgs,
    /// Who may subscribe: a YAML file with `allowed` (SPIFFE ids) and `isblacklist`.
    #[arg(
        long = "accessListFile",
        default_value = "/etc/config/accesslist.yaml",
        value_name = "FILE"
    )]
    pub access_list_file: PathBuf,
    /// Refusals that are logged at once.
    #[arg(
        long = "authzFailureLogBurstSize",
        env = "AUTHZ_FAILURE_LOG_BURST_SIZE",
        default_value_t = 1
    )]
    pub authz_failure_log_burst: u32,
    /// Time after which one more refusal is logged.
    #[arg(long = "authzFailureLogFreq", env = "AUTHZ_FAILURE_LOG_FREQ", default_value = "1m", value_parser = parse_duration)]
    pub authz_failure_log_freq: Duration,
    /// Also dial this MCP sink and push to it.
    #[arg(long = "sinkAddress", value_name = "HOST:PORT")]
    pub sink_address: Option<String>,
    /// How to dial the sink: NONE (plaintext) or MUTUAL_TLS.
    #[arg(long = "sinkAuthMode", default_value = "", value_name = "MODE")]
    pub sink_auth_mode: String,
    /// Names (SPIFFE ids, DNS names) of which one must be in the sink's certificate (default: the host dialled).
    #[arg(
        long = "sinkSubjectAltNames",
        value_delimiter = ',',
        value_name = "NAME"
    )]
    pub sink_names: Vec<String>,
    /// key=value metadata for the sink.
    #[arg(long = "sinkMeta", value_delimiter = ',', value_name = "KEY=VALUE")]
    pub sink_meta: Vec<String>,

    /// Serve the admission webhook.
    #[arg(long = "enable-validation", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true")]
    pub enable_validation: bool,
    /// Port of the admission webhook.
    #[arg(long = "validation-port", default_value_t = 443, value_name = "PORT")]
    pub validation_port: u16,
    /// Certificate of the MCP server and of the webhook.
    #[arg(
        long = "tlsCertFile",
        default_value = "/etc/certs/cert-chain.pem",
        value_name = "FILE"
    )]
    pub tls_cert_file: PathBuf,
    /// Its key.
    #[arg(
        long = "tlsKeyFile",
        default_value = "/etc/certs/key.pem",
        value_name = "FILE"
    )]
    pub tls_key_file: PathBuf,
    /// Whom the MCP server trusts.
    #[arg(
        long = "caCertFile",
        default_value = "/etc/certs/root-cert.pem",
        value_name = "FILE"
    )]
    pub ca_cert_file: PathBuf,
    /// Certificate of the webhook, if another.
    #[arg(long = "validation.tls.clientCertificate", value_name = "FILE")]
    pub validation_cert_file: Option<PathBuf>,
    /// Its key.
    #[arg(long = "validation.tls.privateKey", value_name = "FILE")]
    pub validation_key_file: Option<PathBuf>,

    /// Monitoring port.
    #[arg(long = "monitoringPort", default_value_t = 15014, value_name = "PORT")]
    pub monitoring_port: u16,
    /// File that is touched while the process lives.
    #[arg(long = "livenessProbePath", value_name = "FILE")]
    pub liveness_probe_path: Option<PathBuf>,
    /// How often it is touched.
    #[arg(long = "livenessProbeInterval", default_value = "2s", value_parser = parse_duration)]
    pub liveness_probe_interval: Duration,
    /// File that is touched while the process is ready.
    #[arg(long = "readinessProbePath", value_name = "FILE")]
    pub readiness_probe_path: Option<PathBuf>,
    /// How often it is touched.
    #[arg(long = "readinessProbeInterval", default_value = "2s", value_parser = parse_duration)]
    pub readiness_probe_interval: Duration,
    /// Kubernetes.
    #[command(flatten)]
    pub kubernetes: KubernetesArgs,
    /// Istio's flags that mean nothing here.
    #[command(flatten)]
    pub compatibility: CompatibilityArgs,
}

/// Flags that are taken so that an Istio command line works, and have no effect: they concern debugging aids that Galley
/// does not have. Whoever gives one is told.
#[derive(Clone, Debug, Args)]
#[allow(missing_docs, reason = "named as in Istio; without effect")]
pub struct CompatibilityArgs {
    #[arg(long = "resyncPeriod", hide = true)]
    pub resync_period: Option<String>,
    #[arg(long = "pprofPort", hide = true)]
    pub pprof_port: Option<u16>,
    #[arg(long = "enableProfiling", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub enable_profiling: Option<bool>,
    #[arg(long = "ctrlz_address", hide = true)]
    pub ctrlz_address: Option<String>,
    #[arg(long = "ctrlz_port", hide = true)]
    pub ctrlz_port: Option<u16>,
    #[arg(long = "excludedResourceKinds", hide = true)]
    pub excluded_resource_kinds: Option<String>,
    #[arg(long = "disableResourceReadyCheck", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub disable_resource_ready_check: Option<bool>,
    #[arg(long = "useOldProcessor", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub use_old_processor: Option<bool>,
    #[arg(long = "service-name", hide = true)]
    pub service_name: Option<String>,
}

impl CompatibilityArgs {
    /// The flags that were given.
    pub fn given(&self) -> Vec<&'static str> {
        let flags = [
            ("--resyncPeriod", self.resync_period.is_some()),
            ("--pprofPort", self.pprof_port.is_some()),
            ("--enableProfiling", self.enable_profiling.is_some()),
            ("--ctrlz_address", self.ctrlz_address.is_some()),
            ("--ctrlz_port", self.ctrlz_port.is_some()),
            (
                "--excludedResourceKinds",
                self.excluded_resource_kinds.is_some(),
            ),
            (
                "--disableResourceReadyCheck",
                self.disable_resource_ready_check.is_some(),
            ),
            ("--useOldProcessor", self.use_old_processor.is_some()),
            ("--service-name", self.service_name.is_some()),
        ];
        let given = flags.into_iter().filter(|(_, is_given)| *is_given);
        given.map(|(flag, _)| flag).collect()
    }
}

/// Flags of `galley probe`.
#[derive(Clone, Debug, Args)]
pub struct ProbeArgs {
    /// The file that the server touches.
    #[arg(long = "probe-path", value_name = "FILE")]
    pub probe_path: Option<PathBuf>,
    /// How old it may be.
    #[arg(long, default_value = "4s", value_parser = parse_duration)]
    pub interval: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_flags_are_consistent_and_istios_line_parses() {
        Galley::command().debug_assert();
        let line = "galley server --meshConfigFile=/etc/mesh-config/mesh --livenessProbeInterval=1s \
            --livenessProbePath=/tmp/healthliveness --readinessProbePath=/tmp/healthready --insecure=true \
            --enable-validation=true --enable-reconcileWebhookConfiguration=true --enable-server=true \
            --deployment-namespace=istio-system --validation-webhook-config-file /etc/config/w.yaml \
            --monitoringPort=15014 --log_output_level=default:info --configPath /c";
        let args = Galley::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Server(server) = args.command else {
            panic!("not server")
        };
        assert!(server.insecure && server.enable_validation);
        // Nothing is needed that has a default.
        assert!(Galley::try_parse_from(["galley", "server"]).is_ok());
        assert!(Galley::try_parse_from(["galley", "probe"]).is_ok());
    }
}
