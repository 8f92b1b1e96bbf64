//! Flags of `istio-cni install`.

use std::path::PathBuf;

use clap::{ArgAction, Args};

/// What to install, and where.
#[derive(Clone, Debug, Args)]
pub struct InstallArgs {
    /// The plugin's configuration, JSON.
    #[arg(long, env = "CNI_NETWORK_CONFIG", value_name = "JSON")]
    pub network_config: Option<String>,
    /// A file with it, which counts before the text.
    #[arg(long, env = "CNI_NETWORK_CONFIG_FILE", value_name = "FILE")]
    pub network_config_file: Option<PathBuf>,
    /// Folder of the node's network configurations, as it is mounted here.
    #[arg(
        long,
        env = "MOUNTED_CNI_NET_DIR",
        default_value = "/host/etc/cni/net.d"
    )]
    pub mounted_net_dir: PathBuf,
    /// The same folder as the node calls it.
    #[arg(long, env = "CNI_NET_DIR", default_value = "/etc/cni/net.d")]
    pub net_dir: PathBuf,
    /// Folders for the program, as they are mounted here; those that are not there are left out.
    #[arg(
        long,
        env = "MOUNTED_CNI_BIN_DIRS",
        value_delimiter = ',',
        default_value = "/host/opt/cni/bin,/host/secondary-bin-dir"
    )]
    pub mounted_bin_dirs: Vec<PathBuf>,
    /// The configuration to extend; the first one if not given.
    #[arg(long, env = "CNI_CONF_NAME", value_name = "NAME", default_value = "")]
    pub conf_name: String,
    /// Extend the network that is there. Otherwise the plugin is a network of its own, for those that call it by name.
    #[arg(long, env = "CHAINED_CNI_PLUGIN", default_value_t = true, action = ArgAction::Set)]
    pub chained: bool,
    /// Programs not to be copied.
    #[arg(long, env = "SKIP_CNI_BINARIES", value_delimiter = ',')]
    pub skip_binaries: Vec<String>,
    /// Replace a program that is there already.
    #[arg(long, env = "UPDATE_CNI_BINARIES", default_value_t = true, action = ArgAction::Set)]
    pub update_binaries: bool,
    /// Name of the kubeconfig file.
    #[arg(
        long,
        env = "KUBECFG_FILE_NAME",
        default_value = "ZZZ-istio-cni-kubeconfig"
    )]
    pub kubeconfig_name: String,
    /// The API server's authority.
    #[arg(
        long,
        env = "KUBE_CA_FILE",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
    )]
    pub authority: PathBuf,
    /// Do not check the API server's certificate.
    #[arg(long, env = "SKIP_TLS_VERIFY", default_value_t = false, action = ArgAction::Set)]
    pub skip_tls_verify: bool,
    /// The service account's token.
    #[arg(
        long,
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    )]
    pub token: PathBuf,
    /// Host of the API server.
    #[arg(long, env = "KUBERNETES_SERVICE_HOST")]
    pub api_host: String,
    /// Its port.
    #[arg(long, env = "KUBERNETES_SERVICE_PORT", default_value_t = 443)]
    pub api_port: u16,
    /// How much the plugin says: `error`, `warn`, `info` or `debug`.
    #[arg(long, env = "LOG_LEVEL", default_value = "warn")]
    pub plugin_log_level: String,
    /// Seconds between two looks.
    #[arg(long, env = "CFGCHECK_INTERVAL", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub check_interval: u64,
    /// Stay, keep everything in place, and remove it at the end.
    #[arg(long, env = "SLEEP", default_value_t = true, action = ArgAction::Set)]
    pub sleep: bool,
    /// Only tell whether everything is in place.
    #[arg(long)]
    pub check: bool,
}
