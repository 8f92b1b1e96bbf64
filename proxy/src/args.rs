//! Flags of `bireme-proxy`, named as Envoy's, and the options of the library.

use proto_component::args::LogArgs;
use std::{path::PathBuf, time::Duration};

/// `bireme-proxy`: an Envoy-shaped data plane.
#[derive(Debug, clap::Parser)]
#[command(
    name = "bireme-proxy",
    version,
    about = "The data plane: serves what an Envoy v3 bootstrap and xDS configure."
)]
pub struct Args {
    /// Bootstrap file, YAML or JSON.
    #[arg(short = 'c', long = "config-path", value_name = "FILE")]
    pub config_path: Option<PathBuf>,
    /// Bootstrap in place, merged over the file.
    #[arg(long = "config-yaml", value_name = "YAML")]
    pub config_yaml: Option<String>,
    /// Worker threads; the number of cores if not given.
    #[arg(long, value_name = "N")]
    pub concurrency: Option<usize>,
    /// Node's cluster, over the bootstrap's.
    #[arg(long = "service-cluster", value_name = "NAME")]
    pub service_cluster: Option<String>,
    /// Node's id, over the bootstrap's.
    #[arg(long = "service-node", value_name = "ID")]
    pub service_node: Option<String>,
    /// Node's zone, over the bootstrap's.
    #[arg(long = "service-zone", value_name = "ZONE")]
    pub service_zone: Option<String>,
    /// Log level: trace, debug, info, warning, error, critical, off.
    #[arg(
        short = 'l',
        long = "log-level",
        value_name = "LEVEL",
        default_value = "info"
    )]
    pub log_level: String,
    /// Levels by component: `pool:debug,ads:trace`.
    #[arg(
        long = "component-log-level",
        value_name = "LEVELS",
        default_value = ""
    )]
    pub component_log_level: String,
    /// Seconds that connections of a listener or chain that goes may last.
    #[arg(long = "drain-time-s", value_name = "SECONDS", default_value_t = 600)]
    pub drain_time_s: u64,
    /// Accepted for Envoy's sake; there is no parent process.
    #[arg(long = "parent-shutdown-time-s", value_name = "SECONDS", hide = true)]
    pub parent_shutdown_time_s: Option<u64>,
    /// Accepted for Envoy's sake; there is no hot restart.
    #[arg(long = "disable-hot-restart", hide = true)]
    pub disable_hot_restart: bool,
    /// Accepted for Envoy's sake; there is no hot restart.
    #[arg(long = "base-id", value_name = "ID", hide = true)]
    pub base_id: Option<u32>,
    /// Accepted for Envoy's sake; there is no hot restart.
    #[arg(long = "restart-epoch", value_name = "N", hide = true)]
    pub restart_epoch: Option<u32>,
    /// Accepted for Envoy's sake; there is no hot restart.
    #[arg(long = "use-dynamic-base-id", hide = true)]
    pub use_dynamic_base_id: bool,
    /// How long a line of an access log may wait before it is written, in milliseconds.
    #[arg(
        long = "file-flush-interval-msec",
        value_name = "MILLISECONDS",
        default_value_t = 250
    )]
    pub file_flush_interval_msec: u64,
    /// Accepted for Envoy's sake; names have no limit.
    #[arg(long = "local-address-ip-version", value_name = "VERSION", hide = true)]
    pub local_address_ip_version: Option<String>,
    /// Writes the admin interface's address to this file.
    #[arg(long = "admin-address-path", value_name = "FILE")]
    pub admin_address_path: Option<PathBuf>,
    /// Leaves fields of the bootstrap out that are not known here, instead of refusing it.
    #[arg(
        long = "allow-unknown-static-fields",
        visible_alias = "allow-unknown-fields"
    )]
    pub allow_unknown_static_fields: bool,
    /// Accepted for Envoy's sake; fields of xDS that are not known here never count.
    #[arg(long = "ignore-unknown-dynamic-fields", hide = true)]
    pub ignore_unknown_dynamic_fields: bool,
    /// Accepted for Envoy's sake; draining connections are always asked at once to end.
    #[arg(
        long = "drain-strategy",
        value_name = "STRATEGY",
        value_parser = ["immediate"],
        hide = true
    )]
    pub drain_strategy: Option<String>,
    /// Accepted for Envoy's sake; a line of the log has one form.
    #[arg(long = "log-format", value_name = "FORMAT", hide = true)]
    pub log_format: Option<String>,
    /// Accepted for Envoy's sake; the log does not speak of deprecated fields.
    #[arg(long = "skip-deprecated-logs", hide = true)]
    pub skip_deprecated_logs: bool,
    /// Accepted for Envoy's sake; the number of workers heeds the set of cores anyway.
    #[arg(long = "cpuset-threads", hide = true)]
    pub cpuset_threads: bool,
    /// `serve`, or `validate`: check the bootstrap and end.
    #[arg(long, value_name = "MODE", default_value = "serve")]
    pub mode: Mode,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Serve.
    Serve,
    /// Check the bootstrap and end.
    Validate,
    /// Write the bootstrap, encoded, to standard output and end.
    #[value(hide = true)]
    Compile,
}

/// What a proxy is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The bootstrap.
    pub bootstrap: BootstrapSource,
    /// Worker threads; the number of cores if not given.
    pub concurrency: Option<usize>,
    /// Over the bootstrap's node.
    pub service_cluster: Option<String>,
    /// Over the bootstrap's node.
    pub service_node: Option<String>,
    /// Over the bootstrap's node.
    pub service_zone: Option<String>,
    /// How long connections of a listener or chain that goes may last.
    pub drain_time: Duration,
    /// How long a line of an access log may wait before it is written.
    pub log_flush_interval: Duration,
    /// Where the admin interface's address is written.
    pub admin_address_path: Option<PathBuf>,
    /// The bootstrap's file, to be shown, when `bootstrap` is the message read from it.
    pub config_path: Option<PathBuf>,
    /// Log levels, for `/logging`.
    pub logging: Option<proto_component::logging::Logging>,
    /// Check the bootstrap and end.
    pub validate_only: bool,
    /// Fields of the bootstrap that are not known are left out.
    pub allows_unknown_fields: bool,
}

/// Where the bootstrap comes from.
#[derive(Clone, Debug)]
pub enum BootstrapSource {
    /// A file, YAML or JSON.
    File(PathBuf),
    /// In place.
    Text(String),
    /// A file, and a text that is merged over it.
    Merged(PathBuf, String),
    /// Made in this process: needs no descriptors.
    Message(Box<proto::envoy::config::bootstrap::v3::Bootstrap>),
}

impl Options {
    /// Options with the defaults of the flags.
    pub fn new(bootstrap: BootstrapSource) -> Self {
        Self {
            bootstrap,
            concurrency: None,
            service_cluster: None,
            service_node: None,
            service_zone: None,
            drain_time: Duration::from_secs(600),
            log_flush_interval: Duration::from_millis(250),
            admin_address_path: None,
            config_path: None,
            logging: None,
            validate_only: false,
            allows_unknown_fields: false,
        }
    }
}

impl Options {
    /// The bootstrap's file, if it came from one.
    pub(crate) fn config_path(&self) -> Option<PathBuf> {
        match &self.bootstrap {
            BootstrapSource::File(file) | BootstrapSource::Merged(file, _) => Some(file.clone()),
            BootstrapSource::Text(_) | BootstrapSource::Message(_) => self.config_path.clone(),
        }
    }
}

impl Args {
    /// The options that the flags mean.
    ///
    /// # Errors
    /// When neither `-c` nor `--config-yaml` is given.
    pub fn options(self) -> Result<Options, String> {
        let bootstrap = match (self.config_path, self.config_yaml) {
            (Some(file), Some(text)) => BootstrapSource::Merged(file, text),
            (Some(file), None) => BootstrapSource::File(file),
            (None, Some(text)) => BootstrapSource::Text(text),
            (None, None) => {
                return Err("a bootstrap is needed: -c FILE or --config-yaml YAML".into());
            }
        };
        Ok(Options {
            concurrency: self.concurrency,
            service_cluster: self.service_cluster,
            service_node: self.service_node,
            service_zone: self.service_zone,
            drain_time: Duration::from_secs(self.drain_time_s),
            log_flush_interval: Duration::from_millis(self.file_flush_interval_msec.max(1)),
            admin_address_path: self.admin_address_path,
            validate_only: self.mode == Mode::Validate,
            allows_unknown_fields: self.allow_unknown_static_fields,
            ..Options::new(bootstrap)
        })
    }

    /// The log settings that the flags mean.
    pub fn log(&self) -> LogArgs {
        let level = |level: &str| match level {
            "trace" | "debug" | "info" | "error" => level.to_owned(),
            "warning" | "warn" => "warn".to_owned(),
            "critical" => "error".to_owned(),
            "off" => "none".to_owned(),
            other => other.to_owned(),
        };
        let mut levels = vec![format!("default:{}", level(&self.log_level))];
        levels.extend(self.component_log_level.split(',').filter_map(|part| {
            let (scope, of) = part.split_once(':')?;
            Some(format!("{scope}:{}", level(of)))
        }));
        LogArgs {
            output_level: levels.join(","),
            ..LogArgs::default()
        }
    }
}
