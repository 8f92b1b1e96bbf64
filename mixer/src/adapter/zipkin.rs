//! `zipkin`: spans to a Zipkin collector, as JSON of its version 2 (whatever version the URL's path names, it is version 2 that
//! is sent, so `/api/v2/spans` is the path to use).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

use super::http;
use super::queue::{Queue, Rules};
use super::span::{Endpoint, Span};
use super::{Adapter, AdapterConfig, AdapterError, BuildContext};
use crate::config::params;
use crate::template::Values;

const RULES: Rules = Rules {
    capacity: 10_000,
    batch: 200,
    interval: Duration::from_secs(1),
    deadline: Duration::from_secs(5),
};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Params {
    url: String,
    #[serde(alias = "sample_probability")]
    sample_probability: f64,
}

#[derive(Debug)]
struct Zipkin {
    probability: f64,
    queue: Queue<Arc<Span>>,
}

pub(super) fn configure(json: &Json) -> Result<Box<dyn AdapterConfig>, String> {
    let params: Params = params::read(json)?;
    http::check_url(&params.url).map_err(|error| format!("url: {error}"))?;
    check_probability(params.sample_probability)?;
    Ok(Box::new(params))
}

/// A share of all traces.
pub(super) fn check_probability(probability: f64) -> Result<(), String> {
    if (0.0..=1.0).contains(&probability) {
        Ok(())
    } else {
        Err("sampleProbability: must be from 0 to 1".into())
    }
}

impl AdapterConfig for Params {
    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Adapter>, AdapterError> {
        let client = http::client();
        let uri = http::check_url(&self.url).map_err(AdapterError::new)?;
        let send = Box::new(
            move |spans: Vec<Arc<Span>>| -> futures::future::BoxFuture<'static, _> {
                let (client, uri) = (client.clone(), uri.clone());
                let body: Vec<_> = spans.iter().map(|span| to_json(span)).collect();
                let body = Json::Array(body).to_string().into_bytes();
                Box::pin(async move { http::post_json(&client, uri, body).await.map(|_| ()) })
            },
        );
        Ok(Arc::new(Zipkin {
            probability: self.sample_probability,
            queue: Queue::start("zipkin", context, RULES, send),
        }))
    }
}

impl Adapter for Zipkin {
    fn report(&self, instances: &[Values<'_>]) -> Result<(), AdapterError> {
        for instance in instances {
            if let Some(span) = Span::read(instance)?
                && span.is_sampled(self.probability)
            {
                self.queue.push(Arc::new(span));
            }
        }
        Ok(())
    }
}

fn to_json(span: &Span) -> Json {
    let mut object = Map::new();
    let trace = if span.is_long {
        format!("{:032x}", span.trace_id)
    } else {
        format!("{:016x}", span.trace_id)
    };
    object.insert("traceId".into(), json!(trace));
    object.insert("id".into(), json!(format!("{:016x}", span.id)));
    if let Some(parent) = span.parent {
        object.insert("parentId".into(), json!(format!("{parent:016x}")));
    }
    object.insert("name".into(), json!(span.name));
    let kind = if span.is_client { "CLIENT" } else { "SERVER" };
    object.insert("kind".into(), json!(kind));
    object.insert("timestamp".into(), json!(span.start / 1000));
    let duration = span.end.saturating_sub(span.start) / 1000;
    object.insert("duration".into(), json!(duration.max(1)));
    let (local, remote) = span.ends();
    object.insert("localEndpoint".into(), endpoint(local));
    object.insert("remoteEndpoint".into(), endpoint(remote));
    if !span.is_client {
        object.insert("shared".into(), json!(true));
    }
    let tags: Map<_, _> = span
        .tags
        .iter()
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    object.insert("tags".into(), Json::Object(tags));
    Json::Object(object)
}

fn endpoint(end: &Endpoint) -> Json {
    let name = if end.name.is_empty() {
        "default"
    } else {
        &end.name
    };
    match end.ip {
        Some(IpAddr::V4(ip)) => json!({"serviceName": name, "ipv4": ip.to_string()}),
        Some(IpAddr::V6(ip)) => json!({"serviceName": name, "ipv6": ip.to_string()}),
        None => json!({"serviceName": name}),
    }
}

#[cfg(test)]
mod tests {
    use super::super::span::tests::instance;
    use super::*;

    #[test]
    fn a_span_is_written_as_zipkin_reads_it() {
        let span = Span::read(&instance(true, false)).unwrap().unwrap();
        assert_eq!(
            to_json(&span),
            json!({"traceId": "463ac35c9f6413ad48485a3953bb6124", "id": "a2fb4a1d1a96d312",
                "parentId": "0020000000000001", "name": "reviews", "kind": "CLIENT",
                "timestamp": 1_000_000, "duration": 1_000_000,
                "localEndpoint": {"serviceName": "productpage"},
                "remoteEndpoint": {"serviceName": "reviews", "ipv4": "10.0.0.2"},
                "tags": {"n": "1", "http.status_code": "200"}})
        );
    }

    #[test]
    fn parameters_are_checked() {
        for bad in [
            json!({}),
            json!({"url": "x"}),
            json!({"url": "http://h/", "sampleProbability": 2}),
        ] {
            assert!(configure(&bad).is_err(), "{bad}");
        }
        configure(&json!({"url": "http://h:9411/api/v2/spans", "sample_probability": 0.5}))
            .unwrap();
    }
}
