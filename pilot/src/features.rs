//! What the environment may change, as in Istio: one struct, read once at the start.

use std::time::Duration;

use clap::Args;
use proto_component::args::parse_duration;
use serde::Serialize;

/// Settings that are environment variables in Istio.
#[derive(Args, Clone, Debug, Serialize)]
pub struct Features {
    /// Pushes at once.
    #[arg(long, env = "PILOT_PUSH_THROTTLE", default_value_t = 100, hide = true)]
    pub push_throttle: usize,
    /// Streams that may begin in a second; the others wait for their turn, and come back later if it takes too long. 0 means 50
    /// for each core.
    #[arg(
        long,
        env = "PILOT_MAX_REQUESTS_PER_SECOND",
        default_value_t = 0,
        hide = true
    )]
    pub max_requests_per_second: u32,
    /// Quiet time before changes take effect; endpoints alone wait no longer than 10 ms.
    #[arg(long, env = "PILOT_DEBOUNCE_AFTER", default_value = "100ms", value_parser = parse_duration, hide = true)]
    pub debounce_after: Duration,
    /// Longest time from the first change; endpoints alone wait no longer than 100 ms.
    #[arg(long, env = "PILOT_DEBOUNCE_MAX", default_value = "10s", value_parser = parse_duration, hide = true)]
    pub debounce_max: Duration,
    /// How long the entry of a machine that has registered itself outlives its last stream.
    #[arg(long, env = "PILOT_WORKLOAD_ENTRY_GRACE_PERIOD", default_value = "10s", value_parser = parse_duration, hide = true)]
    pub workload_entry_grace_period: Duration,
    /// How often the keys of token issuers that are known are fetched again.
    #[arg(long, env = "PILOT_JWT_PUB_KEY_REFRESH_INTERVAL", default_value = "20m", value_parser = parse_duration, hide = true)]
    pub jwt_pub_key_refresh_interval: Duration,
    /// This replica's name: the pod's.
    #[arg(long, env = "POD_NAME", default_value = "istio-pilot", hide = true)]
    pub pod_name: String,
    /// Streams on one connection. The name is Istio's.
    #[arg(
        long,
        env = "ISTIO_GPRC_MAXSTREAMS",
        default_value_t = 100_000,
        hide = true
    )]
    pub grpc_max_streams: u32,
    /// How long a proxy may take to read a push.
    #[arg(long, env = "PILOT_XDS_SEND_TIMEOUT", default_value = "5s", value_parser = parse_duration, hide = true)]
    pub send_timeout: Duration,
    /// Name of the cluster that `--registries Kubernetes` is about.
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes", hide = true)]
    pub cluster_id: String,
    /// Whom the tokens of proxies must be made out to.
    #[arg(
        long,
        env = "TOKEN_AUDIENCES",
        value_delimiter = ',',
        default_value = "istio-ca",
        hide = true
    )]
    pub token_audiences: Vec<String>,
    /// Folder with `cert-chain.pem`, `key.pem` and `root-cert.pem` for the ports with TLS.
    #[arg(
        long,
        env = "PILOT_CERT_DIR",
        default_value = "/etc/certs",
        hide = true
    )]
    pub cert_dir: std::path::PathBuf,
}
