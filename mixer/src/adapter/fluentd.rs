//! `fluentd`: log entries to a Fluentd or Fluent Bit, by the forward protocol (MessagePack over TCP).
//!
//! An entry's tag is its variable `tag` (the instance then becomes the field `name`), or else the instance. Entries wait in a
//! bounded buffer and go out by size or age.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use rmp::encode;
use serde::Deserialize;
use serde_json::Value as Json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use super::queue::{Queue, Rules};
use super::{Adapter, AdapterConfig, AdapterError, BuildContext, check_address};
use crate::config::params;
use crate::lang::{Val, time_text};
use crate::template::{Payload, Values};

/// The extension type of a time with nanoseconds.
const EVENT_TIME: i8 = 0;
/// Entries of one message.
const BATCH: usize = 1_000;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Params {
    address: String,
    #[serde(alias = "integer_duration")]
    integer_duration: bool,
    #[serde(alias = "instance_buffer_size", deserialize_with = "params::int64")]
    instance_buffer_size: i64,
    #[serde(alias = "max_batch_size_bytes", deserialize_with = "params::int64")]
    max_batch_size_bytes: i64,
    #[serde(
        alias = "push_interval_duration",
        deserialize_with = "params::duration"
    )]
    push_interval_duration: Duration,
    #[serde(alias = "push_timeout_duration", deserialize_with = "params::duration")]
    push_timeout_duration: Duration,
}

#[derive(Debug)]
struct Fluentd {
    integer_duration: bool,
    largest: usize,
    too_large: prometheus::IntCounter,
    queue: Queue<Entry>,
}

/// An entry: its tag, and `[time, record]` in MessagePack.
#[derive(Clone, Debug)]
struct Entry {
    tag: Arc<str>,
    event: Arc<[u8]>,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            address: "localhost:24224".into(),
            integer_duration: false,
            instance_buffer_size: 1024,
            max_batch_size_bytes: 8 << 20,
            push_interval_duration: Duration::from_secs(60),
            push_timeout_duration: Duration::from_secs(60),
        }
    }
}

pub(super) fn configure(json: &Json) -> Result<Box<dyn AdapterConfig>, String> {
    let params: Params = params::read(json)?;
    check_address(&params.address)?;
    for (field, size) in [
        ("instanceBufferSize", params.instance_buffer_size),
        ("maxBatchSizeBytes", params.max_batch_size_bytes),
    ] {
        if size <= 0 {
            return Err(format!("{field}: must be above 0"));
        }
    }
    for (field, duration) in [
        ("pushIntervalDuration", params.push_interval_duration),
        ("pushTimeoutDuration", params.push_timeout_duration),
    ] {
        if duration.is_zero() {
            return Err(format!("{field}: must be above 0"));
        }
    }
    Ok(Box::new(params))
}

impl AdapterConfig for Params {
    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Adapter>, AdapterError> {
        let largest = usize::try_from(self.max_batch_size_bytes).unwrap_or(usize::MAX);
        let rules = Rules {
            capacity: usize::try_from(self.instance_buffer_size).unwrap_or(1024),
            batch: BATCH,
            interval: self.push_interval_duration,
            deadline: self.push_timeout_duration,
        };
        let address = self.address.clone();
        let connection: Arc<Mutex<Option<TcpStream>>> = Arc::default();
        let send = Box::new(move |entries: Vec<Entry>| -> BoxFuture<'static, _> {
            let (address, connection) = (address.clone(), connection.clone());
            Box::pin(async move {
                let mut connection = connection.lock().await;
                let sent = push(&mut connection, &address, &entries, largest).await;
                if sent.is_err() {
                    // Half a message may be on the way: begin again with a new connection.
                    *connection = None;
                }
                sent.map_err(|error| error.to_string())
            })
        });
        Ok(Arc::new(Fluentd {
            integer_duration: self.integer_duration,
            largest,
            too_large: context
                .dropped
                .with_label_values(&[context.handler.as_str(), "too large"]),
            queue: Queue::start("fluentd", context, rules, send),
        }))
    }
}

async fn push(
    connection: &mut Option<TcpStream>,
    address: &str,
    entries: &[Entry],
    largest: usize,
) -> std::io::Result<()> {
    let stream = match connection {
        Some(stream) => stream,
        None => connection.insert(TcpStream::connect(address).await?),
    };
    let mut by_tag: BTreeMap<&str, Vec<&[u8]>> = BTreeMap::new();
    for entry in entries {
        by_tag.entry(&entry.tag).or_default().push(&entry.event);
    }
    for (tag, events) in by_tag {
        let mut rest = events.as_slice();
        while !rest.is_empty() {
            let mut size = 0;
            let fits = rest.iter().take_while(|event| {
                size += event.len();
                size <= largest
            });
            let (now, later) = rest.split_at(fits.count().max(1));
            stream.write_all(&message(tag, now)?).await?;
            rest = later;
        }
    }
    stream.flush().await
}

/// `[tag, [event, …]]`.
fn message(tag: &str, events: &[&[u8]]) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    encode::write_array_len(&mut bytes, 2)?;
    encode::write_str(&mut bytes, tag)?;
    encode::write_array_len(&mut bytes, u32::try_from(events.len()).unwrap_or(u32::MAX))?;
    for event in events {
        bytes.extend_from_slice(event);
    }
    Ok(bytes)
}

impl Adapter for Fluentd {
    fn report(&self, instances: &[Values<'_>]) -> Result<(), AdapterError> {
        for instance in instances {
            let entry = self
                .entry(instance)
                .map_err(|error| AdapterError::new(error.to_string()))?;
            let Some(entry) = entry else {
                return Err(AdapterError::unsupported());
            };
            if entry.event.len() > self.largest {
                self.too_large.inc();
            } else {
                self.queue.push(entry);
            }
        }
        Ok(())
    }
}

impl Fluentd {
    fn entry(&self, instance: &Values<'_>) -> std::io::Result<Option<Entry>> {
        let Payload::LogEntry {
            variables,
            timestamp,
            severity,
        } = &instance.payload
        else {
            return Ok(None);
        };
        let tag = variables.iter().find_map(|(name, value)| match value {
            Val::String(text) if *name == "tag" && !text.is_empty() => Some(text.as_ref()),
            _ => None,
        });
        let is_tagged = tag.is_some();
        let fields = variables
            .iter()
            .filter(|(name, _)| !(is_tagged && *name == "tag"));
        let fields: Vec<_> = fields.collect();
        let time = timestamp.unwrap_or_else(|| SystemTime::now().into());
        let mut event = Vec::with_capacity(256);
        encode::write_array_len(&mut event, 2)?;
        encode::write_ext_meta(&mut event, 8, EVENT_TIME)?;
        event.extend(u32::try_from(time.seconds).unwrap_or(0).to_be_bytes());
        event.extend(u32::try_from(time.nanos).unwrap_or(0).to_be_bytes());
        let length = fields.len() + 1 + usize::from(is_tagged);
        encode::write_map_len(&mut event, u32::try_from(length).unwrap_or(u32::MAX))?;
        for (name, value) in fields {
            encode::write_str(&mut event, name)?;
            self.write(&mut event, value)?;
        }
        if is_tagged {
            encode::write_str(&mut event, "name")?;
            encode::write_str(&mut event, instance.name)?;
        }
        encode::write_str(&mut event, "severity")?;
        encode::write_str(&mut event, severity)?;
        Ok(Some(Entry {
            tag: tag.unwrap_or(instance.name).into(),
            event: event.into(),
        }))
    }

    fn write(&self, bytes: &mut Vec<u8>, value: &Val<'_>) -> std::io::Result<()> {
        match value {
            Val::Int64(number) => {
                encode::write_sint(bytes, *number)?;
            }
            Val::Double(number) => encode::write_f64(bytes, *number)?,
            Val::Bool(flag) => encode::write_bool(bytes, *flag)?,
            Val::Duration(nanos) if self.integer_duration => {
                encode::write_sint(bytes, nanos / 1_000_000)?;
            }
            Val::Duration(nanos) => encode::write_str(bytes, &time_text::format_duration(*nanos))?,
            Val::StringMap(map) => {
                let entries: Vec<_> = map.iter().collect();
                let length = u32::try_from(entries.len()).unwrap_or(u32::MAX);
                encode::write_map_len(bytes, length)?;
                for (key, value) in entries {
                    encode::write_str(bytes, key)?;
                    encode::write_str(bytes, value)?;
                }
            }
            Val::String(_) | Val::Timestamp(_) | Val::Ip(_) => {
                encode::write_str(bytes, &value.to_text())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokio::io::AsyncReadExt as _;

    fn entry(tag: Option<&'static str>) -> Values<'static> {
        let mut variables = vec![("d", Val::Duration(1_500_000)), ("n", Val::Int64(-1))];
        variables.extend(tag.map(|tag| ("tag", Val::String(tag.into()))));
        Values {
            name: "log.instance.ns",
            payload: Payload::LogEntry {
                variables,
                timestamp: Some(prost_types::Timestamp {
                    seconds: 1,
                    nanos: 2,
                }),
                severity: "info".into(),
            },
        }
    }

    #[tokio::test]
    async fn entries_are_forwarded() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let json = json!({"address": listener.local_addr().unwrap().to_string(),
            "pushIntervalDuration": "10ms", "integerDuration": true});
        let handler = configure(&json)
            .unwrap()
            .build(&BuildContext::default())
            .unwrap();
        handler.report(&[entry(None)]).unwrap();
        drop(handler);
        let mut bytes = Vec::new();
        let heard = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_to_end(&mut bytes).await.unwrap();
        };
        let patience = Duration::from_secs(60);
        tokio::time::timeout(patience, heard).await.unwrap();
        let mut want = vec![0x92, 0xaf];
        want.extend(b"log.instance.ns");
        want.extend([0x91, 0x92, 0xd7, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0x83]);
        want.extend([0xa1, b'd', 1, 0xa1, b'n', 0xff]);
        want.extend(b"\xa8severity\xa4info");
        assert_eq!(bytes, want);
    }

    #[tokio::test]
    async fn a_tag_of_its_own_makes_the_instance_a_field() {
        let handler = Fluentd {
            integer_duration: false,
            largest: 1,
            too_large: prometheus::IntCounter::new("x", "x").unwrap(),
            queue: Queue::start(
                "test",
                &BuildContext::default(),
                Rules {
                    capacity: 1,
                    batch: 1,
                    interval: Duration::ZERO,
                    deadline: Duration::ZERO,
                },
                Box::new(|_| Box::pin(async { Ok(()) })),
            ),
        };
        let made = handler.entry(&entry(Some("mine"))).unwrap().unwrap();
        assert_eq!(&*made.tag, "mine");
        let text = String::from_utf8_lossy(&made.event).into_owned();
        assert!(text.contains("name") && text.contains("1.5ms") && !text.contains("tag"));
        handler.report(&[entry(None)]).unwrap();
        assert_eq!(handler.too_large.get(), 1);
    }

    #[test]
    fn parameters_are_checked() {
        for bad in [
            json!({"address": "x"}),
            json!({"instanceBufferSize": 0}),
            json!({"pushIntervalDuration": "0s"}),
        ] {
            assert!(configure(&bad).is_err(), "{bad}");
        }
    }
}
