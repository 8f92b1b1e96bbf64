//! Logging: Istio's scopes and levels over `tracing` (scope = target), text or JSON, levels changeable at run time.

use crate::{
    args::LogArgs,
    process::Usage,
    telemetry::{self, Exporter},
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tracing::{Metadata, level_filters::LevelFilter, subscriber::Interest};
use tracing_subscriber::{
    Layer, Registry, filter::Targets, layer::SubscriberExt as _, reload,
    util::SubscriberInitExt as _,
};

mod format;
mod output;

/// The scope of all targets without a level of their own.
pub const DEFAULT_SCOPE: &str = "default";

/// Libraries that are kept at info even when the default is debug (a level of their own still counts).
const CHATTY: [&str; 8] = [
    "h2",
    "hyper",
    "hyper_util",
    "rustls",
    "sled",
    "tower",
    "tonic",
    "opentelemetry",
];

/// Log levels at run time; cheap to clone.
#[derive(Clone, Debug)]
pub struct Logging {
    levels: Arc<Mutex<BTreeMap<String, LevelFilter>>>,
    seen: Arc<Mutex<BTreeSet<&'static str>>>,
    reload: Option<reload::Handle<Targets, Registry>>,
    exporter: Option<Arc<Exporter>>,
}

/// Sets up logging for the process, from Istio's flags. To be called once, inside the runtime.
pub fn init(component: &'static str, args: &LogArgs) -> anyhow::Result<Logging> {
    let mut levels = parse_levels(&args.output_level).map_err(Usage)?;
    levels
        .entry(DEFAULT_SCOPE.to_owned())
        .or_insert(LevelFilter::INFO);
    let (filter, reload) = reload::Layer::new(targets(&levels));
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let writer = output::writer(args)?;
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(writer)
        .event_format(format::Format::new(args.as_json, &args.caller));
    let exporter = args
        .otlp_endpoint
        .as_deref()
        .map(|endpoint| telemetry::exporter(component, endpoint))
        .transpose()?;
    let spans = exporter.as_ref().map(Exporter::layer);
    tracing_subscriber::registry()
        .with(filter)
        .with(Scopes(seen.clone()))
        .with(lines)
        .with(spans)
        .try_init()
        .map_err(|error| anyhow::anyhow!("start logging: {error}"))?;
    Ok(Logging {
        levels: Arc::new(Mutex::new(levels)),
        seen,
        reload: Some(reload),
        exporter: exporter.map(Arc::new),
    })
}

impl Logging {
    /// A handle that changes nothing (tests).
    pub fn detached() -> Self {
        let levels = BTreeMap::from([(DEFAULT_SCOPE.to_owned(), LevelFilter::INFO)]);
        Self {
            levels: Arc::new(Mutex::new(levels)),
            seen: Arc::default(),
            reload: None,
            exporter: None,
        }
    }

    /// Every scope that has spoken or has a level of its own, with its level.
    pub fn scopes(&self) -> BTreeMap<String, String> {
        let levels = self.levels.lock();
        let default = levels.get(DEFAULT_SCOPE).copied();
        let mut scopes: BTreeMap<String, String> = self
            .seen
            .lock()
            .iter()
            .map(|scope| ((*scope).to_owned(), level_name(default)))
            .collect();
        scopes.extend(
            levels
                .iter()
                .map(|(scope, level)| (scope.clone(), level_name(Some(*level)))),
        );
        scopes
    }

    /// Applies Istio's notation: `debug`, `ads:debug`, `all:info`, comma separated.
    pub fn set(&self, levels: &str) -> Result<(), String> {
        let changes = parse_levels(levels)?;
        let mut current = self.levels.lock();
        if let Some(level) = changes.get("all") {
            current.clear();
            current.insert(DEFAULT_SCOPE.to_owned(), *level);
        }
        current.extend(changes.into_iter().filter(|(scope, _)| scope != "all"));
        if let Some(reload) = &self.reload {
            reload
                .reload(targets(&current))
                .map_err(|error| error.to_string())?;
        }
        drop(current);
        tracing::info!(levels, "log levels changed");
        Ok(())
    }

    /// Sends what the span exporter still holds.
    pub fn flush(&self) {
        if let Some(exporter) = &self.exporter {
            exporter.shutdown();
        }
    }
}

fn parse_levels(text: &str) -> Result<BTreeMap<String, LevelFilter>, String> {
    let mut levels = BTreeMap::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (scope, level) = part.rsplit_once(':').unwrap_or((DEFAULT_SCOPE, part));
        let level = parse_level(level).ok_or_else(|| {
            format!(
                "log level `{level}` in `{part}` is unknown: use none, fatal, error, warn, info, debug or trace"
            )
        })?;
        levels.insert(scope.to_owned(), level);
    }
    Ok(levels)
}

fn parse_level(text: &str) -> Option<LevelFilter> {
    Some(match text {
        "none" | "off" => LevelFilter::OFF,
        "fatal" | "error" => LevelFilter::ERROR,
        "warn" | "warning" => LevelFilter::WARN,
        "info" => LevelFilter::INFO,
        "debug" => LevelFilter::DEBUG,
        "trace" => LevelFilter::TRACE,
        _ => return None,
    })
}

fn level_name(level: Option<LevelFilter>) -> String {
    match level {
        Some(LevelFilter::OFF) => "none".to_owned(),
        Some(level) => level.to_string(),
        None => "info".to_owned(),
    }
}

fn targets(levels: &BTreeMap<String, LevelFilter>) -> Targets {
    let default = ["all", DEFAULT_SCOPE]
        .iter()
        .find_map(|scope| levels.get(*scope))
        .copied()
        .unwrap_or(LevelFilter::INFO);
    let chatty = CHATTY
        .iter()
        .map(|target| ((*target).to_owned(), default.min(LevelFilter::INFO)));
    let own = levels
        .iter()
        .filter(|(scope, _)| scope.as_str() != DEFAULT_SCOPE && scope.as_str() != "all")
        .map(|(scope, level)| (scope.clone(), *level));
    Targets::new()
        .with_default(default)
        .with_targets(chatty)
        .with_targets(own)
}

/// Remembers the scopes that have spoken, for the listing at `/logging`.
struct Scopes(Arc<Mutex<BTreeSet<&'static str>>>);

impl<S: tracing::Subscriber> Layer<S> for Scopes {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        let target = metadata.target();
        if !target.contains("::") && !CHATTY.contains(&target) && metadata.is_event() {
            self.0.lock().insert(target);
        }
        Interest::always()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn istio_levels_parse_and_bad_ones_are_named() {
        let levels = parse_levels("default:warn,ads:debug,mcp:none").unwrap();
        assert_eq!(levels["default"], LevelFilter::WARN);
        assert_eq!(levels["ads"], LevelFilter::DEBUG);
        assert_eq!(levels["mcp"], LevelFilter::OFF);
        assert_eq!(
            parse_levels("debug").unwrap()["default"],
            LevelFilter::DEBUG
        );
        assert!(parse_levels("ads:loud").unwrap_err().contains("`loud`"));
    }

    #[test]
    fn levels_change_by_scope_and_all_resets() {
        let logging = Logging::detached();
        logging.set("ads:debug").unwrap();
        assert_eq!(logging.scopes()["ads"], "debug");
        logging.set("all:error").unwrap();
        assert_eq!(logging.scopes().len(), 1);
        assert_eq!(logging.scopes()["default"], "error");
    }
}
