//! Settings that Istio's agent takes from the environment: one struct, a sentence each. The node's metadata (`ISTIO_META_…`) is
//! read in `node`.

use std::time::Duration;

use clap::Args;
use proto_component::args::parse_duration;

/// The environment of `pilot-agent`.
#[derive(Debug, Clone, Args)]
pub struct Features {
    /// The pod's name.
    #[arg(
        long = "env-pod-name",
        hide = true,
        env = "POD_NAME",
        default_value = ""
    )]
    pub pod_name: String,
    /// The pod's namespace.
    #[arg(
        long = "env-pod-namespace",
        hide = true,
        env = "POD_NAMESPACE",
        default_value = ""
    )]
    pub pod_namespace: String,
    /// The pod's service account.
    #[arg(
        long = "env-service-account",
        hide = true,
        env = "SERVICE_ACCOUNT",
        default_value = ""
    )]
    pub service_account: String,
    /// Namespace of the control plane.
    #[arg(
        long = "env-istio-namespace",
        hide = true,
        env = "ISTIO_NAMESPACE",
        default_value = "istio-system"
    )]
    pub istio_namespace: String,
    /// Probes of the application that the injector has redirected here, JSON.
    #[arg(
        long = "env-app-probers",
        hide = true,
        env = "ISTIO_KUBE_APP_PROBERS",
        default_value = ""
    )]
    pub app_probers: String,
    /// Where the application's metrics are, JSON: the pod's `prometheus.io` annotations.
    #[arg(
        long = "env-prometheus-annotations",
        hide = true,
        env = "ISTIO_PROMETHEUS_ANNOTATIONS",
        default_value = ""
    )]
    pub prometheus_annotations: String,
    /// Seconds that connections may go on after SIGTERM.
    #[arg(
        long = "env-termination-drain",
        hide = true,
        env = "TERMINATION_DRAIN_DURATION_SECONDS"
    )]
    pub termination_drain_seconds: Option<u64>,
    /// End the drain as soon as no connection is left.
    #[arg(long = "env-exit-on-zero", hide = true, env = "EXIT_ON_ZERO_ACTIVE_CONNECTIONS", default_value_t = false, action = clap::ArgAction::Set)]
    pub exit_on_zero_active_connections: bool,
    /// Never end the drain earlier than this, even with no connection left.
    #[arg(long = "env-minimum-drain", hide = true, env = "MINIMUM_DRAIN_DURATION", default_value = "0s", value_parser = parse_duration)]
    pub minimum_drain_duration: Duration,
    /// Lifetime asked for.
    #[arg(long = "env-secret-ttl", hide = true, env = "SECRET_TTL", default_value = "24h", value_parser = parse_duration)]
    pub secret_ttl: Duration,
    /// Renew when less than this share of the lifetime remains.
    #[arg(long = "env-grace-ratio", hide = true, env = "SECRET_GRACE_PERIOD_RATIO", default_value_t = 0.5, value_parser = parse_ratio)]
    pub secret_grace_period_ratio: f64,
    /// Spread of that share, so that proxies do not come back together.
    #[arg(long = "env-grace-jitter", hide = true, env = "SECRET_GRACE_PERIOD_RATIO_JITTER", default_value_t = 0.05, value_parser = parse_ratio)]
    pub secret_grace_period_ratio_jitter: f64,
    /// The certificate is in files, which somebody else keeps; nothing is asked of Citadel.
    #[arg(long = "env-file-mounted-certs", hide = true, env = "FILE_MOUNTED_CERTS", default_value_t = false, action = clap::ArgAction::Set)]
    pub file_mounted_certs: bool,
    /// Answer the application's name queries, with the names of the mesh among them.
    #[arg(long = "env-dns-capture", hide = true, env = "ISTIO_META_DNS_CAPTURE", default_value_t = false, action = clap::ArgAction::Set)]
    pub dns_capture: bool,
    /// Where the name server listens (default: port 15053 of the loopback address).
    #[arg(
        long = "env-dns-proxy-address",
        hide = true,
        env = "DNS_PROXY_ADDR",
        default_value = ""
    )]
    pub dns_proxy_address: String,
    /// Ask Pilot for patches of the bootstrap, and do not start the proxy without.
    #[arg(long = "env-bootstrap-xds-agent", hide = true, env = "BOOTSTRAP_XDS_AGENT", default_value_t = false, action = clap::ArgAction::Set)]
    pub bootstrap_xds_agent: bool,
    /// Where the pod's labels are (downward API).
    #[arg(
        long = "env-labels-file",
        hide = true,
        env = "POD_LABELS_FILE",
        default_value = "/etc/istio/pod/labels"
    )]
    pub labels_file: std::path::PathBuf,
}

fn parse_ratio(text: &str) -> Result<f64, String> {
    let ratio: f64 = text
        .parse()
        .map_err(|_| format!("`{text}` is not a number"))?;
    if (0.0..=1.0).contains(&ratio) {
        Ok(ratio)
    } else {
        Err(format!("`{text}` is not between 0 and 1"))
    }
}
