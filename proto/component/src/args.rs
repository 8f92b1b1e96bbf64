//! Flags that every component has, and the forms in which Istio's flags are written: Go durations, `tcp://`/`unix://`
//! addresses, `--flag=true` booleans, a config file underneath the flags.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

mod config_file;

pub use config_file::{ConfigFile, parse_over_config_file};

/// Istio's logging flags, plus the endpoint for the component's own spans.
#[derive(Clone, Debug, clap::Args)]
pub struct LogArgs {
    /// Minimum level by scope: scope:level,…; a level alone is the default scope's. Levels: none, fatal, error, warn, info, debug.
    #[arg(
        long = "log_output_level",
        value_name = "LEVELS",
        default_value = "default:info",
        global = true
    )]
    pub output_level: String,
    /// Write log lines as JSON.
    #[arg(long = "log_as_json", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", global = true)]
    pub as_json: bool,
    /// Where log lines go: stdout, stderr or a file; may be repeated.
    #[arg(long = "log_target", value_delimiter = ',', default_values_t = [String::from("stdout")], global = true)]
    pub target: Vec<String>,
    /// Scopes whose lines carry the place in the source, comma separated (`default` for all without a scope of their own).
    #[arg(long = "log_caller", default_value = "", global = true)]
    pub caller: String,
    /// Accepted for compatibility: log lines never carry stack traces.
    #[arg(
        long = "log_stacktrace_level",
        default_value = "default:none",
        hide = true,
        global = true
    )]
    pub stacktrace_level: String,
    /// A log file that is rotated.
    #[arg(long = "log_rotate", global = true)]
    pub rotate: Option<PathBuf>,
    /// Days after which a rotated file is deleted (0: never).
    #[arg(long = "log_rotate_max_age", default_value_t = 30, global = true)]
    pub rotate_max_age: u64,
    /// Number of rotated files that are kept (0: all).
    #[arg(long = "log_rotate_max_backups", default_value_t = 1000, global = true)]
    pub rotate_max_backups: usize,
    /// Size in bytes at which the file is rotated.
    #[arg(
        long = "log_rotate_max_size",
        default_value_t = 104_857_600,
        global = true
    )]
    pub rotate_max_size: u64,
    /// OTLP (gRPC) endpoint for the component's own tracing spans; none are exported without it.
    #[arg(
        long = "otlpEndpoint",
        env = "OTEL_EXPORTER_OTLP_ENDPOINT",
        value_name = "URL",
        global = true
    )]
    pub otlp_endpoint: Option<String>,
}

impl Default for LogArgs {
    fn default() -> Self {
        Self {
            output_level: "default:info".into(),
            as_json: false,
            target: vec!["stdout".into()],
            caller: String::new(),
            stacktrace_level: "default:none".into(),
            rotate: None,
            rotate_max_age: 30,
            rotate_max_backups: 1000,
            rotate_max_size: 104_857_600,
            otlp_endpoint: None,
        }
    }
}

/// gRPC keepalive flags (pilot, galley).
#[derive(Clone, Debug, clap::Args)]
pub struct KeepaliveArgs {
    /// Interval between pings on an idle connection.
    #[arg(long = "keepaliveInterval", default_value = "30s", value_parser = parse_duration)]
    pub interval: Duration,
    /// How long to wait for the answer to a ping.
    #[arg(long = "keepaliveTimeout", default_value = "10s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Age at which a server connection is asked to come back (unlimited when not given).
    #[arg(long = "keepaliveMaxServerConnectionAge", value_parser = parse_duration)]
    pub max_server_connection_age: Option<Duration>,
}

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// `:15014`, `0.0.0.0:15014`, `localhost:9876`, `tcp://…`, or a port alone.
    Tcp(SocketAddr),
    /// `unix:///path` (or `unix:/path`).
    Unix(PathBuf),
}

/// Why an address was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not an address: {reason} (write :PORT, tcp://IP:PORT or unix:///PATH)")]
pub struct InvalidAddress {
    text: String,
    reason: &'static str,
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = |reason| InvalidAddress {
            text: text.to_owned(),
            reason,
        };
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() {
                Err(invalid("the path is empty"))
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        let rest = text.strip_prefix("tcp://").unwrap_or(text);
        if let Ok(socket) = rest.parse::<SocketAddr>() {
            return Ok(Self::Tcp(socket));
        }
        let (host, port) = rest.rsplit_once(':').unwrap_or(("", rest));
        let port: u16 = port
            .parse()
            .map_err(|_| invalid("the port is not a number from 0 to 65535"))?;
        let ip = match host {
            "" | "*" => Ipv4Addr::UNSPECIFIED.into(),
            "localhost" => Ipv4Addr::LOCALHOST.into(),
            host => host
                .trim_matches(['[', ']'])
                .parse()
                .map_err(|_| invalid("the host must be an IP address"))?,
        };
        Ok(Self::Tcp(SocketAddr::new(ip, port)))
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(socket) => socket.fmt(f),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// Parses a Go duration: `300ms`, `30s`, `1h30m`, `1.5h`, `0`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("`{text}` is not a duration; write e.g. 300ms, 30s or 1h30m");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = 0f64;
    if rest.is_empty() {
        return Err(invalid());
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(invalid)?;
        let value: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let unit = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        total += value
            * match &rest[..unit] {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(invalid()),
            };
        rest = &rest[unit..];
    }
    Duration::try_from_secs_f64(total).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn istio_address_forms_parse() {
        let tcp = |text: &str| Address::Tcp(text.parse().unwrap());
        for (text, want) in [
            (":15014", tcp("0.0.0.0:15014")),
            ("15014", tcp("0.0.0.0:15014")),
            ("tcp://0.0.0.0:9901", tcp("0.0.0.0:9901")),
            ("localhost:9876", tcp("127.0.0.1:9876")),
            ("[::]:80", tcp("[::]:80")),
            ("unix:///run/x.sock", Address::Unix("/run/x.sock".into())),
            ("unix:/run/x.sock", Address::Unix("/run/x.sock".into())),
        ] {
            assert_eq!(text.parse::<Address>().unwrap(), want, "{text}");
        }
        for text in ["", ":99999", "tcp://nowhere.example:1", "unix://"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn go_durations_parse() {
        for (text, millis) in [
            ("0", 0),
            ("30s", 30_000),
            ("1h30m", 5_400_000),
            ("1.5s", 1500),
            ("250ms", 250),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in ["", "5", "s", "1y", "-1s", "1..2s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
