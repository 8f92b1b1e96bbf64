//! The Zipkin driver: B3 in headers, spans as JSON (v2) over an HTTP cluster.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use prost_types::Any;
use proto::envoy::config::core::v3 as core;
use proto::envoy::config::trace::v3::ZipkinConfig;
use proto::envoy::config::trace::v3::zipkin_config::{
    CollectorEndpointVersion, TraceContextOption,
};
use serde_json::{Map, Value, json};

use crate::http::client::{CallError, HttpTarget};
use crate::http::export::{Batch, BatchRules, Lease};
use crate::http::headers::Scheme;
use crate::invalid::{At as _, Invalid, try_all};
use crate::router::header_name;
use crate::server::ServerContext;
use crate::stat_group;
use crate::worker::Worker;

use super::context::{self, Found, SpanContext, trace_text};
use super::span::Span;

/// Envoy's flush rules, and a bound.
const RULES: BatchRules = BatchRules {
    interval: Duration::from_secs(5),
    items: 5,
    bytes: usize::MAX,
    limit: 1000,
};
/// A collector must answer in this time.
const TIMEOUT: Duration = Duration::from_secs(5);

stat_group! {
    /// `tracing.zipkin.…`
    struct ZipkinStats {
        reports_dropped: Counter, reports_failed: Counter, reports_sent: Counter, reports_skipped_no_cluster: Counter,
        spans_sent: Counter, timer_flushed: Counter,
    }
}

/// The driver.
pub(super) struct Zipkin {
    collector: Arc<Collector>,
    lease: Arc<Lease>,
    has_128_bit_ids: bool,
    shares_contexts: bool,
    /// `traceparent` is read where there is no B3, and written beside it.
    pub(super) writes_w3c: bool,
    service: String,
    address: Option<IpAddr>,
}

struct Collector {
    target: HttpTarget,
    headers: Vec<(HeaderName, HeaderValue)>,
    stats: Arc<ZipkinStats>,
}

impl Zipkin {
    pub(super) fn try_new(any: &Any, server: &Arc<ServerContext>) -> Result<Self, Invalid> {
        let config: ZipkinConfig = proto::any::unpack(any)?;
        match config.collector_endpoint_version() {
            CollectorEndpointVersion::HttpJson => {}
            other => {
                return Err(
                    Invalid::unsupported(other.as_str_name()).at("collector_endpoint_version")
                );
            }
        }
        let (target, headers) = match &config.collector_service {
            Some(service) => http_service(service).at("collector_service")?,
            None => (legacy_target(&config)?, Vec::new()),
        };
        Ok(Zipkin {
            collector: Arc::new(Collector {
                target,
                headers,
                stats: server.stats.scope("tracing").scope("zipkin").group(),
            }),
            lease: Arc::default(),
            has_128_bit_ids: config.trace_id_128bit,
            shares_contexts: config.shared_span_context.unwrap_or(true),
            writes_w3c: config.trace_context_option()
                == TraceContextOption::UseB3WithW3cPropagation,
            service: server.node.cluster.clone(),
            address: crate::http::config::local_address(),
        })
    }

    /// The context of a new span, whether it is sampled, and whether it is the caller's too. `None`: what the headers say
    /// cannot be read, so there is no span at all.
    pub(super) fn begin(
        &self,
        map: &HeaderMap,
        is_egress: bool,
        is_traced: bool,
    ) -> Option<(SpanContext, bool, bool)> {
        let mut found = context::b3(map);
        if self.writes_w3c && found == Found::Nothing(None) {
            found = context::w3c(map);
        }
        match found {
            Found::Malformed => None,
            Found::Nothing(sampled) => {
                let span_id: u64 = rand::random();
                let high: u128 = if self.has_128_bit_ids {
                    u128::from(rand::random::<u64>()) << 64
                } else {
                    0
                };
                let context = SpanContext {
                    trace_id: high | u128::from(span_id),
                    is_128_bit: self.has_128_bit_ids,
                    span_id,
                    ..SpanContext::default()
                };
                Some((context, sampled.unwrap_or(is_traced), false))
            }
            Found::Context(parent) => {
                let sampled = parent.sampled.unwrap_or(is_traced);
                if !is_egress && self.shares_contexts {
                    return Some((parent, sampled, true));
                }
                let context = SpanContext {
                    span_id: rand::random(),
                    parent: Some(parent.span_id),
                    ..parent
                };
                Some((context, sampled, false))
            }
        }
    }

    pub(super) fn report(&self, span: Span, worker: &Rc<Worker>) {
        let batch = Batch::of(&self.lease, worker, RULES, || {
            let collector = self.collector.clone();
            Box::new(move |worker, spans| Box::pin(collector.clone().send(worker, spans)))
        });
        let json = self.json(span).to_string();
        let bytes = json.len();
        if !batch.push(json, bytes) {
            self.collector.stats.reports_dropped.inc();
        }
    }

    fn json(&self, span: Span) -> Value {
        let since = span.start.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut endpoint = Map::new();
        if let Some(address) = self.address {
            let key = if address.is_ipv4() { "ipv4" } else { "ipv6" };
            endpoint.insert(key.to_owned(), json!(address.to_string()));
            endpoint.insert("port".to_owned(), json!(0));
        }
        if !self.service.is_empty() {
            endpoint.insert("serviceName".to_owned(), json!(self.service));
        }
        let mut json = Map::new();
        let mut put = |key: &str, value: Value| json.insert(key.to_owned(), value);
        put("traceId", json!(trace_text(&span.context)));
        put("id", json!(format!("{:016x}", span.context.span_id)));
        if let Some(parent) = span.context.parent {
            put("parentId", json!(format!("{parent:016x}")));
        }
        put("name", json!(span.name));
        put(
            "kind",
            json!(if span.is_client { "CLIENT" } else { "SERVER" }),
        );
        if span.is_shared {
            put("shared", json!(true));
        }
        put("timestamp", json!(microseconds(since)));
        put("duration", json!(microseconds(span.begun.elapsed())));
        put("localEndpoint", Value::Object(endpoint));
        let tags = span.tags.into_iter();
        let tags: Map<String, Value> = tags
            .map(|(name, value)| (name.into_owned(), Value::String(value)))
            .collect();
        put("tags", Value::Object(tags));
        Value::Object(json)
    }
}

impl Collector {
    async fn send(self: Arc<Self>, worker: Rc<Worker>, spans: Vec<String>) {
        let stats = &self.stats;
        stats.timer_flushed.inc();
        stats.spans_sent.add(spans.len() as u64);
        let mut map = HeaderMap::new();
        map.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (name, value) in &self.headers {
            map.insert(name.clone(), value.clone());
        }
        let request = self.target.request(Method::POST, map);
        let body = Bytes::from(format!("[{}]", spans.join(",")));
        match self.target.call(&worker, request, body).await {
            Ok(response) if response.status() == StatusCode::ACCEPTED => stats.reports_sent.inc(),
            Ok(_) => stats.reports_dropped.inc(),
            Err(CallError::NoCluster(_)) => stats.reports_skipped_no_cluster.inc(),
            Err(error) => {
                tracing::debug!(target: "tracing", %error, "spans were lost");
                stats.reports_failed.inc();
            }
        }
    }
}

/// A checked `HttpService`: the target and headers for every request.
pub(crate) fn http_service(
    service: &core::HttpService,
) -> Result<(HttpTarget, Vec<(HeaderName, HeaderValue)>), Invalid> {
    let uri = service
        .http_uri
        .as_ref()
        .ok_or_else(|| Invalid::new("http_uri is needed"))?;
    let headers = try_all(
        "request_headers_to_add",
        &service.request_headers_to_add,
        |option| {
            let header = option
                .header
                .as_ref()
                .ok_or_else(|| Invalid::new("a header is needed"))?;
            let value = HeaderValue::from_str(&header.value)
                .map_err(|_| Invalid::new("not a header value"))?;
            Ok((header_name(&header.key)?, value))
        },
    )?;
    Ok((HttpTarget::try_from(uri).at("http_uri")?, headers))
}

fn legacy_target(config: &ZipkinConfig) -> Result<HttpTarget, Invalid> {
    let needed = |text: &str, field: &str| {
        if text.is_empty() {
            Err(Invalid::new(format!("{field} is needed")))
        } else {
            Ok(())
        }
    };
    needed(&config.collector_cluster, "collector_cluster")?;
    needed(&config.collector_endpoint, "collector_endpoint")?;
    let host = match config.collector_hostname.as_str() {
        "" => config.collector_cluster.replace('|', "_"),
        host => host.to_owned(),
    };
    Ok(HttpTarget {
        cluster: config.collector_cluster.as_str().into(),
        authority: HeaderValue::try_from(host)
            .map_err(|_| Invalid::new("not a host").at("collector_hostname"))?,
        path: config
            .collector_endpoint
            .parse()
            .map_err(|_| Invalid::new("not a path").at("collector_endpoint"))?,
        scheme: Scheme::Http,
        timeout: TIMEOUT,
        says_from: true,
    })
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
