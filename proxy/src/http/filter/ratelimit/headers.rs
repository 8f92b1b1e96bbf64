//! Headers by which answers of the rate limiter are told.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use proto::envoy::config::core::v3 as core;
use proto::envoy::service::ratelimit::v3 as rls;
use rls::rate_limit_response::rate_limit::Unit;

use crate::http::headers::number;

static LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
static REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
static RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Those that can be sent.
pub(super) fn header_map(headers: &[core::HeaderValue]) -> HeaderMap {
    let pairs = headers.iter().filter_map(|header| {
        let name = HeaderName::try_from(&header.key).ok()?;
        let bytes = if header.raw_value.is_empty() {
            header.value.as_bytes()
        } else {
            &header.raw_value
        };
        Some((name, HeaderValue::from_bytes(bytes).ok()?))
    });
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(name, value);
    }
    map
}

/// The limit that is closest to its end, and all the others as its policy.
pub(super) fn tell_limits(
    statuses: &[rls::rate_limit_response::DescriptorStatus],
    map: &mut HeaderMap,
) {
    let mut policy = String::new();
    let mut closest: Option<&rls::rate_limit_response::DescriptorStatus> = None;
    for status in statuses {
        let Some(limit) = &status.current_limit else {
            continue;
        };
        if closest.is_none_or(|closest| status.limit_remaining < closest.limit_remaining) {
            closest = Some(status);
        }
        let Some(window) = seconds(limit.unit()) else {
            continue;
        };
        policy.push_str(&format!(", {};w={window}", limit.requests_per_unit));
        if !limit.name.is_empty() {
            policy.push_str(&format!(";name=\"{}\"", limit.name));
        }
    }
    let Some((closest, limit)) = closest.and_then(|c| Some((c, c.current_limit.as_ref()?))) else {
        return;
    };
    let text = format!("{}{policy}", limit.requests_per_unit);
    if let Ok(value) = HeaderValue::try_from(text) {
        map.append(LIMIT.clone(), value);
    }
    map.append(
        REMAINING.clone(),
        number(u64::from(closest.limit_remaining)),
    );
    let reset = closest.duration_until_reset.unwrap_or_default().seconds;
    map.append(RESET.clone(), number(u64::try_from(reset).unwrap_or(0)));
}

fn seconds(unit: Unit) -> Option<u64> {
    Some(match unit {
        Unit::Second => 1,
        Unit::Minute => 60,
        Unit::Hour => 3600,
        Unit::Day => 86_400,
        Unit::Week => 604_800,
        Unit::Month => 2_592_000,
        Unit::Year => 31_536_000,
        Unit::Unknown => return None,
    })
}
