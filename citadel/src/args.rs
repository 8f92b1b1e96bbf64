//! The command line of `istio_ca`: Istio's flags with Istio's defaults, and those of this program (`--data-dir`, `--oidc-…`,
//! `--root-cert-out`). Flags that only concern parts that are not built here (Kubernetes secrets) are accepted and named once
//! in the log.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use proto_component::args::{LogArgs, parse_duration};
use proto_component::version::VersionArgs;

use crate::features::Features;

/// Istio Certificate Authority (CA).
#[derive(Debug, Parser)]
#[command(name = "istio_ca", disable_version_flag = true)]
pub struct Command {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub action: Option<Action>,
    /// Settings of the server.
    #[command(flatten)]
    pub serve: ServeArgs,
    /// Environment.
    #[command(flatten)]
    pub features: Features,
    /// Logging.
    #[command(flatten)]
    pub log: LogArgs,
}

/// One-shot commands.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Check the liveness of a local server by the age of its probe file.
    Probe(ProbeArgs),
    /// List what a local server has issued, newest first.
    Ledger(LedgerArgs),
    /// Print the version.
    Version(VersionArgs),
}

/// Flags of `probe`.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// The file that the server touches.
    #[arg(long = "probe-path")]
    pub path: PathBuf,
    /// How old it may be.
    #[arg(long, default_value = "60s", value_parser = parse_duration)]
    pub interval: Duration,
}

/// Flags of `ledger`.
#[derive(Debug, Args)]
pub struct LedgerArgs {
    /// The server's monitoring address.
    #[arg(long, default_value = "127.0.0.1:15014")]
    pub address: String,
    /// How many entries.
    #[arg(long, default_value_t = 100)]
    pub limit: usize,
    /// Only this identity.
    #[arg(long)]
    pub identity: Option<String>,
}

/// Flags of the server.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Use a self-signed root, made at the first start.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub self_signed_ca: bool,
    /// Certificate of a plugged-in CA.
    #[arg(long, value_name = "FILE")]
    pub signing_cert: Option<PathBuf>,
    /// Private key of a plugged-in CA.
    #[arg(long, value_name = "FILE")]
    pub signing_key: Option<PathBuf>,
    /// Root certificate of a plugged-in CA.
    #[arg(long, value_name = "FILE")]
    pub root_cert: Option<PathBuf>,
    /// Certificates between a plugged-in CA and its root.
    #[arg(long, value_name = "FILE")]
    pub cert_chain: Option<PathBuf>,
    /// Where root and ledger are kept.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/bireme/citadel")]
    pub data_dir: PathBuf,
    /// Write the root certificate here, for others to trust.
    #[arg(long, value_name = "FILE")]
    pub root_cert_out: Option<PathBuf>,
    /// Issuer of the service account tokens.
    #[arg(long, value_name = "URL")]
    pub oidc_issuer: Option<String>,
    /// The issuer's keys: a file, or an http or https address.
    #[arg(long, value_name = "FILE|URL")]
    pub oidc_jwks: Option<String>,
    /// Audience that tokens must name; may be repeated.
    #[arg(
        long,
        value_name = "AUDIENCE",
        value_delimiter = ',',
        default_value = "istio-ca"
    )]
    pub oidc_audience: Vec<String>,
    /// Who may vouch for an https --oidc-jwks (default: the cluster's CA and the system's).
    #[arg(long, value_name = "FILE")]
    pub oidc_ca_cert: Option<PathBuf>,
    /// The mesh's trust domain (default cluster.local).
    #[arg(long, default_value = "")]
    pub trust_domain: String,
    /// Organization in a self-signed root (default: the trust domain).
    #[arg(long, default_value = "")]
    pub org: String,
    /// Lifetime of certificates for callers that don't ask for one.
    #[arg(long, default_value = "2160h", value_parser = parse_duration)]
    pub workload_cert_ttl: Duration,
    /// The longest lifetime that a caller may ask for.
    #[arg(long, default_value = "2160h", value_parser = parse_duration)]
    pub max_workload_cert_ttl: Duration,
    /// Names in the server's own certificate.
    #[arg(long, value_delimiter = ',', default_value = "istio-ca,istio-citadel")]
    pub grpc_host_identities: Vec<String>,
    /// Port of the CSR service; 0 turns it off, as in Istio.
    #[arg(long, default_value_t = 8060)]
    pub grpc_port: u16,
    /// Address that the CSR service listens on.
    #[arg(long, default_value = "0.0.0.0")]
    pub grpc_address: std::net::IpAddr,
    /// Port for metrics, health and debugging.
    #[arg(long, default_value_t = 15014)]
    pub monitoring_port: u16,
    /// Put the identity into the subject's common name too.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub experimental_dual_use: bool,
    /// File that is touched while the CA can sign.
    #[arg(long, value_name = "FILE")]
    pub liveness_probe_path: Option<PathBuf>,
    /// How often it is touched; 0 turns it off.
    #[arg(long, default_value = "0", value_parser = parse_duration)]
    pub liveness_probe_interval: Duration,
    /// How often the CA tries whether it can sign.
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    pub probe_check_interval: Duration,
    /// Forget certificates this long after they have expired.
    #[arg(long, default_value = "720h", value_parser = parse_duration)]
    pub ledger_retention: Duration,
    /// Namespace of Citadel itself.
    #[arg(long, default_value = "istio-system")]
    pub citadel_storage_namespace: String,
    /// Kubernetes' API server: a kubeconfig file; in a pod its service account is used without one.
    #[arg(long, value_name = "FILE")]
    pub kube_config: Option<PathBuf>,
    /// Flags of Istio that nothing here looks at.
    #[command(flatten)]
    pub ignored: IgnoredArgs,
}

/// Flags of Istio's Citadel for what this program does not do (yet); accepted so that its deployments start.
#[derive(Debug, Clone, Args)]
pub struct IgnoredArgs {
    #[arg(long, hide = true)]
    listened_namespaces: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    read_signing_cert_only: Option<String>,
    #[arg(long, hide = true)]
    upstream_ca_address: Option<String>,
    #[arg(long, hide = true)]
    requested_ca_cert_ttl: Option<String>,
    #[arg(long, hide = true)]
    key_size: Option<String>,
    #[arg(long, hide = true)]
    workload_cert_grace_period_ratio: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    server_only: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sign_ca_certs: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pkcs8_keys: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    enable_profiling: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    append_dns_names: Option<String>,
    #[arg(long, hide = true)]
    custom_dns_names: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sds_enabled: Option<String>,
    #[arg(long = "ctrlz_address", hide = true)]
    ctrlz_address: Option<String>,
    #[arg(long = "ctrlz_port", hide = true)]
    ctrlz_port: Option<String>,
}

impl IgnoredArgs {
    /// The flags that were given and have no effect.
    pub fn given(&self) -> Vec<&'static str> {
        let flags = [
            ("listened-namespaces", &self.listened_namespaces),
            ("read-signing-cert-only", &self.read_signing_cert_only),
            ("upstream-ca-address", &self.upstream_ca_address),
            ("requested-ca-cert-ttl", &self.requested_ca_cert_ttl),
            ("key-size", &self.key_size),
            (
                "workload-cert-grace-period-ratio",
                &self.workload_cert_grace_period_ratio,
            ),
            ("server-only", &self.server_only),
            ("sign-ca-certs", &self.sign_ca_certs),
            ("pkcs8-keys", &self.pkcs8_keys),
            ("enable-profiling", &self.enable_profiling),
            ("append-dns-names", &self.append_dns_names),
            ("custom-dns-names", &self.custom_dns_names),
            ("sds-enabled", &self.sds_enabled),
            ("ctrlz_address", &self.ctrlz_address),
            ("ctrlz_port", &self.ctrlz_port),
        ];
        let given = flags.into_iter().filter(|(_, value)| value.is_some());
        given.map(|(name, _)| name).collect()
    }
}

impl ServeArgs {
    /// The trust domain, with Istio's default.
    pub fn trust_domain(&self) -> &str {
        if self.trust_domain.is_empty() {
            "cluster.local"
        } else {
            &self.trust_domain
        }
    }

    /// Names in the server's certificate: those of the flag, each also with the namespace and the service suffix.
    pub fn host_names(&self) -> Vec<String> {
        let namespace = &self.citadel_storage_namespace;
        let mut names = Vec::new();
        for host in &self.grpc_host_identities {
            names.push(host.clone());
            if !host.contains('.') {
                names.push(format!("{host}.{namespace}"));
                names.push(format!("{host}.{namespace}.svc"));
                names.push(format!("{host}.{namespace}.svc.cluster.local"));
            }
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_local_meshs_command_line_parses() {
        let command = Command::parse_from([
            "istio_ca",
            "--self-signed-ca=true",
            "--grpc-port",
            "8060",
            "--trust-domain",
            "cluster.local",
            "--monitoring-port=15014",
            "--data-dir=/d",
            "--oidc-issuer=https://issuer",
            "--oidc-jwks=/jwks.json",
            "--oidc-audience=istio-ca",
            "--root-cert-out=/root.pem",
            "--sds-enabled=true",
            "--append-dns-names",
        ]);
        assert!(command.serve.self_signed_ca);
        assert_eq!(command.serve.oidc_audience, ["istio-ca"]);
        assert_eq!(
            command.serve.ignored.given(),
            ["append-dns-names", "sds-enabled"]
        );
        assert!(
            command
                .serve
                .host_names()
                .contains(&"istio-citadel.istio-system.svc".to_owned())
        );
    }

    #[test]
    fn defaults_are_istios() {
        let serve = Command::parse_from(["istio_ca"]).serve;
        assert_eq!(serve.workload_cert_ttl, Duration::from_secs(90 * 24 * 3600));
        assert_eq!(serve.max_workload_cert_ttl, serve.workload_cert_ttl);
        assert_eq!(serve.grpc_port, 8060);
        assert_eq!(serve.trust_domain(), "cluster.local");
        assert!(!serve.self_signed_ca);
    }
}
