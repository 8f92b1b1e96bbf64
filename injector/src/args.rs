//! The command line of `sidecar-injector`. Flags are Istio's.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};
use proto_component::args::LogArgs;
use proto_component::version::VersionArgs;

use crate::config::Files;
use crate::registration::RegistrationArgs;

/// Adds the mesh's proxy to pods.
#[derive(Debug, Parser)]
#[command(
    name = "sidecar-injector",
    version,
    subcommand_negates_reqs = true,
    args_conflicts_with_subcommands = true
)]
pub struct Arguments {
    /// Something else than serving the webhook.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Serving the webhook.
    #[command(flatten)]
    pub serve: ServeArgs,
    /// Logging.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Something else than serving the webhook.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Inject the pods in a manifest and print the result.
    Inject(InjectArgs),
    /// Print the version.
    Version(VersionArgs),
}

/// Where the settings are.
#[derive(Clone, Debug, Args)]
pub struct FileArgs {
    /// Policy and template, YAML; the built-in ones if not given.
    #[arg(long = "injectConfig", value_name = "FILE")]
    pub inject_config: Option<PathBuf>,
    /// Values for the template, YAML; laid over the built-in ones.
    #[arg(long = "injectValues", value_name = "FILE")]
    pub inject_values: Option<PathBuf>,
    /// Mesh configuration, YAML.
    #[arg(long = "meshConfig", value_name = "FILE")]
    pub mesh_config: Option<PathBuf>,
    /// Folder of YAML files with ProxyConfig resources, read anew for each pod.
    #[arg(long = "proxyConfigDir", value_name = "DIR")]
    pub proxy_configs: Option<PathBuf>,
}

/// Serving the webhook.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Settings.
    #[command(flatten)]
    pub files: FileArgs,
    /// Certificate chain of the webhook, PEM.
    #[arg(
        long = "tlsCertFile",
        value_name = "FILE",
        default_value = "/etc/istio/certs/cert-chain.pem"
    )]
    pub tls_cert_file: PathBuf,
    /// Its private key, PEM.
    #[arg(
        long = "tlsKeyFile",
        value_name = "FILE",
        default_value = "/etc/istio/certs/key.pem"
    )]
    pub tls_key_file: PathBuf,
    /// Port of the webhook.
    #[arg(long, default_value_t = 443)]
    pub port: u16,
    /// Port of metrics, health and version.
    #[arg(long = "monitoringPort", default_value_t = 15014)]
    pub monitoring_port: u16,
    /// Follow the cluster's ProxyConfig resources.
    #[arg(long = "watchProxyConfig", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true")]
    pub watches_proxy_configs: bool,
    /// The webhook's registration.
    #[command(flatten)]
    pub registration: RegistrationArgs,
}

/// Injecting manifests.
#[derive(Debug, Args)]
pub struct InjectArgs {
    /// The manifest; `-` reads standard input.
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub file: String,
    /// Settings.
    #[command(flatten)]
    pub files: FileArgs,
}

impl FileArgs {
    /// The files as the configuration wants them.
    #[must_use]
    pub fn files(&self) -> Files {
        Files {
            inject_config: self.inject_config.clone(),
            inject_values: self.inject_values.clone(),
            mesh_config: self.mesh_config.clone(),
            proxy_configs: self.proxy_configs.clone(),
        }
    }
}
