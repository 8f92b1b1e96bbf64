//! Active health checks as configured.
#![allow(
    deprecated,
    reason = "control planes still send the fields that Envoy has deprecated"
)]

use crate::runtime::RuntimeView;
use crate::{
    invalid::{At as _, Invalid, try_all},
    matcher::StringMatcher,
    upstream::event_log::EventLog,
    wire::{duration, duration_or},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use prost_types::Struct;
use proto::envoy::{
    config::core::v3::{
        HealthCheck as Wire,
        health_check::{HealthChecker, HttpHealthCheck, Payload, custom_health_check, payload},
    },
    extensions::{
        health_check::event_sinks::file::v3::HealthCheckEventFileSink,
        health_checkers::redis::v3::Redis,
    },
};
use std::{ops::Range, sync::Arc, time::Duration};

/// A checked health check.
#[derive(Clone, Debug)]
pub(crate) struct HealthCheckConfig {
    pub(super) timeout: Duration,
    pub(super) intervals: Intervals,
    pub(super) unhealthy_threshold: u32,
    pub(super) healthy_threshold: u32,
    pub(super) alt_port: Option<u16>,
    pub(super) reuses_connection: bool,
    pub(super) probe: Probe,
    pub(super) log: Option<EventLog>,
    pub(super) logs_failures: bool,
    pub(super) logs_successes: bool,
    /// Which of the transport sockets is used, if not the host's.
    pub(super) transport_match: Option<Struct>,
}

/// When the next check follows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Intervals {
    pub(super) initial_jitter: Duration,
    healthy: Duration,
    unhealthy: Duration,
    healthy_edge: Duration,
    unhealthy_edge: Duration,
    no_traffic: Duration,
    no_traffic_healthy: Duration,
    jitter: Duration,
    jitter_percent: u32,
}

/// What is asked.
#[derive(Clone, Debug)]
pub(super) enum Probe {
    Http(Arc<HttpProbe>),
    Grpc(Arc<GrpcProbe>),
    Tcp {
        send: Vec<u8>,
        receive: Vec<Vec<u8>>,
    },
    Redis {
        key: String,
    },
}

/// An HTTP request and what is expected of the response.
#[derive(Debug)]
pub(super) struct HttpProbe {
    pub(super) is_http2: bool,
    pub(super) method: Method,
    pub(super) host: String,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) expected: Vec<Range<u16>>,
    pub(super) retriable: Vec<Range<u16>>,
    pub(super) receive: Vec<Vec<u8>>,
    pub(super) buffer: usize,
    pub(super) service: Option<StringMatcher>,
}

/// A call of the gRPC health service.
#[derive(Debug)]
pub(super) struct GrpcProbe {
    pub(super) service: String,
    pub(super) authority: String,
    pub(super) metadata: HeaderMap,
}

impl TryFrom<&Wire> for HealthCheckConfig {
    type Error = Invalid;

    fn try_from(wire: &Wire) -> Result<Self, Invalid> {
        if wire.tls_options.is_some() {
            return Err(Invalid::unsupported("tls_options"));
        }
        let log = event_log(wire)?;
        Ok(Self {
            timeout: needed(wire.timeout.as_ref(), "timeout")?,
            intervals: Intervals::new(wire)?,
            unhealthy_threshold: threshold(wire.unhealthy_threshold, "unhealthy_threshold")?,
            healthy_threshold: threshold(wire.healthy_threshold, "healthy_threshold")?,
            alt_port: wire
                .alt_port
                .map(|port| {
                    u16::try_from(port)
                        .map_err(|_| Invalid::new(format!("{port} is not a port")).at("alt_port"))
                })
                .transpose()?,
            reuses_connection: wire.reuse_connection.unwrap_or(true),
            probe: probe(wire)?,
            log,
            logs_failures: wire.always_log_health_check_failures,
            logs_successes: wire.always_log_health_check_success,
            transport_match: wire.transport_socket_match_criteria.clone(),
        })
    }
}

fn needed(wire: Option<&prost_types::Duration>, field: &str) -> Result<Duration, Invalid> {
    let value = wire
        .ok_or_else(|| Invalid::new("it is needed"))
        .and_then(duration)
        .at(field)?;
    if value.is_zero() {
        return Err(Invalid::new("it must be above zero").at(field));
    }
    Ok(value)
}

fn threshold(value: Option<u32>, field: &str) -> Result<u32, Invalid> {
    value.ok_or_else(|| Invalid::new("it is needed").at(field))
}

fn event_log(wire: &Wire) -> Result<Option<EventLog>, Invalid> {
    let mut path = wire.event_log_path.clone();
    for (index, sink) in wire.event_logger.iter().enumerate() {
        let at = format!("event_logger[{index}]");
        let any = sink
            .typed_config
            .as_ref()
            .ok_or_else(|| Invalid::new("a typed_config is needed").at(&at))?;
        let sink: HealthCheckEventFileSink = proto::any::unpack(any).at(&at)?;
        path = sink.event_log_path;
    }
    (!path.is_empty())
        .then(|| EventLog::open(&path))
        .transpose()
        .at("event_log_path")
}

impl Intervals {
    fn new(wire: &Wire) -> Result<Self, Invalid> {
        let interval = needed(wire.interval.as_ref(), "interval")?;
        let or = |wire: Option<&prost_types::Duration>, default: Duration, field: &str| {
            duration_or(wire, default, field)
        };
        let unhealthy = or(
            wire.unhealthy_interval.as_ref(),
            interval,
            "unhealthy_interval",
        )?;
        let no_traffic = or(
            wire.no_traffic_interval.as_ref(),
            Duration::from_secs(60),
            "no_traffic_interval",
        )?;
        Ok(Self {
            initial_jitter: or(
                wire.initial_jitter.as_ref(),
                Duration::ZERO,
                "initial_jitter",
            )?,
            healthy: interval,
            unhealthy,
            healthy_edge: or(
                wire.healthy_edge_interval.as_ref(),
                interval,
                "healthy_edge_interval",
            )?,
            unhealthy_edge: or(
                wire.unhealthy_edge_interval.as_ref(),
                unhealthy,
                "unhealthy_edge_interval",
            )?,
            no_traffic,
            no_traffic_healthy: or(
                wire.no_traffic_healthy_interval.as_ref(),
                no_traffic,
                "no_traffic_healthy_interval",
            )?,
            jitter: or(
                wire.interval_jitter.as_ref(),
                Duration::ZERO,
                "interval_jitter",
            )?,
            jitter_percent: wire.interval_jitter_percent,
        })
    }

    /// The pause after a check: by what it said, whether that is on its way to change the host's state, and whether the
    /// cluster has ever been used.
    pub(super) fn next(&self, is_good: bool, is_pending: bool, has_traffic: bool) -> Duration {
        let base = match (has_traffic, is_good, is_pending) {
            (true, true, true) => self.healthy_edge,
            (true, true, false) => self.healthy,
            (true, false, true) => self.unhealthy_edge,
            (true, false, false) => self.unhealthy,
            (false, true, false) => self.no_traffic_healthy,
            (false, ..) => self.no_traffic,
        };
        let share = f64::from(self.jitter_percent) / 100.0 * rand::random::<f64>();
        (base + base.mul_f64(share) + self.jitter.mul_f64(rand::random::<f64>()))
            .max(Duration::from_millis(1))
    }
}

/// No check comes sooner or later after another than the runtime says.
pub(super) fn within_bounds(pause: Duration, runtime: &RuntimeView) -> Duration {
    let bound = |key| runtime.get(key).map(Duration::from_millis);
    let least = bound("health_check.min_interval").unwrap_or(Duration::from_millis(1));
    let most = bound("health_check.max_interval").unwrap_or(Duration::MAX);
    // As Envoy has it the upper bound counts where the two contradict each other.
    pause.max(least).min(most)
}

fn probe(wire: &Wire) -> Result<Probe, Invalid> {
    match &wire.health_checker {
        Some(HealthChecker::HttpHealthCheck(http)) => http_probe(http).at("http_health_check"),
        Some(HealthChecker::TcpHealthCheck(tcp)) => {
            if tcp.proxy_protocol_config.is_some() {
                return Err(Invalid::unsupported("proxy_protocol_config").at("tcp_health_check"));
            }
            Ok(Probe::Tcp {
                send: tcp
                    .send
                    .as_ref()
                    .map(payload)
                    .transpose()
                    .at("tcp_health_check.send")?
                    .unwrap_or_default(),
                receive: try_all("tcp_health_check.receive", &tcp.receive, payload)?,
            })
        }
        Some(HealthChecker::GrpcHealthCheck(grpc)) => Ok(Probe::Grpc(Arc::new(GrpcProbe {
            service: grpc.service_name.clone(),
            authority: grpc.authority.clone(),
            metadata: headers(&grpc.initial_metadata).at("grpc_health_check.initial_metadata")?,
        }))),
        Some(HealthChecker::CustomHealthCheck(custom)) => {
            let Some(custom_health_check::ConfigType::TypedConfig(any)) = &custom.config_type
            else {
                return Err(Invalid::new("a typed_config is needed").at("custom_health_check"));
            };
            let redis: Redis = proto::any::unpack(any).at("custom_health_check.typed_config")?;
            Ok(Probe::Redis { key: redis.key })
        }
        None => Err(Invalid::new("a health checker is needed")),
    }
}

fn http_probe(wire: &HttpHealthCheck) -> Result<Probe, Invalid> {
    if !wire.path.starts_with('/') {
        return Err(Invalid::new("a path is needed").at("path"));
    }
    if wire.send.is_some() {
        return Err(Invalid::unsupported("a request body").at("send"));
    }
    let is_http2 = match wire.codec_client_type {
        0 => false,
        1 => true,
        _ => return Err(Invalid::unsupported("HTTP/3").at("codec_client_type")),
    };
    let method = match wire.method {
        0 | 1 => Method::GET,
        2 => Method::HEAD,
        3 => Method::POST,
        4 => Method::PUT,
        5 => Method::DELETE,
        7 => Method::OPTIONS,
        8 => Method::TRACE,
        9 => Method::PATCH,
        _ => return Err(Invalid::unsupported("this method").at("method")),
    };
    let mut added = headers(&wire.request_headers_to_add).at("request_headers_to_add")?;
    for name in &wire.request_headers_to_remove {
        added.remove(name);
    }
    let expected: Vec<Range<u16>> = wire
        .expected_statuses
        .iter()
        .map(|range| status(range.start)..status(range.end))
        .collect();
    Ok(Probe::Http(Arc::new(HttpProbe {
        is_http2,
        method,
        host: wire.host.clone(),
        path: wire.path.clone(),
        headers: added,
        expected: if expected.is_empty() {
            std::iter::once(200..201).collect()
        } else {
            expected
        },
        retriable: wire
            .retriable_statuses
            .iter()
            .map(|range| status(range.start)..status(range.end))
            .collect(),
        receive: try_all("receive", &wire.receive, payload)?,
        buffer: wire
            .response_buffer_size
            .map_or(1024, |size| usize::try_from(size).unwrap_or(1024)),
        service: wire
            .service_name_matcher
            .as_ref()
            .map(StringMatcher::try_from)
            .transpose()
            .at("service_name_matcher")?,
    })))
}

fn headers(
    wire: &[proto::envoy::config::core::v3::HeaderValueOption],
) -> Result<HeaderMap, Invalid> {
    let mut map = HeaderMap::new();
    for option in wire {
        let Some(header) = &option.header else {
            continue;
        };
        if header.value.contains('%') {
            return Err(Invalid::unsupported("a format operator").at(&header.key));
        }
        let name = HeaderName::from_bytes(header.key.as_bytes())
            .map_err(|error| Invalid::new(error.to_string()).at(&header.key))?;
        let value = HeaderValue::from_str(&header.value)
            .map_err(|error| Invalid::new(error.to_string()).at(&header.key))?;
        map.append(name, value);
    }
    Ok(map)
}

fn status(value: i64) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

fn payload(wire: &Payload) -> Result<Vec<u8>, Invalid> {
    match &wire.payload {
        Some(payload::Payload::Binary(bytes)) => Ok(bytes.clone()),
        Some(payload::Payload::Text(hex)) => {
            if hex.len() % 2 != 0 {
                return Err(Invalid::new("invalid hex string"));
            }
            let byte = |at: usize| {
                hex.as_bytes()
                    .get(at..at + 2)
                    .and_then(crate::wire::hex_byte)
            };
            (0..hex.len())
                .step_by(2)
                .map(|at| byte(at).ok_or_else(|| Invalid::new("invalid hex string")))
                .collect()
        }
        None => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{runtime::Runtime, stats::Store};

    #[test]
    fn runtime_bounds_the_pause_between_checks() {
        let runtime = Runtime::new(&Arc::new(Store::default()).root());
        runtime.configure(None).unwrap();
        let second = Duration::from_secs(1);
        let bounded = || within_bounds(second, &runtime.view());
        assert_eq!(bounded(), second);
        let set = |key, value| runtime.modify([(key, value)].into_iter()).unwrap();
        set("health_check.min_interval", "2000");
        assert_eq!(bounded(), 2 * second);
        set("health_check.max_interval", "500");
        assert_eq!(bounded(), second / 2);
    }
}
