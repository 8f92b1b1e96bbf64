//! `statsd`: metrics as StatsD lines over UDP. Lines are gathered up to a packet's size or the flush interval.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use serde::Deserialize;
use serde_json::Value as Json;
use tokio::net::UdpSocket;

use super::queue::{Queue, Rules};
use super::{Adapter, AdapterConfig, AdapterError, BuildContext, check_address};
use crate::config::params;
use crate::lang::Val;
use crate::template::{Dimensions, Payload, Values};

const CAPACITY: usize = 100_000;
const DEADLINE: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Params {
    address: String,
    prefix: String,
    #[serde(alias = "flush_duration", deserialize_with = "params::duration")]
    flush_duration: Duration,
    #[serde(alias = "flush_bytes")]
    flush_bytes: usize,
    #[serde(alias = "sampling_rate")]
    sampling_rate: f64,
    metrics: BTreeMap<String, MetricInfo>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct MetricInfo {
    #[serde(default, rename = "type")]
    kind: Kind,
    /// `{{.source}}-{{.destination}}`: dimensions by name; nothing: the instance's name.
    #[serde(default, alias = "name_template")]
    name_template: String,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Kind {
    #[default]
    Unknown,
    Counter,
    Gauge,
    Distribution,
}

#[derive(Debug)]
struct Statsd {
    params: Params,
    metrics: BTreeMap<String, (Kind, Option<Template>)>,
    queue: Queue<String>,
}

/// Text with dimensions in it.
#[derive(Clone, Debug, PartialEq)]
struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Dimension(String),
}

impl Default for Params {
    fn default() -> Self {
        Self {
            address: "localhost:8125".into(),
            prefix: String::new(),
            flush_duration: Duration::from_millis(300),
            flush_bytes: 512,
            sampling_rate: 1.0,
            metrics: BTreeMap::new(),
        }
    }
}

pub(super) fn configure(json: &Json) -> Result<Box<dyn AdapterConfig>, String> {
    let params: Params = params::read(json)?;
    check_address(&params.address)?;
    if params.flush_duration.is_zero() {
        return Err("flushDuration: must be above 0".into());
    }
    if !(1..=65_000).contains(&params.flush_bytes) {
        return Err("flushBytes: must be from 1 to 65000".into());
    }
    if !(params.sampling_rate > 0.0 && params.sampling_rate <= 1.0) {
        return Err("samplingRate: must be above 0 and at most 1".into());
    }
    for (name, info) in &params.metrics {
        info.template()
            .map_err(|error| format!("metrics[{name}].nameTemplate: {error}"))?;
    }
    Ok(Box::new(params))
}

impl MetricInfo {
    fn template(&self) -> Result<Option<Template>, String> {
        if self.name_template.is_empty() {
            return Ok(None);
        }
        let mut parts = Vec::new();
        let mut rest = self.name_template.as_str();
        while let Some((text, after)) = rest.split_once("{{") {
            let (name, after) = after.split_once("}}").ok_or("{{ without }}")?;
            let name = name.trim();
            let dimension = name
                .strip_prefix('.')
                .filter(|name| !name.is_empty() && !name.contains([' ', '|', '(', '.']))
                .ok_or_else(|| format!("{{{{{name}}}}}: only {{{{.dimension}}}} is supported"))?;
            parts.push(Part::Text(text.to_owned()));
            parts.push(Part::Dimension(dimension.to_owned()));
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Some(Template(parts)))
    }
}

impl Template {
    fn fill(&self, dimensions: &Dimensions<'_>) -> String {
        let mut name = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => name.push_str(text),
                Part::Dimension(wanted) => {
                    let mut found = dimensions.iter();
                    let found = found.find(|(known, _)| known == wanted);
                    // Go's templates say this of a key that is not there.
                    let value = found.map_or("<no value>".into(), |(_, value)| value.to_text());
                    name.push_str(&value);
                }
            }
        }
        name
    }
}

impl AdapterConfig for Params {
    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Adapter>, AdapterError> {
        let rules = Rules {
            capacity: CAPACITY,
            batch: 1_000,
            interval: self.flush_duration,
            deadline: DEADLINE,
        };
        let (address, limit) = (self.address.clone(), self.flush_bytes);
        let send = Box::new(move |lines: Vec<String>| -> BoxFuture<'static, _> {
            let address = address.clone();
            Box::pin(async move { send(&address, limit, &lines).await })
        });
        let metrics = self.metrics.iter().map(|(name, info)| {
            let template = info.template().map_err(AdapterError::new)?;
            Ok((name.clone(), (info.kind, template)))
        });
        Ok(Arc::new(Statsd {
            metrics: metrics.collect::<Result<_, AdapterError>>()?,
            params: self.clone(),
            queue: Queue::start("statsd", context, rules, send),
        }))
    }
}

/// Sends lines in packets of a limited size. The address is looked up each time: a collector may move.
async fn send(address: &str, limit: usize, lines: &[String]) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let mut targets = tokio::net::lookup_host(address).await.map_err(text)?;
    let target = targets.next().ok_or("the address has no host")?;
    let local = if target.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(local).await.map_err(text)?;
    let mut packet = String::new();
    for line in lines {
        if !packet.is_empty() && packet.len() + line.len() > limit {
            socket
                .send_to(packet.trim_end().as_bytes(), target)
                .await
                .map_err(text)?;
            packet.clear();
        }
        packet.push_str(line);
    }
    if !packet.is_empty() {
        socket
            .send_to(packet.trim_end().as_bytes(), target)
            .await
            .map_err(text)?;
    }
    Ok(())
}

impl Adapter for Statsd {
    fn report(&self, instances: &[Values<'_>]) -> Result<(), AdapterError> {
        let mut problem = None;
        for instance in instances {
            if self.params.sampling_rate < 1.0 && rand::random::<f64>() >= self.params.sampling_rate
            {
                continue;
            }
            match self.line(instance) {
                Ok(line) => self.queue.push(line),
                // The others are sent all the same.
                Err(error) => problem = Some(error),
            }
        }
        problem.map_or(Ok(()), Err)
    }
}

impl Statsd {
    fn line(&self, instance: &Values<'_>) -> Result<String, AdapterError> {
        let Payload::Metric { value, dimensions } = &instance.payload else {
            return Err(AdapterError::unsupported());
        };
        let Some((kind, template)) = self.metrics.get(instance.name) else {
            let problem = format!("no metric is configured for instance {}", instance.name);
            return Err(AdapterError::new(problem));
        };
        let name = match template {
            Some(template) => template.fill(dimensions),
            None => instance.name.to_owned(),
        };
        let (value, mark) = match (kind, value) {
            (Kind::Counter, Val::Int64(number)) => (*number, "c"),
            (Kind::Gauge, Val::Int64(number)) => (*number, "g"),
            (Kind::Distribution, Val::Int64(number)) => (*number, "c"),
            (Kind::Distribution, Val::Duration(nanos)) => (nanos / 1_000_000, "ms"),
            _ => {
                let problem = format!("the value of {} does not suit its type", instance.name);
                return Err(AdapterError::new(problem));
            }
        };
        let mut line = String::new();
        if !self.params.prefix.is_empty() {
            line.push_str(&self.params.prefix);
            line.push('.');
        }
        // What separates a line's parts must not be in a name.
        line.extend(
            name.chars()
                .map(|c| if ":|@\n".contains(c) { '_' } else { c }),
        );
        // Writing to a string does not fail.
        let _ = write!(line, ":{value}|{mark}");
        if self.params.sampling_rate < 1.0 {
            let _ = write!(line, "|@{}", self.params.sampling_rate);
        }
        line.push('\n');
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::DimensionSet;
    use serde_json::json;

    fn metric(name: &'static str, value: Val<'static>) -> Values<'static> {
        let dimensions = DimensionSet::new(vec![("source", Val::String("a:b".into()))]);
        Values {
            name,
            payload: Payload::Metric { value, dimensions },
        }
    }

    #[tokio::test]
    async fn metrics_become_lines() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let json = json!({"address": socket.local_addr().unwrap().to_string(), "prefix": "mesh",
        "metrics": {
            "count": {"type": "COUNTER"},
            "time": {"type": "DISTRIBUTION", "nameTemplate": "{{.source}}-{{ .x }}.time"}}});
        let handler = configure(&json)
            .unwrap()
            .build(&BuildContext::default())
            .unwrap();
        let reported = handler.report(&[
            metric("count", Val::Int64(3)),
            metric("time", Val::Duration(2_500_000)),
            metric("count", Val::Double(1.0)),
        ]);
        assert!(reported.is_err());
        let mut packet = [0; 1000];
        let heard = tokio::time::timeout(Duration::from_secs(60), socket.recv(&mut packet));
        let length = heard.await.unwrap().unwrap();
        let text = std::str::from_utf8(&packet[..length]).unwrap();
        assert_eq!(text, "mesh.count:3|c\nmesh.a_b-<no value>.time:2|ms");
    }

    #[test]
    fn parameters_are_checked() {
        for bad in [
            json!({"address": "nowhere"}),
            json!({"samplingRate": 0}),
            json!({"flushBytes": 0}),
            json!({"flushDuration": "0s"}),
            json!({"metrics": {"x": {"nameTemplate": "{{.a"}}}),
            json!({"metrics": {"x": {"nameTemplate": "{{printf .a}}"}}}),
        ] {
            assert!(configure(&bad).is_err(), "{bad}");
        }
    }
}
