//! The command line of `istio_ca`: Istio's flags with Istio's defaults, and those of this program (`--data-dir`, `--oidc-…`,
//! `--root-cert-out`). Flags that only concern parts that are not built here are accepted and named once in the log.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use proto_component::args::{LogArgs, parse_duration};
use proto_component::kubernetes::lease::LeaseArgs;
use proto_component::version::VersionArgs;

use proto_component::process::Usage;

use crate::features::Features;
use crate::kubernetes::{Account, SecretSettings};

const DATA_DIR: &str = "/var/lib/bireme/citadel";

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
    /// Look into the ledger: who got what, when, from where.
    #[command(subcommand)]
    Certs(CertsAction),
    /// Revoke certificates: new connections with them are refused, open ones are closed.
    Revoke(RevokeArgs),
    /// Let a revoked identity have certificates again.
    Restore(RestoreArgs),
    /// Replace the self-signed root by one with another key, in two steps that break no connection.
    RotateRoot(AdminArgs),
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

/// Where the server is that a command is for.
#[derive(Debug, Clone, Args)]
pub struct AdminArgs {
    /// The server's --data-dir: its socket is there.
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
}

/// What to look for in the ledger.
#[derive(Debug, Subcommand)]
pub enum CertsAction {
    /// List certificates, newest first.
    List(ListArgs),
    /// Show everything about one certificate.
    Show(ShowArgs),
    /// Check that the ledger is what was written.
    Verify(AdminArgs),
}

/// Flags of `certs list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// The server.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// How many.
    #[arg(long, default_value_t = 100)]
    pub limit: usize,
    /// Only of this identity.
    #[arg(long)]
    pub identity: Option<String>,
    /// json instead of a table.
    #[arg(short, long, value_parser = ["json"])]
    pub output: Option<String>,
}

/// Flags of `certs show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The server.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// json instead of lines.
    #[arg(short, long, value_parser = ["json"])]
    pub output: Option<String>,
}

/// Flags of `revoke`.
#[derive(Debug, Args)]
#[group(id = "what", required = true, multiple = false, args = ["serial", "identity"])]
pub struct RevokeArgs {
    /// The server.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// One certificate, by its serial number; its owner may get another.
    #[arg(long)]
    pub serial: Option<String>,
    /// Everything that an identity has; it gets no other until it is restored.
    #[arg(long, value_name = "SPIFFE_ID")]
    pub identity: Option<String>,
}

/// Flags of `restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The server.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// The identity.
    #[arg(long, value_name = "SPIFFE_ID")]
    pub identity: String,
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
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    /// Write the root certificate here, for others to trust, and the revocation lists beside it (`ca-crl.pem`).
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
    /// Only serve: keep no Secrets for service accounts.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub server_only: bool,
    /// Keep Secrets only in these namespaces (default: all).
    #[arg(long, value_delimiter = ',')]
    pub listened_namespaces: Vec<String>,
    /// Make a Secret's certificate anew when less than this share of its life is left.
    #[arg(long, default_value_t = 0.5)]
    pub workload_cert_grace_period_ratio: f64,
    /// Put the host names of the mesh's own webhooks into their accounts' certificates.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub append_dns_names: bool,
    /// Further host names: ACCOUNT.NAMESPACE:HOST.
    #[arg(long, value_delimiter = ',')]
    pub custom_dns_names: Vec<String>,
    /// Of several replicas the leader writes to the cluster.
    #[command(flatten)]
    pub election: LeaseArgs,
    /// Flags of Istio that nothing here looks at.
    #[command(flatten)]
    pub ignored: IgnoredArgs,
}

/// Flags of Istio's Citadel for what this program does not do; accepted so that its deployments start.
#[derive(Debug, Clone, Args)]
pub struct IgnoredArgs {
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    read_signing_cert_only: Option<String>,
    #[arg(long, hide = true)]
    upstream_ca_address: Option<String>,
    #[arg(long, hide = true)]
    requested_ca_cert_ttl: Option<String>,
    #[arg(long, hide = true)]
    key_size: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sign_ca_certs: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pkcs8_keys: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    enable_profiling: Option<String>,
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
            ("read-signing-cert-only", &self.read_signing_cert_only),
            ("upstream-ca-address", &self.upstream_ca_address),
            ("requested-ca-cert-ttl", &self.requested_ca_cert_ttl),
            ("key-size", &self.key_size),
            ("sign-ca-certs", &self.sign_ca_certs),
            ("pkcs8-keys", &self.pkcs8_keys),
            ("enable-profiling", &self.enable_profiling),
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

    /// What the Secrets of service accounts are to be like.
    pub fn secret_settings(&self, features: &Features) -> Result<SecretSettings, Usage> {
        let own = &self.citadel_storage_namespace;
        let mut dns_names: BTreeMap<Account, Vec<String>> = BTreeMap::new();
        let mut add = |namespace: &str, name: &str, host: String| {
            let account = Account {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            };
            dns_names.entry(account).or_default().push(host);
        };
        if self.append_dns_names {
            for service in ["istio-sidecar-injector", "istio-galley"] {
                for host in [format!("{service}.{own}.svc"), format!("{service}.{own}")] {
                    add(own, &format!("{service}-service-account"), host);
                }
            }
        }
        for entry in self
            .custom_dns_names
            .iter()
            .filter(|entry| !entry.is_empty())
        {
            let parts = entry.split_once(':').and_then(|(account, host)| {
                let (name, namespace) = account.split_once('.')?;
                Some((namespace, name, host))
            });
            let (namespace, name, host) = parts.ok_or_else(|| {
                Usage(format!(
                    "--custom-dns-names {entry}: write ACCOUNT.NAMESPACE:HOST"
                ))
            })?;
            add(namespace, name, host.to_owned());
        }
        let ratio = self.workload_cert_grace_period_ratio;
        if !(0.0..=1.0).contains(&ratio) {
            return Err(Usage(format!(
                "--workload-cert-grace-period-ratio {ratio}: a share is from 0 to 1"
            )));
        }
        let ttl = self.workload_cert_ttl;
        let grace = ttl
            .mul_f64(ratio)
            .max(features.workload_cert_min_grace_period);
        Ok(SecretSettings {
            trust_domain: self.trust_domain().to_owned(),
            ttl,
            // Never all of its life, or it would be made anew without an end.
            grace: grace.min(ttl.mul_f64(0.9)),
            dns_names,
            namespaces: self.listened_namespaces.clone(),
            is_default_managed: features.enable_namespaces_by_default,
            own_namespace: own.clone(),
            dual_use: self.experimental_dual_use,
        })
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
        assert_eq!(command.serve.ignored.given(), ["sds-enabled"]);
        assert!(
            command
                .serve
                .host_names()
                .contains(&"istio-citadel.istio-system.svc".to_owned())
        );
    }

    #[test]
    fn no_two_flags_are_in_each_others_way() {
        <Command as clap::CommandFactory>::command().debug_assert();
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
