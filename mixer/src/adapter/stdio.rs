//! `stdio`: log entries and metrics as lines on standard output, standard error or into a file.
//!
//! Nobody waits for the stream: lines go through a bounded queue ([`writer`]), and what does not fit is counted.
//!
//! JSON: `level`, `time`, `instance`, then the variables by name. Else: time, level, instance and a JSON object, tab-separated.
//! QUIRK: the rotation's `maxDaysBeforeRotation` is the number of files kept, `maxRotatedFiles` their age in days; the size
//! is in megabytes although its default reads like bytes.

mod writer;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use prost_types::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};
use time::OffsetDateTime;

use super::{Adapter, AdapterConfig, AdapterError, BuildContext};
use crate::config::params;
use crate::lang::{Val, time_text};
use crate::template::{Dimensions, Payload, Values};
use writer::{Output, RotatingFile, Writer};

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Stream {
    #[default]
    Stdout,
    Stderr,
    File,
    RotatedFile,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Level {
    #[default]
    Info,
    Warning,
    Error,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Params {
    #[serde(alias = "log_stream")]
    log_stream: Stream,
    #[serde(alias = "severity_levels")]
    severity_levels: BTreeMap<String, Level>,
    #[serde(alias = "metric_level")]
    metric_level: Level,
    #[serde(alias = "output_as_json")]
    output_as_json: bool,
    #[serde(alias = "output_level")]
    output_level: Level,
    #[serde(alias = "output_path")]
    output_path: String,
    #[serde(alias = "max_megabytes_before_rotation")]
    max_megabytes_before_rotation: u64,
    #[serde(alias = "max_days_before_rotation")]
    max_days_before_rotation: usize,
    #[serde(alias = "max_rotated_files")]
    max_rotated_files: u64,
}

#[derive(Debug)]
struct Stdio {
    params: Params,
    writer: Writer,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            log_stream: Stream::Stdout,
            severity_levels: BTreeMap::new(),
            metric_level: Level::Info,
            output_as_json: true,
            output_level: Level::Info,
            output_path: String::new(),
            max_megabytes_before_rotation: 100 * 1024 * 1024,
            max_days_before_rotation: 30,
            max_rotated_files: 1000,
        }
    }
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Info => "info",
            Level::Warning => "warn",
            Level::Error => "error",
        }
    }
}

pub(super) fn configure(json: &Json) -> Result<Box<dyn AdapterConfig>, String> {
    let mut params: Params = params::read(json)?;
    let to_file = matches!(params.log_stream, Stream::File | Stream::RotatedFile);
    if to_file && params.output_path.is_empty() {
        return Err("outputPath: a path is needed for FILE and ROTATED_FILE".into());
    }
    if !to_file && !params.output_path.is_empty() {
        return Err("outputPath: only FILE and ROTATED_FILE have a path".into());
    }
    if params.severity_levels.is_empty() {
        params.severity_levels = default_severities();
    }
    Ok(Box::new(params))
}

fn default_severities() -> BTreeMap<String, Level> {
    let names: [(Level, &[&str]); 3] = [
        (
            Level::Info,
            &["INFORMATIONAL", "informational", "INFO", "info"],
        ),
        (Level::Warning, &["WARNING", "warning", "WARN", "warn"]),
        (
            Level::Error,
            &["ERROR", "error", "ERR", "err", "FATAL", "fatal"],
        ),
    ];
    names
        .into_iter()
        .flat_map(|(level, names)| names.iter().map(move |name| ((*name).to_owned(), level)))
        .collect()
}

impl AdapterConfig for Params {
    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Adapter>, AdapterError> {
        let path = Path::new(&self.output_path);
        let file = |limit| RotatingFile::open(path, limit, self.max_days_before_rotation);
        let output = match self.log_stream {
            Stream::Stdout => Ok(Output::Stdout),
            Stream::Stderr => Ok(Output::Stderr),
            Stream::File => file(None).map(Output::File),
            Stream::RotatedFile => {
                let limit = self.max_megabytes_before_rotation.saturating_mul(1 << 20);
                file(Some(limit)).map(Output::File)
            }
        };
        let output = output.map_err(|error| {
            AdapterError::new(format!("cannot open {}: {error}", path.display()))
        })?;
        Ok(Arc::new(Stdio {
            params: self.clone(),
            writer: Writer::start(output, context)
                .map_err(|error| AdapterError::new(format!("cannot start to write: {error}")))?,
        }))
    }
}

impl Params {
    fn line(&self, level: Level, time: &str, instance: &str, entries: Map<String, Json>) -> String {
        if self.output_as_json {
            let mut object = Map::new();
            object.insert("level".into(), json!(level.name()));
            object.insert("time".into(), json!(time));
            object.insert("instance".into(), json!(instance));
            object.extend(entries);
            return format!("{}\n", Json::Object(object));
        }
        format!(
            "{time}\t{}\t{instance}\t{}\n",
            level.name(),
            Json::Object(entries)
        )
    }
}

impl Adapter for Stdio {
    fn report(&self, instances: &[Values<'_>]) -> Result<(), AdapterError> {
        for instance in instances {
            let (level, time, entries) = match &instance.payload {
                Payload::LogEntry {
                    variables,
                    timestamp,
                    severity,
                } => {
                    let level = self.params.severity_levels.get(severity.as_ref());
                    let time = timestamp.map_or_else(now, micro_time);
                    (level.copied().unwrap_or_default(), time, object(variables))
                }
                Payload::Metric { value, dimensions } => {
                    let mut entries = object(dimensions);
                    entries.insert("value".into(), json_of(value));
                    entries.sort_keys();
                    (self.params.metric_level, now(), entries)
                }
                _ => return Err(AdapterError::unsupported()),
            };
            if level >= self.params.output_level {
                let line = self.params.line(level, &time, instance.name, entries);
                self.writer.push(line);
            }
        }
        Ok(())
    }
}

fn object(dimensions: &Dimensions<'_>) -> Map<String, Json> {
    dimensions
        .iter()
        .map(|(name, value)| ((*name).to_owned(), json_of(value)))
        .collect()
}

/// A value as JSON: numbers and flags as they are, everything else as text.
pub(super) fn json_of(value: &Val<'_>) -> Json {
    match value {
        Val::Int64(number) => json!(number),
        Val::Double(number) => json!(number),
        Val::Bool(flag) => json!(flag),
        Val::String(text) => json!(text),
        Val::Duration(nanos) => json!(time_text::format_duration(*nanos)),
        Val::Ip(address) => json!(address.to_string()),
        Val::Timestamp(time) => json!(micro_time(*time)),
        Val::StringMap(map) => {
            let sorted: BTreeMap<_, _> = map.iter().collect();
            json!(sorted)
        }
    }
}

fn now() -> String {
    let now = OffsetDateTime::now_utc();
    micro_time(Timestamp {
        seconds: now.unix_timestamp(),
        nanos: i32::try_from(now.nanosecond()).unwrap_or_default(),
    })
}

/// ISO 8601 in UTC with microseconds.
fn micro_time(time: Timestamp) -> String {
    let nanos = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    OffsetDateTime::from_unix_timestamp_nanos(nanos).map_or_else(
        |_| String::new(),
        |time| {
            format!(
                "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
                time.year(),
                u8::from(time.month()),
                time.day(),
                time.hour(),
                time.minute(),
                time.second(),
                time.microsecond()
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn entry<'a>(severity: &'a str) -> Values<'a> {
        Values {
            name: "log.instance.ns",
            payload: Payload::LogEntry {
                variables: vec![
                    ("a", Val::Int64(1)),
                    ("d", Val::Duration(1_500_000)),
                    ("ip", Val::Ip([10, 0, 0, 1].into())),
                ],
                timestamp: Some(Timestamp {
                    seconds: 0,
                    nanos: 1_000,
                }),
                severity: severity.into(),
            },
        }
    }

    fn build(json: &Json) -> Arc<dyn Adapter> {
        let context = BuildContext::default();
        configure(json).unwrap().build(&context).unwrap()
    }

    /// What is in a file when as much has come.
    async fn written(path: &Path, length: usize) -> String {
        let read = async {
            loop {
                let text = std::fs::read_to_string(path).unwrap();
                if text.len() >= length {
                    return text;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let read = tokio::time::timeout(Duration::from_secs(30), read);
        read.await.unwrap()
    }

    #[tokio::test]
    async fn entries_become_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.log");
        let json = json!({"log_stream": "FILE", "outputPath": path, "outputLevel": "WARNING"});
        let stdio = build(&json);
        stdio
            .report(&[entry("Info"), entry("warn"), entry("FATAL")])
            .unwrap();
        let want = |level: &str| {
            format!(
                "{{\"level\":\"{level}\",\"time\":\"1970-01-01T00:00:00.000001Z\",\"instance\":\"log.instance.ns\",\
                 \"a\":1,\"d\":\"1.5ms\",\"ip\":\"10.0.0.1\"}}\n"
            )
        };
        let want = want("warn") + &want("error");
        assert_eq!(written(&path, want.len()).await, want);
        let console = dir.path().join("console.log");
        let json = json!({"logStream": "FILE", "outputPath": console, "outputAsJson": false});
        // What is queued when the handler goes is still written.
        build(&json).report(&[entry("?")]).unwrap();
        let want = "1970-01-01T00:00:00.000001Z\tinfo\tlog.instance.ns\t{\"a\":1,\"d\":\"1.5ms\",\"ip\":\"10.0.0.1\"}\n";
        assert_eq!(written(&console, want.len()).await, want);
    }

    #[test]
    fn a_path_goes_with_files_only() {
        for bad in [
            json!({"outputPath": "/x"}),
            json!({"logStream": "FILE"}),
            json!({"nonsense": 1}),
            json!({"logStream": "NOWHERE"}),
        ] {
            assert!(configure(&bad).is_err(), "{bad}");
        }
    }
}
