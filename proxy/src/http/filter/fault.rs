//! HTTP fault filter: delays or aborts a share of requests before the router sees them, and slows responses down.
//! Follows Envoy's `fault` filter: each percentage is drawn once per stream, delay first, then abort.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, StatusCode};
use prost_types::Any;
use proto::envoy::extensions::filters::common::fault::v3 as common;
use proto::envoy::extensions::filters::http::fault::v3 as wire;

use crate::http::headers::{RequestHeaders, names};
use crate::http::local_reply::{LocalReply, status_code};
use crate::http::stream::Stream;
use crate::invalid::{At as _, Invalid, try_all};
use crate::matcher::{Fraction, HeaderMatcher};
use crate::router::timeout::duration;
use crate::runtime::{self, RuntimeFraction, RuntimeNumber};
use crate::stat_group;
use crate::stream_info::ResponseFlag;

use super::{FilterContext, FilterFactory, FilterKind, FilterStatus, HttpFilter, RouteValue};

const NAME: &str = "envoy.filters.http.fault";

/// The filter's row.
pub(crate) const KIND: FilterKind = FilterKind {
    message: "envoy.extensions.filters.http.fault.v3.HTTPFault",
    name: NAME,
    build,
    routes: &[("envoy.extensions.filters.http.fault.v3.HTTPFault", route)],
};

/// What we use of the wire message, already checked.
#[derive(Debug)]
struct FaultConfig {
    delay: Option<(Delay, RuntimeFraction)>,
    abort: Option<(Abort, RuntimeFraction)>,
    rate: Option<(Rate, RuntimeFraction)>,
    body: Bytes,
    upstream_cluster: Option<Box<str>>,
    headers: Vec<HeaderMatcher>,
    nodes: Vec<Box<str>>,
    /// Milliseconds of a fixed delay, where they are not configured for it.
    delay_time: Box<str>,
    http_status: Box<str>,
    grpc_status: Box<str>,
    max_active: RuntimeNumber,
}

#[derive(Debug, Clone, Copy)]
enum Delay {
    Fixed(Duration),
    Header,
}

/// How fast a response's body goes.
#[derive(Debug, Clone, Copy)]
enum Rate {
    /// KiB a second.
    Fixed(u64),
    Header,
}

#[derive(Debug, Clone, Copy)]
enum Abort {
    Http(StatusCode),
    Grpc(u32),
    Header,
}

stat_group! {
    /// `http.<prefix>.fault.…`
    struct FaultStats {
        aborts_injected: Counter, active_faults: Gauge, delays_injected: Counter, faults_overflow: Counter,
        response_rl_injected: Counter,
    }
}

struct Factory {
    name: Box<str>,
    config: Arc<FaultConfig>,
    stats: Arc<FaultStats>,
    active: Arc<AtomicU64>,
}

/// One per stream.
struct Fault {
    name: Box<str>,
    config: Arc<FaultConfig>,
    stats: Arc<FaultStats>,
    active: Arc<AtomicU64>,
    guard: Option<Active>,
}

/// A fault under way, for the gauge and the limit.
struct Active(Arc<FaultStats>, Arc<AtomicU64>);

fn build(any: &Any, context: &FilterContext<'_>) -> Result<Arc<dyn FilterFactory>, Invalid> {
    let config: wire::HttpFault = super::unpack(any)?;
    Ok(Arc::new(Factory {
        name: context.name.into(),
        config: Arc::new(FaultConfig::try_from(&config)?),
        stats: context.scope.scope("fault").group(),
        active: Arc::default(),
    }))
}

fn route(any: &Any) -> Result<RouteValue, Invalid> {
    let config: wire::HttpFault = super::unpack(any)?;
    Ok(Arc::new(Arc::new(FaultConfig::try_from(&config)?)))
}

impl TryFrom<&wire::HttpFault> for FaultConfig {
    type Error = Invalid;

    fn try_from(fault: &wire::HttpFault) -> Result<Self, Invalid> {
        let body = fault
            .abort
            .as_ref()
            .map(|abort| abort.response_body.clone())
            .unwrap_or_default();
        let body = if body.is_empty() {
            Bytes::from_static(b"fault filter abort")
        } else {
            Bytes::from(body)
        };
        Ok(FaultConfig {
            delay: fault
                .delay
                .as_ref()
                .map(|wire| {
                    let key = &fault.delay_percent_runtime;
                    let (kind, share) = delay(wire)?;
                    Ok::<_, Invalid>((
                        kind,
                        keyed(key, "fault.http.delay.fixed_delay_percent", share),
                    ))
                })
                .transpose()
                .at("delay")?,
            abort: fault
                .abort
                .as_ref()
                .map(|wire| {
                    let key = &fault.abort_percent_runtime;
                    let (kind, share) = abort(wire)?;
                    Ok::<_, Invalid>((kind, keyed(key, "fault.http.abort.abort_percent", share)))
                })
                .transpose()
                .at("abort")?,
            rate: fault
                .response_rate_limit
                .as_ref()
                .map(|wire| {
                    let key = &fault.response_rate_limit_percent_runtime;
                    let (kind, share) = rate(wire)?;
                    Ok::<_, Invalid>((
                        kind,
                        keyed(key, "fault.http.rate_limit.response_percent", share),
                    ))
                })
                .transpose()
                .at("response_rate_limit")?,
            body,
            upstream_cluster: (!fault.upstream_cluster.is_empty())
                .then(|| fault.upstream_cluster.as_str().into()),
            headers: try_all("headers", &fault.headers, HeaderMatcher::try_from)?,
            nodes: fault
                .downstream_nodes
                .iter()
                .map(|node| node.as_str().into())
                .collect(),
            delay_time: key_of(
                &fault.delay_duration_runtime,
                "fault.http.delay.fixed_duration_ms",
            ),
            http_status: key_of(
                &fault.abort_http_status_runtime,
                "fault.http.abort.http_status",
            ),
            grpc_status: key_of(
                &fault.abort_grpc_status_runtime,
                "fault.http.abort.grpc_status",
            ),
            max_active: RuntimeNumber::new(
                &key_of(
                    &fault.max_active_faults_runtime,
                    "fault.http.max_active_faults",
                ),
                fault.max_active_faults.map_or(u64::MAX, u64::from),
            ),
        })
    }
}

/// A share with its runtime key, which has a default.
fn keyed(key: &str, default: &str, share: Fraction) -> RuntimeFraction {
    RuntimeFraction::new(&key_of(key, default), share)
}

/// A runtime key, else the usual one.
fn key_of(key: &str, default: &str) -> Box<str> {
    (if key.is_empty() { default } else { key }).into()
}

fn delay(delay: &common::FaultDelay) -> Result<(Delay, Fraction), Invalid> {
    use common::fault_delay::FaultDelaySecifier;
    let kind = match &delay.fault_delay_secifier {
        Some(FaultDelaySecifier::FixedDelay(fixed)) => {
            Delay::Fixed(duration(Some(fixed)).at("fixed_delay")?.unwrap_or_default())
        }
        Some(FaultDelaySecifier::HeaderDelay(_)) => Delay::Header,
        None => return Err(Invalid::new("fixed_delay or header_delay is needed")),
    };
    Ok((
        kind,
        delay
            .percentage
            .as_ref()
            .map_or(Fraction::NEVER, Fraction::from),
    ))
}

fn rate(rate: &common::FaultRateLimit) -> Result<(Rate, Fraction), Invalid> {
    use common::fault_rate_limit::LimitType;
    let kind = match &rate.limit_type {
        Some(LimitType::FixedLimit(fixed)) if fixed.limit_kbps > 0 => Rate::Fixed(fixed.limit_kbps),
        Some(LimitType::FixedLimit(_)) => {
            return Err(Invalid::new("limit_kbps must be greater than 0"));
        }
        Some(LimitType::HeaderLimit(_)) => Rate::Header,
        None => return Err(Invalid::new("fixed_limit or header_limit is needed")),
    };
    Ok((
        kind,
        rate.percentage
            .as_ref()
            .map_or(Fraction::NEVER, Fraction::from),
    ))
}

fn abort(abort: &wire::FaultAbort) -> Result<(Abort, Fraction), Invalid> {
    use wire::fault_abort::ErrorType;
    let kind = match &abort.error_type {
        Some(ErrorType::HttpStatus(code)) => Abort::Http(status_code(*code).at("http_status")?),
        Some(ErrorType::GrpcStatus(code)) => Abort::Grpc(*code),
        Some(ErrorType::HeaderAbort(_)) => Abort::Header,
        None => {
            return Err(Invalid::new(
                "http_status, grpc_status or header_abort is needed",
            ));
        }
    };
    Ok((
        kind,
        abort
            .percentage
            .as_ref()
            .map_or(Fraction::NEVER, Fraction::from),
    ))
}

impl FaultConfig {
    /// True when the request is one that faults may hit.
    fn applies(&self, headers: &RequestHeaders, stream: &Stream) -> bool {
        let cluster = stream.route().and_then(|route| route.cluster());
        if let Some(want) = &self.upstream_cluster
            && cluster.is_none_or(|cluster| cluster.as_ref() != want.as_ref())
        {
            return false;
        }
        if !self.nodes.is_empty() {
            let node = headers
                .text(&names::X_ENVOY_DOWNSTREAM_SERVICE_NODE)
                .unwrap_or_default();
            if !self.nodes.iter().any(|known| known.as_ref() == node) {
                return false;
            }
        }
        HeaderMatcher::all(&self.headers, headers)
    }

    fn draw_delay(&self, headers: &RequestHeaders) -> Option<Duration> {
        let (kind, share) = self.delay.as_ref()?;
        let share = share.now();
        match *kind {
            Delay::Fixed(delay) => share.draw().then_some(delay),
            Delay::Header => {
                let delay = number(headers, &names::X_ENVOY_FAULT_DELAY)?;
                let share = lowered(share, headers, &names::X_ENVOY_FAULT_DELAY_PERCENTAGE);
                share
                    .draw()
                    .then(|| Duration::from_millis(u64::from(delay)))
            }
        }
        .map(|delay| runtime::current(&self.delay_time).map_or(delay, Duration::from_millis))
        .filter(|delay| !delay.is_zero())
    }

    /// Bytes a second.
    fn draw_rate(&self, headers: &RequestHeaders) -> Option<u64> {
        let (kind, share) = self.rate.as_ref()?;
        let share = share.now();
        let kilobytes = match *kind {
            Rate::Fixed(rate) => share.draw().then_some(rate)?,
            Rate::Header => {
                let rate = number(headers, &names::X_ENVOY_FAULT_THROUGHPUT).filter(|r| *r > 0)?;
                let share = lowered(share, headers, &names::X_ENVOY_FAULT_THROUGHPUT_PERCENTAGE);
                share.draw().then_some(u64::from(rate))?
            }
        };
        Some(kilobytes.saturating_mul(1024))
    }

    fn draw_abort(&self, headers: &RequestHeaders) -> Option<LocalReply> {
        let (kind, share) = self.abort.as_ref()?;
        let share = share.now();
        let (status, grpc) = match *kind {
            Abort::Http(status) => (status, None),
            Abort::Grpc(code) => (StatusCode::OK, Some(code)),
            Abort::Header => match number(headers, &names::X_ENVOY_FAULT_ABORT) {
                Some(code) => (status_code(code).ok()?, None),
                None => (
                    StatusCode::OK,
                    Some(number(headers, &names::X_ENVOY_FAULT_ABORT_GRPC)?),
                ),
            },
        };
        let (status, grpc) = self.abort_now(status, grpc);
        let share = match kind {
            Abort::Header => lowered(share, headers, &names::X_ENVOY_FAULT_ABORT_PERCENTAGE),
            Abort::Http(_) | Abort::Grpc(_) => share,
        };
        share.draw().then(|| {
            let mut reply = LocalReply::new(status, self.body.clone(), "fault_filter_abort")
                .flag(ResponseFlag::FaultInjected);
            reply.grpc_status = grpc;
            reply
        })
    }
}

impl FaultConfig {
    /// What the runtime has in the place of a status.
    fn abort_now(&self, status: StatusCode, grpc: Option<u32>) -> (StatusCode, Option<u32>) {
        let read =
            |key: &str| runtime::current::<u64>(key).and_then(|code| u32::try_from(code).ok());
        match grpc {
            Some(code) => (status, Some(read(&self.grpc_status).unwrap_or(code))),
            None => {
                let now = read(&self.http_status).and_then(|code| status_code(code).ok());
                (now.unwrap_or(status), None)
            }
        }
    }
}

impl FilterFactory for Factory {
    fn create(&self) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(Fault {
            name: self.name.clone(),
            config: self.config.clone(),
            stats: self.stats.clone(),
            active: self.active.clone(),
            guard: None,
        }))
    }
}

impl Fault {
    /// Room for one more fault.
    fn take(&mut self) -> bool {
        if self.guard.is_some() {
            return true;
        }
        let active = self.active.load(Ordering::Relaxed);
        if active >= self.config.max_active.now() {
            self.stats.faults_overflow.inc();
            return false;
        }
        self.active.fetch_add(1, Ordering::Relaxed);
        self.stats.active_faults.inc();
        self.guard = Some(Active(self.stats.clone(), self.active.clone()));
        true
    }
}

impl HttpFilter for Fault {
    fn decode_headers(
        &mut self,
        headers: &mut RequestHeaders,
        stream: &mut Stream,
    ) -> FilterStatus {
        if let Some(config) = stream
            .route_config::<Arc<FaultConfig>>(&self.name)
            .or_else(|| stream.route_config(NAME))
        {
            self.config = config.clone();
        }
        if !self.config.applies(headers, stream) {
            return FilterStatus::Continue;
        }
        if let Some(rate) = self.config.draw_rate(headers).filter(|_| self.take()) {
            self.stats.response_rl_injected.inc();
            stream.response_rate = Some(rate);
        }
        let delay = self.config.draw_delay(headers).filter(|_| self.take());
        // A delayed request can still be aborted: Envoy draws both.
        let abort = self.config.draw_abort(headers).filter(|_| self.take());
        if delay.is_some() {
            self.stats.delays_injected.inc();
            stream.info.flags.set(ResponseFlag::DelayInjected);
        }
        if abort.is_some() {
            self.stats.aborts_injected.inc();
        }
        match (delay, abort) {
            (Some(delay), abort) => FilterStatus::wait(tokio::time::sleep(delay), abort),
            (None, Some(abort)) => FilterStatus::reply(abort),
            (None, None) => FilterStatus::Continue,
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active_faults.dec();
        self.1.fetch_sub(1, Ordering::Relaxed);
    }
}

fn number(headers: &RequestHeaders, name: &HeaderName) -> Option<u32> {
    headers.text(name)?.trim().parse().ok()
}

/// A share that a header may lower but not raise.
fn lowered(share: Fraction, headers: &RequestHeaders, name: &HeaderName) -> Fraction {
    number(headers, name).map_or(share, |percent| share.min_percent(percent))
}
