//! Retries: which outcomes deserve another attempt, how many, and how long to wait before it.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use proto::envoy::config::route::v3 as wire;
use proto::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use rand::RngExt as _;
use wire::retry_policy::ResetHeaderFormat;

use crate::http::headers::{RequestHeaders, names, text_of};
use crate::invalid::{At as _, Invalid, try_all};
use crate::matcher::{Fraction, HeaderMatcher};
use crate::runtime;

use super::timeout::{duration, non_zero};

/// Envoy's base interval.
const BASE_INTERVAL: Duration = Duration::from_millis(25);
/// The longest wait that an upstream's rate-limit header may ask for, unless configured.
const RATE_LIMITED_MAX: Duration = Duration::from_secs(300);

/// Conditions of `retry_on`, as bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct RetryOn(u32);

impl RetryOn {
    const FIVE_XX: RetryOn = RetryOn(1);
    const GATEWAY_ERROR: RetryOn = RetryOn(1 << 1);
    const CONNECT_FAILURE: RetryOn = RetryOn(1 << 2);
    const RETRIABLE_4XX: RetryOn = RetryOn(1 << 3);
    const REFUSED_STREAM: RetryOn = RetryOn(1 << 4);
    const GRPC_CANCELLED: RetryOn = RetryOn(1 << 5);
    const GRPC_DEADLINE_EXCEEDED: RetryOn = RetryOn(1 << 6);
    const GRPC_RESOURCE_EXHAUSTED: RetryOn = RetryOn(1 << 7);
    const GRPC_UNAVAILABLE: RetryOn = RetryOn(1 << 8);
    const GRPC_INTERNAL: RetryOn = RetryOn(1 << 9);
    const RETRIABLE_STATUS_CODES: RetryOn = RetryOn(1 << 10);
    const RESET: RetryOn = RetryOn(1 << 11);
    const RETRIABLE_HEADERS: RetryOn = RetryOn(1 << 12);
    const ENVOY_RATE_LIMITED: RetryOn = RetryOn(1 << 13);
    const RESET_BEFORE_REQUEST: RetryOn = RetryOn(1 << 15);

    /// Comma-separated words; unknown ones are ignored, as Envoy does.
    fn parse(text: &str) -> Self {
        let word = |word: &str| match word.trim() {
            "5xx" => RetryOn::FIVE_XX,
            "gateway-error" => RetryOn::GATEWAY_ERROR,
            "connect-failure" => RetryOn::CONNECT_FAILURE,
            "retriable-4xx" => RetryOn::RETRIABLE_4XX,
            "refused-stream" => RetryOn::REFUSED_STREAM,
            "cancelled" => RetryOn::GRPC_CANCELLED,
            "deadline-exceeded" => RetryOn::GRPC_DEADLINE_EXCEEDED,
            "resource-exhausted" => RetryOn::GRPC_RESOURCE_EXHAUSTED,
            "unavailable" => RetryOn::GRPC_UNAVAILABLE,
            "internal" => RetryOn::GRPC_INTERNAL,
            "retriable-status-codes" => RetryOn::RETRIABLE_STATUS_CODES,
            "reset" => RetryOn::RESET,
            "retriable-headers" => RetryOn::RETRIABLE_HEADERS,
            "envoy-ratelimited" => RetryOn::ENVOY_RATE_LIMITED,
            "reset-before-request" => RetryOn::RESET_BEFORE_REQUEST,
            _ => RetryOn::default(),
        };
        RetryOn(
            text.split(',')
                .map(|text| word(text).0)
                .fold(0, |all, bits| all | bits),
        )
    }

    fn has(self, other: RetryOn) -> bool {
        self.0 & other.0 != 0
    }
}

/// A compiled `RetryPolicy`.
#[derive(Debug, Clone)]
pub(crate) struct RetryPolicy {
    retry_on: RetryOn,
    retries: u32,
    /// For one attempt; none for no limit.
    pub(crate) per_try_timeout: Option<Duration>,
    /// For one attempt without a byte.
    pub(crate) per_try_idle_timeout: Option<Duration>,
    status_codes: Vec<u16>,
    headers: Vec<HeaderMatcher>,
    request_headers: Vec<HeaderMatcher>,
    base_interval: Option<Duration>,
    max_interval: Option<Duration>,
    reset_headers: Vec<(HeaderName, ResetHeaderFormat)>,
    reset_max: Duration,
    /// Hosts that were tried are avoided.
    pub(crate) avoids_previous_hosts: bool,
    /// Hosts that are canaries are avoided.
    pub(crate) avoids_canaries: bool,
    /// Priorities that were tried are avoided; they are looked at anew after so many attempts.
    pub(crate) avoids_previous_priorities: Option<usize>,
    /// How often another host is asked for before the offered one is taken.
    pub(crate) host_selection_attempts: u32,
}

/// What came of an attempt.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Outcome<'a> {
    /// Response headers.
    Headers(StatusCode, &'a HeaderMap),
    /// No connection.
    ConnectFailure,
    /// The upstream refused the stream before doing anything.
    RefusedStream,
    /// The stream broke; the flag says whether the request had gone out.
    Reset { request_sent: bool },
    /// The attempt's timeout.
    PerTryTimeout,
    /// The same where the attempt goes on beside another one.
    SoftTimeout,
    /// A circuit breaker or pool limit.
    Overflow,
}

/// What to do after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RetryDecision {
    /// Keep this outcome.
    No,
    /// It would have been retried, but the attempts are used up.
    LimitExceeded,
    /// Try again after this time.
    After(Duration),
    /// Retry after as long as the upstream has asked for.
    AsAsked(Duration),
}

/// The retries of one request.
#[derive(Debug)]
pub(crate) struct RetryState {
    retry_on: RetryOn,
    remaining: u32,
    attempt: u32,
    status_codes: Vec<u16>,
    header_names: Vec<HeaderName>,
    policy: Option<Arc<RetryPolicy>>,
}

/// Whether hosts that were tried, and whether canaries are avoided.
fn host_predicates(policy: &wire::RetryPolicy) -> Result<(bool, bool), Invalid> {
    let (mut avoids_previous_hosts, mut avoids_canaries) = (false, false);
    for (index, predicate) in policy.retry_host_predicate.iter().enumerate() {
        let known = match &predicate.config_type {
            Some(wire::retry_policy::retry_host_predicate::ConfigType::TypedConfig(any)) => {
                proto::type_url::message_name(&any.type_url)
            }
            None => predicate.name.as_str(),
        };
        if known.contains("previous_hosts") {
            avoids_previous_hosts = true;
        } else if known.contains("omit_canary_hosts") {
            avoids_canaries = true;
        } else {
            return Err(
                Invalid::unsupported(known).at(format_args!("retry_host_predicate[{index}]"))
            );
        }
    }
    Ok((avoids_previous_hosts, avoids_canaries))
}

impl TryFrom<&wire::RetryPolicy> for RetryPolicy {
    type Error = Invalid;

    fn try_from(policy: &wire::RetryPolicy) -> Result<Self, Invalid> {
        if !policy.retry_options_predicates.is_empty() {
            return Err(Invalid::unsupported("retry_options_predicates"));
        }
        let (avoids_previous_hosts, avoids_canaries) = host_predicates(policy)?;
        let back_off = policy.retry_back_off.as_ref();
        let base = duration(back_off.and_then(|back_off| back_off.base_interval.as_ref()))
            .at("retry_back_off.base_interval")?
            .map(|base| base.max(Duration::from_millis(1)));
        let max = duration(back_off.and_then(|back_off| back_off.max_interval.as_ref()))
            .at("retry_back_off.max_interval")?;
        if max.is_some_and(|max| max < base.unwrap_or(BASE_INTERVAL)) {
            return Err(
                Invalid::new("max_interval must not be less than base_interval")
                    .at("retry_back_off"),
            );
        }
        let limited = policy.rate_limited_retry_back_off.as_ref();
        let reset_headers = limited
            .map(|limited| limited.reset_headers.as_slice())
            .unwrap_or_default();
        Ok(RetryPolicy {
            avoids_previous_priorities: policy
                .retry_priority
                .as_ref()
                .map(previous_priorities)
                .transpose()
                .at("retry_priority")?,
            retry_on: RetryOn::parse(&policy.retry_on),
            retries: policy.num_retries.unwrap_or(1),
            per_try_timeout: duration(policy.per_try_timeout.as_ref())
                .at("per_try_timeout")?
                .and_then(non_zero),
            per_try_idle_timeout: duration(policy.per_try_idle_timeout.as_ref())
                .at("per_try_idle_timeout")?
                .and_then(non_zero),
            status_codes: policy
                .retriable_status_codes
                .iter()
                .filter_map(|code| u16::try_from(*code).ok())
                .collect(),
            headers: try_all(
                "retriable_headers",
                &policy.retriable_headers,
                HeaderMatcher::try_from,
            )?,
            request_headers: try_all(
                "retriable_request_headers",
                &policy.retriable_request_headers,
                HeaderMatcher::try_from,
            )?,
            base_interval: base,
            max_interval: max,
            reset_headers: try_all("reset_headers", reset_headers, |header| {
                Ok((super::header_name(&header.name)?, header.format()))
            })?,
            reset_max: duration(limited.and_then(|limited| limited.max_interval.as_ref()))
                .at("rate_limited_retry_back_off.max_interval")?
                .unwrap_or(RATE_LIMITED_MAX),
            avoids_previous_hosts,
            avoids_canaries,
            host_selection_attempts: u32::try_from(policy.host_selection_retry_max_attempts)
                .unwrap_or(0),
        })
    }
}

impl RetryState {
    /// The retries of a request by its route's policy and its own headers (if it has any), which are taken away. `None` without
    /// any.
    pub(crate) fn new(
        policy: Option<&Arc<RetryPolicy>>,
        headers: &mut RequestHeaders,
        says_how: bool,
    ) -> Option<Self> {
        let mut take = |name| says_how.then(|| headers.map.remove(name)).flatten();
        let asked = [&names::X_ENVOY_RETRY_ON, &names::X_ENVOY_RETRY_GRPC_ON]
            .into_iter()
            .filter_map(&mut take)
            .filter_map(|value| value.to_str().ok().map(RetryOn::parse))
            .fold(RetryOn::default(), |all, on| RetryOn(all.0 | on.0));
        let retries =
            take(&names::X_ENVOY_MAX_RETRIES).and_then(|value| value.to_str().ok()?.parse().ok());
        let status_codes = list(take(&names::X_ENVOY_RETRIABLE_STATUS_CODES).as_ref());
        let header_names = list(take(&names::X_ENVOY_RETRIABLE_HEADER_NAMES).as_ref());
        take(&names::X_ENVOY_HEDGE_ON_PER_TRY_TIMEOUT);

        let applies = |policy: &&Arc<RetryPolicy>| {
            policy.request_headers.is_empty()
                || policy
                    .request_headers
                    .iter()
                    .any(|header| header.matches(headers))
        };
        let policy = policy.filter(applies);
        let retry_on = RetryOn(policy.map_or(0, |policy| policy.retry_on.0) | asked.0);
        if retry_on == RetryOn::default() {
            return None;
        }
        Some(RetryState {
            retry_on,
            // QUIRK: the header may raise the number of retries above the route's.
            remaining: retries.unwrap_or_else(|| policy.map_or(1, |policy| policy.retries)),
            attempt: 0,
            status_codes,
            header_names,
            policy: policy.cloned(),
        })
    }

    /// The policy behind it.
    pub(crate) fn policy(&self) -> Option<&RetryPolicy> {
        self.policy.as_deref()
    }

    /// Whether to try again. Uses up an attempt when the answer is yes.
    pub(crate) fn decide(&mut self, outcome: Outcome<'_>) -> RetryDecision {
        if !self.is_retriable(outcome) {
            return RetryDecision::No;
        }
        if self.remaining == 0 {
            return RetryDecision::LimitExceeded;
        }
        self.remaining -= 1;
        if !runtime::current("upstream.use_retry").is_none_or(Fraction::draw) {
            return RetryDecision::No;
        }
        let asked = match outcome {
            Outcome::Headers(_, map) => self.asked_wait(map),
            _ => None,
        };
        let decision = match asked {
            Some(wait) => RetryDecision::AsAsked(wait),
            None => RetryDecision::After(self.back_off()),
        };
        self.attempt += 1;
        decision
    }

    /// Whether an outcome deserves another attempt, however many are left.
    pub(crate) fn is_retriable(&self, outcome: Outcome<'_>) -> bool {
        let on = self.retry_on;
        let counts_as_5xx = on.has(RetryOn::FIVE_XX) || on.has(RetryOn::GATEWAY_ERROR);
        match outcome {
            Outcome::Overflow => false,
            // QUIRK: a hedge needs no condition, only a retry that is left.
            Outcome::SoftTimeout => true,
            Outcome::Headers(status, map) => self.are_headers_retriable(status.as_u16(), map),
            Outcome::PerTryTimeout => counts_as_5xx || on.has(RetryOn::RESET),
            Outcome::ConnectFailure => {
                counts_as_5xx
                    || on.has(RetryOn::RESET)
                    || on.has(RetryOn::RESET_BEFORE_REQUEST)
                    || on.has(RetryOn::CONNECT_FAILURE)
            }
            Outcome::RefusedStream => {
                counts_as_5xx || on.has(RetryOn::RESET) || on.has(RetryOn::REFUSED_STREAM)
            }
            Outcome::Reset { request_sent } => {
                counts_as_5xx
                    || on.has(RetryOn::RESET)
                    || (!request_sent && on.has(RetryOn::RESET_BEFORE_REQUEST))
            }
        }
    }

    fn are_headers_retriable(&self, status: u16, map: &HeaderMap) -> bool {
        let on = self.retry_on;
        if map.contains_key(&names::X_ENVOY_RATELIMITED) {
            return on.has(RetryOn::ENVOY_RATE_LIMITED);
        }
        if on.has(RetryOn::FIVE_XX) && (500..600).contains(&status)
            || on.has(RetryOn::GATEWAY_ERROR) && (502..505).contains(&status)
            || on.has(RetryOn::RETRIABLE_4XX) && status == 409
        {
            return true;
        }
        let policy = self.policy.as_ref();
        if on.has(RetryOn::RETRIABLE_STATUS_CODES)
            && (self.status_codes.contains(&status)
                || policy.is_some_and(|policy| policy.status_codes.contains(&status)))
        {
            return true;
        }
        if on.has(RetryOn::RETRIABLE_HEADERS)
            && (self.header_names.iter().any(|name| map.contains_key(name))
                || policy
                    .is_some_and(|policy| policy.headers.iter().any(|header| header.matches(map))))
        {
            return true;
        }
        let grpc = match text_of(map, &names::GRPC_STATUS) {
            Some("1") => RetryOn::GRPC_CANCELLED,
            Some("4") => RetryOn::GRPC_DEADLINE_EXCEEDED,
            Some("8") => RetryOn::GRPC_RESOURCE_EXHAUSTED,
            Some("13") => RetryOn::GRPC_INTERNAL,
            Some("14") => RetryOn::GRPC_UNAVAILABLE,
            _ => return false,
        };
        on.has(grpc)
    }

    /// Fully jittered exponential back-off.
    fn back_off(&self) -> Duration {
        let policy = self.policy.as_ref();
        let (base, max) = policy.map_or((None, None), |policy| {
            (policy.base_interval, policy.max_interval)
        });
        let base = base.unwrap_or_else(|| {
            let base = runtime::current("upstream.base_retry_backoff_ms");
            base.map_or(BASE_INTERVAL, Duration::from_millis)
        });
        let max = max.unwrap_or(base.saturating_mul(10));
        let ceiling = base.saturating_mul(1 << self.attempt.min(20)).min(max);
        let milliseconds = u64::try_from(ceiling.as_millis())
            .unwrap_or(u64::MAX)
            .max(1);
        Duration::from_millis(rand::rng().random_range(0..milliseconds))
    }

    /// What a rate-limiting upstream asks for in one of the configured headers.
    fn asked_wait(&self, map: &HeaderMap) -> Option<Duration> {
        let policy = self.policy.as_ref()?;
        policy.reset_headers.iter().find_map(|(name, format)| {
            let number: u64 = text_of(map, name)?.trim().parse().ok()?;
            let wait = match format {
                ResetHeaderFormat::Seconds => Duration::from_secs(number),
                ResetHeaderFormat::UnixTimestamp => {
                    let now = SystemTime::now()
                        .duration_since(UNIX_EPOCH)
                        .unwrap_or_default();
                    Duration::from_secs(number).checked_sub(now)?
                }
            };
            (wait <= policy.reset_max).then_some(wait)
        })
    }
}

/// `envoy.retry_priorities.previous_priorities`: the one way to choose another priority that there is.
fn previous_priorities(wire: &wire::retry_policy::RetryPriority) -> Result<usize, Invalid> {
    use wire::retry_policy::retry_priority::ConfigType;
    let Some(ConfigType::TypedConfig(any)) = &wire.config_type else {
        return Err(Invalid::new("it is needed").at("typed_config"));
    };
    if !proto::any::is::<PreviousPrioritiesConfig>(any) {
        return Err(Invalid::unsupported(&format!(
            "retry priority '{}'",
            wire.name
        )));
    }
    let config: PreviousPrioritiesConfig = proto::any::unpack(any).at("typed_config")?;
    usize::try_from(config.update_frequency)
        .ok()
        .filter(|frequency| *frequency > 0)
        .ok_or_else(|| {
            Invalid::new("it must be greater than 0").at("typed_config.update_frequency")
        })
}

fn list<T: std::str::FromStr>(value: Option<&HeaderValue>) -> Vec<T> {
    value
        .and_then(|value| value.to_str().ok())
        .map(|text| {
            text.split(',')
                .filter_map(|item| item.trim().parse().ok())
                .collect()
        })
        .unwrap_or_default()
}
