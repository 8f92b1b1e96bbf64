//! The command line of `pilot-agent`: Istio's flags and environment. Flags that nobody here knows are left out with a warning,
//! as Istio's agent does, so that an injection template may be newer or older than the agent.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand, ValueEnum};
use proto_component::args::{LogArgs, parse_duration};
use proto_component::version::VersionArgs;

use crate::features::Features;

/// Unknown flags that are tolerated at most; a command line with more is somebody else's.
const MAX_UNKNOWN: usize = 64;

/// The agent beside a proxy.
#[derive(Debug, Parser)]
#[command(name = "pilot-agent", disable_version_flag = true)]
pub struct Command {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
    /// Logging.
    #[command(flatten)]
    pub log: LogArgs,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Run the proxy, and everything that it needs beside it.
    Proxy(Box<ProxyArgs>),
    /// Make a request to the proxy's admin port; prints the answer's body only.
    Request(RequestArgs),
    /// Wait until the proxy is ready.
    Wait(WaitArgs),
    /// Print the version.
    Version(VersionArgs),
    /// Read the mesh's settings; see `offload`.
    #[command(hide = true)]
    ReadMesh(MeshArgs),
    /// Write a bootstrap as JSON; see `offload`.
    #[command(hide = true)]
    WriteBootstrap,
}

/// Where settings beside the flags come from.
#[derive(Debug, Clone, Args)]
pub struct MeshArgs {
    /// Mesh configuration, for its defaultConfig.
    #[arg(long = "meshConfig", value_name = "FILE")]
    pub mesh_config: Option<PathBuf>,
    /// Settings of this proxy, YAML or JSON, laid over those of the mesh.
    #[arg(
        long = "env-proxy-config",
        hide = true,
        env = "PROXY_CONFIG",
        default_value = ""
    )]
    pub proxy_config: String,
}

/// Flags of `request`.
#[derive(Debug, Args)]
pub struct RequestArgs {
    /// HTTP method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Body.
    pub body: Option<String>,
    /// The admin port.
    #[arg(long = "proxyAdminPort", default_value_t = 15000)]
    pub admin_port: u16,
    /// The workload's address: where pods have a loopback address each, the admin port is there.
    #[arg(
        long = "env-instance-ip",
        hide = true,
        env = "INSTANCE_IP",
        default_value = ""
    )]
    pub ip: String,
}

/// Flags of `wait`.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// How long.
    #[arg(long = "timeoutSeconds", default_value_t = 60)]
    pub timeout_seconds: u64,
    /// How often to ask.
    #[arg(long = "periodMillis", default_value_t = 100)]
    pub period_millis: u64,
    /// Port of the status server.
    #[arg(long = "statusPort", default_value_t = 15020)]
    pub status_port: u16,
    /// The workload's address.
    #[arg(
        long = "env-instance-ip",
        hide = true,
        env = "INSTANCE_IP",
        default_value = ""
    )]
    pub ip: String,
}

/// What the proxy is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Beside an application.
    Sidecar,
    /// A gateway.
    Router,
}

/// Flags of `proxy`. Those with a default in the mesh configuration are optional here, so that what was said wins over it.
#[derive(Debug, Clone, Args)]
pub struct ProxyArgs {
    /// What the proxy is for.
    #[arg(value_enum, default_value = "sidecar")]
    pub role: Role,
    /// The workload's address (default: the first of this machine).
    #[arg(long, env = "INSTANCE_IP", default_value = "")]
    pub ip: String,
    /// The proxy's name (default: POD_NAME.POD_NAMESPACE).
    #[arg(long)]
    pub id: Option<String>,
    /// DNS domain of short names (default: POD_NAMESPACE.svc.cluster.local).
    #[arg(long)]
    pub domain: Option<String>,
    /// The mesh's trust domain.
    #[arg(long = "trust-domain", default_value = "")]
    pub trust_domain: String,
    /// Identity that the discovery service must have where its connection is TLS.
    #[arg(long = "pilotIdentity", default_value = "")]
    pub pilot_identity: String,
    /// Port of the status server; 0 turns it off.
    #[arg(long = "statusPort")]
    pub status_port: Option<u16>,
    /// Ports that a gateway must listen on before it is ready.
    #[arg(long = "applicationPorts", value_delimiter = ',')]
    pub application_ports: Vec<u16>,
    /// Folder for the bootstrap file and the secrets' socket.
    #[arg(long = "configPath")]
    pub config_path: Option<PathBuf>,
    /// Another proxy program (an Envoy) to run instead of the one inside.
    #[arg(long = "binaryPath")]
    pub binary_path: Option<PathBuf>,
    /// Name of the service that the workload belongs to.
    #[arg(long = "serviceCluster")]
    pub service_cluster: Option<String>,
    /// How long listeners drain when their configuration changes.
    #[arg(long = "drainDuration", value_parser = parse_duration)]
    pub drain_duration: Option<Duration>,
    /// How long a replaced Envoy may live on.
    #[arg(long = "parentShutdownDuration", value_parser = parse_duration)]
    pub parent_shutdown_duration: Option<Duration>,
    /// The discovery service (HOST:PORT).
    #[arg(long = "discoveryAddress")]
    pub discovery_address: Option<String>,
    /// The certificate service (HOST:PORT); nothing is asked for when it is empty.
    #[arg(
        long = "caAddress",
        env = "CA_ADDR",
        default_value = "istio-citadel.istio-system.svc:8060"
    )]
    pub ca_address: String,
    /// Name that the certificate service's certificate must have (default: the address's host).
    #[arg(long = "caServerName", env = "CA_SERVER_NAME", default_value = "")]
    pub ca_server_name: String,
    /// Root certificate by which the certificate service is verified.
    #[arg(
        long = "caRootCert",
        env = "CA_ROOT_CERT",
        default_value = "/var/run/secrets/istio/root-cert.pem"
    )]
    pub ca_root_cert: PathBuf,
    /// The service account's token for the certificate service.
    #[arg(
        long = "tokenPath",
        env = "TOKEN_PATH",
        default_value = "/var/run/secrets/tokens/istio-token"
    )]
    pub token_path: PathBuf,
    /// Zipkin collector (HOST:PORT).
    #[arg(long = "zipkinAddress")]
    pub zipkin_address: Option<String>,
    /// Connect timeout of the proxy's own clusters.
    #[arg(long = "connectTimeout", value_parser = parse_duration)]
    pub connect_timeout: Option<Duration>,
    /// Port of the proxy's admin interface.
    #[arg(long = "proxyAdminPort")]
    pub proxy_admin_port: Option<u16>,
    /// NONE or MUTUAL_TLS towards the discovery service.
    #[arg(long = "controlPlaneAuthPolicy")]
    pub control_plane_auth_policy: Option<String>,
    /// A bootstrap file of the user's instead of the generated one.
    #[arg(long = "customConfigFile")]
    pub custom_config_file: Option<PathBuf>,
    /// Log level of another proxy program.
    #[arg(long = "proxyLogLevel", default_value = "warning")]
    pub proxy_log_level: String,
    /// Log levels of an Envoy's components.
    #[arg(long = "proxyComponentLogLevel", default_value = "misc:error")]
    pub proxy_component_log_level: String,
    /// How often the proxy's own clusters are resolved.
    #[arg(long = "dnsRefreshRate", default_value = "300s", value_parser = parse_duration)]
    pub dns_refresh_rate: Duration,
    /// Worker threads (default 2; 0: one for each processor).
    #[arg(long)]
    pub concurrency: Option<u32>,
    /// Settings of the mesh and of this proxy.
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// Folder with one folder for each gateway credential (tls.crt, tls.key, ca.crt).
    #[arg(
        long = "credentialsPath",
        env = "CREDENTIALS_PATH",
        default_value = "/etc/istio/credentials"
    )]
    pub credentials_path: PathBuf,
    /// Environment.
    #[command(flatten)]
    pub features: Features,
    /// Flags of Istio that nothing here looks at.
    #[command(flatten)]
    ignored: IgnoredArgs,
}

/// Istio's flags for what this agent does not do; known, so that their values are not taken for something else.
#[derive(Debug, Clone, Args)]
struct IgnoredArgs {
    #[arg(long = "serviceregistry", hide = true)]
    service_registry: Option<String>,
    #[arg(long = "mixerIdentity", hide = true)]
    mixer_identity: Option<String>,
    #[arg(long = "lightstepAddress", hide = true)]
    lightstep_address: Option<String>,
    #[arg(long = "lightstepAccessToken", hide = true)]
    lightstep_access_token: Option<String>,
    #[arg(long = "lightstepSecure", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    lightstep_secure: Option<String>,
    #[arg(long = "lightstepCacertPath", hide = true)]
    lightstep_cacert_path: Option<String>,
    #[arg(long = "datadogAgentAddress", hide = true)]
    datadog_agent_address: Option<String>,
    #[arg(long = "statsdUdpAddress", hide = true)]
    statsd_udp_address: Option<String>,
    #[arg(long = "envoyMetricsService", hide = true)]
    envoy_metrics_service: Option<String>,
    #[arg(long = "envoyAccessLogService", hide = true)]
    envoy_access_log_service: Option<String>,
    #[arg(long = "templateFile", hide = true)]
    template_file: Option<String>,
    #[arg(long = "disableInternalTelemetry", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    disable_internal_telemetry: Option<String>,
    #[arg(long = "controlPlaneBootstrap", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    control_plane_bootstrap: Option<String>,
    #[arg(long = "stsPort", hide = true)]
    sts_port: Option<String>,
    #[arg(long = "tokenManagerPlugin", hide = true)]
    token_manager_plugin: Option<String>,
    #[arg(long = "outlierLogPath", hide = true)]
    outlier_log_path: Option<String>,
}

/// Parses `arguments`; returns also the unknown ones that were left out. Other mistakes end the process as clap does.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> (Command, Vec<String>) {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let mut unknown = Vec::new();
    loop {
        let error = match Command::try_parse_from(&arguments) {
            Ok(command) => return (command, unknown),
            Err(error) => error,
        };
        let removed = (error.kind() == ErrorKind::UnknownArgument && unknown.len() < MAX_UNKNOWN)
            .then(|| remove(&mut arguments, &error))
            .flatten();
        match removed {
            Some(flag) => unknown.push(flag),
            None => error.exit(),
        }
    }
}

/// Takes the flag that `error` complains of, and the value after it, out of `arguments`.
fn remove(arguments: &mut Vec<OsString>, error: &clap::Error) -> Option<String> {
    let ContextValue::String(flag) = error.get(ContextKind::InvalidArg)? else {
        return None;
    };
    if !flag.starts_with('-') {
        return None;
    }
    let name = flag.split('=').next().unwrap_or(flag);
    let at = arguments.iter().position(|argument| {
        argument
            .to_str()
            .is_some_and(|text| text.split('=').next() == Some(name))
    })?;
    let removed = arguments.remove(at).into_string().ok()?;
    let is_value = |argument: &OsString| {
        argument
            .to_str()
            .is_some_and(|text| !text.starts_with('-') && !["sidecar", "router"].contains(&text))
    };
    if !removed.contains('=') && arguments.get(at).is_some_and(is_value) {
        arguments.remove(at);
    }
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> (ProxyArgs, Vec<String>) {
        let arguments = std::iter::once("pilot-agent").chain(line.split_whitespace());
        let (command, unknown) = parse(arguments.map(OsString::from));
        match command.action {
            Action::Proxy(args) => (*args, unknown),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn istios_sidecar_command_line_parses() {
        let (args, unknown) = parsed(
            "proxy sidecar --domain default.svc.cluster.local --configPath /etc/istio/proxy \
             --binaryPath /usr/local/bin/envoy --serviceCluster productpage.default --drainDuration 45s \
             --parentShutdownDuration 1m0s --discoveryAddress istio-pilot.istio-system:15010 \
             --zipkinAddress zipkin.istio-system:9411 --proxyLogLevel=warning --connectTimeout 10s \
             --proxyAdminPort 15000 --concurrency 2 --controlPlaneAuthPolicy NONE --dnsRefreshRate 300s \
             --statusPort 15020 --trust-domain=cluster.local --controlPlaneBootstrap=false",
        );
        assert_eq!(args.role, Role::Sidecar);
        assert_eq!(args.concurrency, Some(2));
        assert_eq!(args.status_port, Some(15020));
        assert!(unknown.is_empty());
    }

    #[test]
    fn unknown_flags_are_left_out_with_their_values() {
        let (args, unknown) =
            parsed("proxy router --fancy new --shiny=yes --quiet --statusPort 1 --last");
        assert_eq!(args.role, Role::Router);
        assert_eq!(args.status_port, Some(1));
        assert_eq!(unknown, ["--fancy", "--shiny", "--quiet", "--last"]);
        let (args, unknown) = parsed("proxy --unknown sidecar --statusPort 2");
        assert_eq!((args.role, args.status_port), (Role::Sidecar, Some(2)));
        assert_eq!(unknown, ["--unknown"]);
    }
}
