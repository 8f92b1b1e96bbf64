//! Timeouts of one request: the route's, overridden by `x-envoy-upstream-rq-*` headers and `grpc-timeout`.

use std::time::Duration;

use proto::envoy::config::route::v3 as wire;

use crate::http::headers::{RequestHeaders, names, number};
use crate::invalid::{At as _, Invalid};

use super::RetryPolicy;

/// Envoy's timeout of a route that names none.
const DEFAULT: Duration = Duration::from_secs(15);

/// The timeouts of a route. `None` is no limit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RouteTimeouts {
    global: Option<Duration>,
    /// Without a byte in either direction; `Some(ZERO)` switches the connection manager's off.
    pub(super) idle: Option<Duration>,
    /// For the rest of a response whose end has come; `Some(ZERO)` switches the connection manager's off.
    pub(super) flush: Option<Duration>,
    max_stream_duration: Option<Duration>,
    /// The most that `grpc-timeout` may ask for; `Some(ZERO)` is no limit.
    grpc_header_max: Option<Duration>,
    grpc_header_offset: Duration,
    /// `max_stream_duration` is there: it limits the stream, and nothing limits the response alone.
    has_stream_limits: bool,
}

/// The timeouts of one request. `None` is no limit.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Timeouts {
    /// For the whole upstream exchange, retries included.
    pub(crate) global: Option<Duration>,
    /// For one attempt.
    pub(crate) per_try: Option<Duration>,
    /// For one attempt without a byte.
    pub(crate) per_try_idle: Option<Duration>,
    /// For the whole stream.
    pub(crate) max_stream_duration: Option<Duration>,
}

impl TryFrom<&wire::RouteAction> for RouteTimeouts {
    type Error = Invalid;

    #[allow(deprecated, reason = "control planes still send max_grpc_timeout")]
    fn try_from(action: &wire::RouteAction) -> Result<Self, Invalid> {
        let stream = action.max_stream_duration.as_ref();
        let from_stream = stream.and_then(|stream| stream.grpc_timeout_header_max.as_ref());
        let offset = stream
            .and_then(|stream| stream.grpc_timeout_header_offset.as_ref())
            .or(action.grpc_timeout_offset.as_ref());
        Ok(RouteTimeouts {
            global: match duration(action.timeout.as_ref()).at("timeout")? {
                None => Some(DEFAULT),
                Some(limit) => non_zero(limit),
            },
            idle: duration(action.idle_timeout.as_ref()).at("idle_timeout")?,
            flush: duration(action.flush_timeout.as_ref()).at("flush_timeout")?,
            max_stream_duration: duration(
                stream.and_then(|stream| stream.max_stream_duration.as_ref()),
            )
            .at("max_stream_duration")?
            .and_then(non_zero),
            grpc_header_max: duration(from_stream.or(action.max_grpc_timeout.as_ref()))
                .at("max_grpc_timeout")?,
            grpc_header_offset: duration(offset)
                .at("grpc_timeout_offset")?
                .unwrap_or_default(),
            has_stream_limits: stream.is_some(),
        })
    }
}

impl RouteTimeouts {
    /// The timeouts of a request; takes the headers that set them (if it has any) away and says the result to the upstream.
    pub(crate) fn of_request(
        &self,
        headers: &mut RequestHeaders,
        retry: Option<&RetryPolicy>,
        says_how: bool,
        sets_headers: bool,
    ) -> Timeouts {
        let mut timeouts = Timeouts {
            global: self.global.filter(|_| !self.has_stream_limits),
            per_try: retry.and_then(|retry| retry.per_try_timeout),
            per_try_idle: retry.and_then(|retry| retry.per_try_idle_timeout),
            max_stream_duration: self.max_stream_duration,
        };
        self.apply_grpc(headers, &mut timeouts);
        let mut take = |name| says_how.then(|| take_milliseconds(headers, name)).flatten();
        if let Some(limit) = take(&names::X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS) {
            timeouts.global = non_zero(limit);
        }
        if let Some(limit) = take(&names::X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS) {
            timeouts.per_try = non_zero(limit);
        }
        if let (Some(per_try), Some(global)) = (timeouts.per_try, timeouts.global)
            && per_try >= global
        {
            timeouts.per_try = None;
        }
        let expected = timeouts.per_try.or(timeouts.global);
        if let Some(expected) = expected.filter(|_| sets_headers) {
            let milliseconds = u64::try_from(expected.as_millis()).unwrap_or(u64::MAX);
            headers.map.insert(
                names::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS.clone(),
                number(milliseconds),
            );
        }
        // Without a limit the client's own header goes on.
        if let Some(expected) = expected
            && self.grpc_header_max.is_some()
            && !self.has_stream_limits
            && headers.is_grpc()
        {
            set_grpc_timeout(headers, expected);
        }
        timeouts
    }

    fn apply_grpc(&self, headers: &mut RequestHeaders, timeouts: &mut Timeouts) {
        let Some(limit) = self.grpc_header_max else {
            return;
        };
        let asked = headers
            .text(&names::GRPC_TIMEOUT)
            .and_then(parse_grpc_timeout);
        let offset = self.grpc_header_offset;
        if self.has_stream_limits {
            // Without the header the call has no deadline of its own.
            let Some(mut asked) = asked else {
                return;
            };
            if !limit.is_zero() {
                asked = asked.min(limit);
            }
            let effective = asked.saturating_sub(offset);
            timeouts.max_stream_duration = Some(effective);
            set_grpc_timeout(headers, effective);
        } else if headers.is_grpc() {
            // Here zero is for ever.
            let mut effective = asked.unwrap_or_default();
            if offset < effective {
                effective -= offset;
            }
            if !limit.is_zero() && (effective.is_zero() || effective > limit) {
                effective = limit;
            }
            timeouts.global = non_zero(effective);
        }
    }
}

/// `grpc-timeout`: up to eight digits and a unit.
fn parse_grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

/// Tells the upstream how long a call may take: up to eight digits of the finest unit from milliseconds on.
fn set_grpc_timeout(headers: &mut RequestHeaders, limit: Duration) {
    let most = 99_999_999;
    let (mut count, mut unit) = (limit.as_millis(), 'm');
    for (coarser, divisor) in [('S', 1000), ('M', 60), ('H', 60)] {
        if count > most {
            (count, unit) = (count / divisor, coarser);
        }
    }
    let text = format!("{}{unit}", count.min(most));
    if let Ok(value) = http::HeaderValue::try_from(text) {
        headers.map.insert(names::GRPC_TIMEOUT.clone(), value);
    }
}

/// A duration that must not be negative.
pub(crate) fn duration(wire: Option<&prost_types::Duration>) -> Result<Option<Duration>, Invalid> {
    wire.map(|wire| {
        Duration::try_from(*wire).map_err(|_| Invalid::new("a duration must not be negative"))
    })
    .transpose()
}

/// `None` for zero, which means no limit.
pub(crate) fn non_zero(duration: Duration) -> Option<Duration> {
    (!duration.is_zero()).then_some(duration)
}

fn take_milliseconds(headers: &mut RequestHeaders, name: &http::HeaderName) -> Option<Duration> {
    let value = headers.map.remove(name)?;
    value.to_str().ok()?.parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeout_units() {
        assert_eq!(parse_grpc_timeout("10S"), Some(Duration::from_secs(10)));
        assert_eq!(parse_grpc_timeout("5m"), Some(Duration::from_millis(5)));
        assert_eq!(parse_grpc_timeout("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(parse_grpc_timeout("123456789S"), None);
        assert_eq!(parse_grpc_timeout("S"), None);
        assert_eq!(parse_grpc_timeout(""), None);
        assert_eq!(parse_grpc_timeout("1ü"), None);
    }

    #[test]
    fn fuzz_grpc_timeouts() {
        crate::fuzz::fuzz_text("grpc_timeouts", |text| {
            let Some(limit) = parse_grpc_timeout(text) else {
                return;
            };
            // It is passed on as no more than it was, of the precision that is kept.
            let mut headers = crate::stream_info::testing::request("h", "/", &[]);
            set_grpc_timeout(&mut headers, limit);
            let passed = headers.text(&names::GRPC_TIMEOUT).unwrap();
            assert!(
                parse_grpc_timeout(passed).unwrap() <= limit,
                "{text} {passed}"
            );
        });
    }
}
