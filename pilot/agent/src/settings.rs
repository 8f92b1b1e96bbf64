//! What the agent works with: flags over `PROXY_CONFIG` over the mesh's `defaultConfig` over Istio's defaults, and the node.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use proto::istio::mesh::v1alpha1::{AuthenticationPolicy, MeshConfig, ProxyConfig, proxy_config};
use proto::istio::networking::v1alpha3::ReadinessProbe;
use proto_component::process::Usage;
use proto_mesh::mesh_config;
use proto_mesh::spiffe::{DEFAULT_TRUST_DOMAIN, SpiffeId};

use crate::args::{MeshArgs, ProxyArgs};
use crate::dns;
use crate::node::Node;

/// The control plane's service account, as the identity in its certificate.
const PILOT_SERVICE_ACCOUNT: &str = "istio-pilot-service-account";
const DEFAULT_CONCURRENCY: u32 = 2;
const DEFAULT_TERMINATION_DRAIN: Duration = Duration::from_secs(5);
/// Name of the secrets' socket below the configuration's folder.
const SDS_SOCKET: &str = "SDS";
/// Node metadata: where the application listens if not on 127.0.0.1.
const APPLICATION_ADDRESS: &str = "APPLICATION_ADDRESS";
const BOOTSTRAP_FILE: &str = "envoy-rev0.json";

/// Everything decided, nothing done.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Who the proxy is.
    pub node: Node,
    /// Folder of bootstrap file and socket.
    pub config_path: PathBuf,
    /// The discovery service.
    pub discovery_address: String,
    /// Whether it is reached with mutual TLS, and who it must be then.
    pub discovery_identity: Option<String>,
    /// Zipkin collector; empty for none.
    pub zipkin_address: String,
    /// Connect timeout of the proxy's own clusters.
    pub connect_timeout: Duration,
    /// How often names are resolved.
    pub dns_refresh_rate: Duration,
    /// The proxy's admin port.
    pub admin_port: u16,
    /// The agent's status port; 0 for none.
    pub status_port: u16,
    /// Worker threads; 0 for one a processor.
    pub concurrency: u32,
    /// How long listeners drain on a change.
    pub drain_duration: Duration,
    /// How long a replaced Envoy lives.
    pub parent_shutdown_duration: Duration,
    /// How long connections go on after SIGTERM.
    pub termination_drain: Duration,
    /// Statistics to keep: all if empty.
    pub stats_inclusion: StatsInclusion,
    /// Runtime values.
    pub runtime_values: Vec<(String, String)>,
    /// How the agent finds out whether the workload is healthy, for Pilot (machines that register themselves).
    pub readiness_probe: Option<ReadinessProbe>,
    /// The mesh's trust domain.
    pub trust_domain: String,
    /// Another program to run as the proxy.
    pub binary_path: Option<PathBuf>,
}

/// Which statistics a proxy keeps when somebody wants to limit them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StatsInclusion {
    /// Names that begin so.
    pub prefixes: Vec<String>,
    /// Names that end so.
    pub suffixes: Vec<String>,
    /// Names that match.
    pub regexps: Vec<String>,
}

impl Settings {
    /// Decides everything from the command line, the environment and the mesh's settings.
    pub fn new(args: &ProxyArgs, mesh: MeshConfig, mut node: Node) -> anyhow::Result<Self> {
        let config = mesh.default_config.unwrap_or_default();
        if let Some(proxy_config::ClusterName::ServiceCluster(name)) = &config.cluster_name {
            node.cluster.clone_from(name);
        }
        if let Some(name) = &args.service_cluster {
            node.cluster.clone_from(name);
        }
        let trust_domain = [&args.trust_domain, &mesh.trust_domain]
            .into_iter()
            .find(|name| !name.is_empty())
            .map_or(DEFAULT_TRUST_DOMAIN, String::as_str)
            .to_owned();
        let discovery_identity = discovery_identity(args, &config, &trust_domain)?;
        let stats_inclusion = StatsInclusion::new(config.proxy_stats_matcher, &node);
        Ok(Self {
            node,
            config_path: match &args.config_path {
                Some(path) => path.clone(),
                None => PathBuf::from(&config.config_path),
            },
            discovery_address: args
                .discovery_address
                .clone()
                .unwrap_or(config.discovery_address),
            discovery_identity,
            zipkin_address: args
                .zipkin_address
                .clone()
                .unwrap_or_else(|| zipkin_of(config.tracing.as_ref())),
            connect_timeout: pick(args.connect_timeout, config.connect_timeout, 1),
            dns_refresh_rate: args.dns_refresh_rate,
            admin_port: port(
                args.proxy_admin_port,
                config.proxy_admin_port,
                "proxyAdminPort",
            )?,
            status_port: port(args.status_port, config.status_port, "statusPort")?,
            concurrency: args
                .concurrency
                .or_else(|| {
                    config
                        .concurrency
                        .and_then(|count| u32::try_from(count).ok())
                })
                .unwrap_or(DEFAULT_CONCURRENCY),
            drain_duration: pick(args.drain_duration, config.drain_duration, 45),
            parent_shutdown_duration: pick(
                args.parent_shutdown_duration,
                config.parent_shutdown_duration,
                60,
            ),
            termination_drain: args
                .features
                .termination_drain_seconds
                .map(Duration::from_secs)
                .or_else(|| to_std(config.termination_drain_duration))
                .unwrap_or(DEFAULT_TERMINATION_DRAIN),
            stats_inclusion,
            runtime_values: config.runtime_values.into_iter().collect(),
            readiness_probe: config.readiness_probe,
            trust_domain,
            binary_path: args
                .binary_path
                .clone()
                .or_else(|| other_program(&config.binary_path)),
        })
    }

    /// The bootstrap file.
    pub fn bootstrap_file(&self) -> PathBuf {
        self.config_path.join(BOOTSTRAP_FILE)
    }

    /// The pod's own loopback address: the usual one, or the pod's where pods share one network and have a loopback address
    /// each.
    pub fn loopback(&self) -> IpAddr {
        loopback_of(self.node.id.address)
    }

    /// What to listen on for everybody.
    pub fn any_address(&self) -> IpAddr {
        let own = self.node.id.address;
        if own == self.loopback() && own != IpAddr::V4(Ipv4Addr::LOCALHOST) {
            own
        } else {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        }
    }

    /// The proxy's admin interface.
    pub fn admin_address(&self) -> SocketAddr {
        SocketAddr::new(self.loopback(), self.admin_port)
    }

    /// Where the name server listens.
    pub fn dns_address(&self, wanted: &str) -> Result<SocketAddr, Usage> {
        let default = SocketAddr::new(self.loopback(), dns::PORT);
        let Some((host, port)) = wanted.rsplit_once(':') else {
            return match wanted {
                "" => Ok(default),
                _ => Err(Usage(format!("DNS_PROXY_ADDR {wanted}: write HOST:PORT"))),
            };
        };
        let wrong = || {
            Usage(format!(
                "DNS_PROXY_ADDR {wanted}: write an address and a port"
            ))
        };
        let host = match host.trim_matches(['[', ']']) {
            "localhost" => self.loopback(),
            host => host.parse().map_err(|_| wrong())?,
        };
        Ok(SocketAddr::new(host, port.parse().map_err(|_| wrong())?))
    }

    /// Where the application listens for its proxy.
    pub fn application_address(&self) -> IpAddr {
        let named = self.node.metadata.get(APPLICATION_ADDRESS);
        named
            .and_then(|address| address.parse().ok())
            .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// The secrets' socket.
    pub fn sds_socket(&self) -> PathBuf {
        self.config_path.join(SDS_SOCKET)
    }
}

/// The loopback address of a pod with the address `own`.
pub fn loopback_of(own: IpAddr) -> IpAddr {
    if own.is_loopback() {
        own
    } else {
        IpAddr::V4(Ipv4Addr::LOCALHOST)
    }
}

/// `binaryPath` of the proxy's settings, if it names something else than what they say by default: the proxy is in the agent.
fn other_program(configured: &str) -> Option<PathBuf> {
    let default = mesh_config::default_proxy_config().binary_path;
    (!configured.is_empty() && configured != default).then(|| configured.into())
}

impl StatsInclusion {
    /// What the pod's annotations name, and where they say nothing, what its settings name.
    fn new(matcher: Option<proxy_config::ProxyStatsMatcher>, node: &Node) -> Self {
        let matcher = matcher.unwrap_or_default();
        let pick = |kind: &str, configured: Vec<String>| {
            let annotation = format!("sidecar.istio.io/statsInclusion{kind}");
            match node.metadata.get(&annotation) {
                Some(list) => split(list),
                None => configured,
            }
        };
        Self {
            prefixes: pick("Prefixes", matcher.inclusion_prefixes),
            suffixes: pick("Suffixes", matcher.inclusion_suffixes),
            regexps: pick("Regexps", matcher.inclusion_regexps),
        }
    }
}

fn split(list: &str) -> Vec<String> {
    let items = list.split(',').map(str::trim);
    let items = items.filter(|item| !item.is_empty());
    items.map(str::to_owned).collect()
}

/// The settings when nothing is said.
pub fn default_mesh() -> MeshConfig {
    MeshConfig {
        default_config: Some(mesh_config::default_proxy_config()),
        ..MeshConfig::default()
    }
}

/// The mesh's file, and this proxy's own settings over its `defaultConfig`.
pub fn read_mesh(args: &MeshArgs) -> anyhow::Result<MeshConfig> {
    let mut mesh = default_mesh();
    if let Some(path) = &args.mesh_config {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("read --meshConfig {}", path.display()))?;
        mesh = mesh_config::from_yaml(&text)
            .map_err(|error| Usage(format!("--meshConfig {}: {error}", path.display())))?;
    }
    let own = args.proxy_config.trim();
    if !own.is_empty() {
        let wrong = |error: &dyn std::fmt::Display| Usage(format!("PROXY_CONFIG: {error}"));
        let document = proto::yaml::parse_documents(own)
            .pop()
            .transpose()
            .map_err(|error| wrong(&error))?;
        if let Some(document) = document {
            let base = mesh.default_config.unwrap_or_default();
            let laid = mesh_config::overlay_proxy_config(&base, &document.value);
            mesh.default_config = Some(laid.map_err(|error| wrong(&error))?);
        }
    }
    Ok(mesh)
}

fn discovery_identity(
    args: &ProxyArgs,
    config: &ProxyConfig,
    trust_domain: &str,
) -> anyhow::Result<Option<String>> {
    let is_mutual = match args.control_plane_auth_policy.as_deref() {
        None => config.control_plane_auth_policy() == AuthenticationPolicy::MutualTls,
        Some("NONE") => false,
        Some("MUTUAL_TLS") => true,
        Some(other) => {
            let text = format!("--controlPlaneAuthPolicy {other}: use NONE or MUTUAL_TLS");
            return Err(Usage(text).into());
        }
    };
    if !is_mutual {
        return Ok(None);
    }
    if !args.pilot_identity.is_empty() {
        return Ok(Some(args.pilot_identity.clone()));
    }
    let namespace = &args.features.istio_namespace;
    let identity = SpiffeId::new(trust_domain, namespace, PILOT_SERVICE_ACCOUNT)?;
    Ok(Some(identity.to_string()))
}

fn zipkin_of(tracing: Option<&proto::istio::mesh::v1alpha1::Tracing>) -> String {
    use proto::istio::mesh::v1alpha1::tracing::Tracer;
    match tracing.and_then(|tracing| tracing.tracer.as_ref()) {
        Some(Tracer::Zipkin(zipkin)) => zipkin.address.clone(),
        _ => String::new(),
    }
}

fn port(flag: Option<u16>, configured: i32, name: &str) -> Result<u16, Usage> {
    match flag {
        Some(port) => Ok(port),
        None => u16::try_from(configured)
            .map_err(|_| Usage(format!("{name}: {configured} is not a port"))),
    }
}

fn pick(
    flag: Option<Duration>,
    configured: Option<prost_types::Duration>,
    default: u64,
) -> Duration {
    flag.or_else(|| to_std(configured))
        .unwrap_or(Duration::from_secs(default))
}

fn to_std(duration: Option<prost_types::Duration>) -> Option<Duration> {
    duration.and_then(|duration| Duration::try_from(duration).ok())
}
