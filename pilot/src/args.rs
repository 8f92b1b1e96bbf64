//! The command line of `pilot-discovery`, with Istio's names.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use proto_component::args::{KeepaliveArgs, LogArgs, parse_duration};
use proto_component::kubernetes::KubeArgs;
use proto_component::version::VersionArgs;

use crate::features::Features;

/// Where services come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RegistryKind {
    /// A Kubernetes API server.
    #[value(name = "Kubernetes")]
    Kubernetes,
    /// The source of configuration, over MCP.
    #[value(name = "MCP", alias = "mcp")]
    Mcp,
    /// None but ServiceEntries.
    #[value(name = "Mock")]
    Mock,
}

/// Discovery for the proxies of the mesh.
#[derive(Debug, Parser)]
#[command(name = "pilot-discovery", disable_version_flag = true)]
pub struct Command {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Serve discovery.
    Discovery(Box<Discovery>),
    /// Ask a running Pilot (at 127.0.0.1:15014).
    Request(Request),
    /// Print the version.
    Version(VersionArgs),
}

/// A request to a running Pilot.
#[derive(Args, Clone, Debug)]
pub struct Request {
    /// GET, POST, …
    pub method: String,
    /// Path with query.
    pub path: String,
    /// Body.
    pub body: Option<String>,
}

/// The flags of `discovery`.
#[derive(Args, Clone, Debug)]
pub struct Discovery {
    /// Where services come from; of two that have the same service the first counts.
    #[arg(long, value_delimiter = ',', default_value = "MCP")]
    pub registries: Vec<RegistryKind>,
    /// How to reach the API server, for `--registries Kubernetes`.
    #[command(flatten)]
    pub kubernetes: KubeArgs,
    /// Follow the services of this namespace only; empty: of all.
    #[arg(long = "appNamespace", short = 'a', default_value = "")]
    pub app_namespace: String,
    /// File with the mesh's settings; followed. [default: /etc/istio/config/mesh, if it is there]
    #[arg(long = "meshConfig")]
    pub mesh_config: Option<PathBuf>,
    /// File with the mesh's networks.
    #[arg(
        long = "networksConfig",
        default_value = "/etc/istio/config/meshNetworks",
        hide = true
    )]
    pub networks_config: PathBuf,
    /// Namespace of this process.
    #[arg(
        short = 'n',
        long,
        env = "POD_NAMESPACE",
        default_value = "istio-system"
    )]
    pub namespace: String,
    /// DNS suffix of services.
    #[arg(long, default_value = "cluster.local")]
    pub domain: String,
    /// First part of SPIFFE ids; the mesh's settings say it if this does not.
    #[arg(long = "trust-domain", default_value = "")]
    pub trust_domain: String,
    /// Folder of YAML files to take configuration from; followed.
    #[arg(long = "configDir")]
    pub config_dir: Option<PathBuf>,
    /// HTTP: `/ready`, `/debug/…`.
    #[arg(long = "httpAddr", default_value = ":8080")]
    pub http_address: String,
    /// xDS without TLS.
    #[arg(long = "grpcAddr", default_value = ":15010")]
    pub grpc_address: String,
    /// xDS for clients with a certificate of the mesh, if certificates are there.
    #[arg(long = "mtlsGrpcAddr", default_value = ":15011")]
    pub mtls_grpc_address: String,
    /// xDS with TLS, if certificates are there.
    #[arg(long = "secureGrpcAddr", default_value = ":15012")]
    pub secure_grpc_address: String,
    /// Metrics and the pages of the HTTP port.
    #[arg(long = "monitoringAddr", default_value = ":15014")]
    pub monitoring_address: String,
    /// Largest MCP message in bytes.
    #[arg(long = "mcpMaxMsgSize", default_value_t = 64 << 20)]
    pub mcp_max_message: usize,
    /// gRPC keepalive.
    #[command(flatten)]
    pub keepalive: KeepaliveArgs,
    /// The environment.
    #[command(flatten)]
    pub features: Features,
    /// Logs.
    #[command(flatten)]
    pub log: LogArgs,
    /// Istio's flags that mean nothing here.
    #[command(flatten)]
    pub compatibility: Compatibility,
}

/// Flags that are taken so that an Istio command line works, and have no effect: whoever gives one is told.
#[derive(Args, Clone, Debug)]
pub struct Compatibility {
    /// How often everything would be told again.
    #[arg(long, value_parser = parse_duration, hide = true)]
    pub resync: Option<Duration>,
    /// Plugins in the order of their filters.
    #[arg(long, value_delimiter = ',', hide = true)]
    pub plugins: Option<Vec<String>>,
}

impl Compatibility {
    /// The flags that were given, and why they change nothing.
    #[must_use]
    pub fn given(&self) -> Vec<(&'static str, &'static str)> {
        let resync = (self.resync.is_some()).then_some((
            "--resync",
            "watches go on from where they were, so that nothing has to be told again",
        ));
        let plugins = (self.plugins.is_some()).then_some((
            "--plugins",
            "the mesh's settings and policies decide which filters there are",
        ));
        resync.into_iter().chain(plugins).collect()
    }
}
