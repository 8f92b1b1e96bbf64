//! Settings that Istio takes from the environment: one struct, a sentence each.

use std::time::Duration;

use clap::Args;
use proto_component::args::parse_duration;

use crate::pki::Curve;

/// The environment of `istio_ca`.
#[derive(Debug, Clone, Args)]
pub struct Features {
    /// Lifetime of a self-signed root.
    #[arg(id = "ca-ttl", long = "self-signed-ca-cert-ttl", hide = true, env = "CITADEL_SELF_SIGNED_CA_CERT_TTL", default_value = "87600h", value_parser = parse_duration)]
    pub self_signed_ca_cert_ttl: Duration,
    /// How often the root's remaining life is looked at; 0 turns rotation off.
    #[arg(long, hide = true, env = "CITADEL_SELF_SIGNED_ROOT_CERT_CHECK_INTERVAL", default_value = "1h", value_parser = parse_duration_or_off)]
    pub root_cert_check_interval: Duration,
    /// The root is renewed when less than this percentage of its life remains.
    #[arg(long, hide = true, env = "CITADEL_SELF_SIGNED_ROOT_CERT_GRACE_PERIOD_PERCENTILE", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub root_cert_grace_period_percentile: u32,
    /// How long a next root is only made known before it signs.
    #[arg(long, hide = true, env = "CITADEL_SELF_SIGNED_ROOT_CERT_INTRODUCTION", default_value = "10m", value_parser = parse_duration)]
    pub root_cert_introduction: Duration,
    /// How long the previous root is still trusted; 0 is as long as a certificate may live.
    #[arg(long, hide = true, env = "CITADEL_SELF_SIGNED_ROOT_CERT_RETIREMENT", default_value = "0", value_parser = parse_duration)]
    pub root_cert_retirement: Duration,
    /// Curve of a self-signed root's key.
    #[arg(long, hide = true, env = "ECC_CURVE", value_enum, default_value_t)]
    pub curve: Curve,
    /// Accounts (`NAMESPACE/ACCOUNT`) that may ask for certificates of other identities of this trust domain.
    #[arg(
        long,
        hide = true,
        env = "CA_TRUSTED_NODE_ACCOUNTS",
        value_delimiter = ','
    )]
    pub trusted_node_accounts: Vec<String>,
    /// A mounted certificate is made anew at least this long before its end.
    #[arg(long, hide = true, env = "CITADEL_WORKLOAD_CERT_MIN_GRACE_PERIOD", default_value = "10m", value_parser = parse_duration)]
    pub workload_cert_min_grace_period: Duration,
    /// Whether accounts of namespaces without labels get Secrets.
    #[arg(long, hide = true, env = "CITADEL_ENABLE_NAMESPACES_BY_DEFAULT", default_value_t = true, action = clap::ArgAction::Set)]
    pub enable_namespaces_by_default: bool,
    /// Whether the first look comes after a random delay.
    #[arg(long, hide = true, env = "CITADEL_ENABLE_JITTER_FOR_ROOT_CERT_ROTATOR", default_value_t = true, action = clap::ArgAction::Set)]
    pub root_cert_rotator_jitter: bool,
}

/// Istio turns rotation off with any value that is not positive.
fn parse_duration_or_off(text: &str) -> Result<Duration, String> {
    if text.starts_with('-') {
        return Ok(Duration::ZERO);
    }
    parse_duration(text)
}
