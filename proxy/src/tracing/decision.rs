//! Whether a request is traced. The answer travels in `x-request-id`: the fifteenth character of the UUID, which says its
//! version, tells the next proxies why (`4` not, `9` sampled, `a` the service asked, `b` the client asked).

use http::HeaderValue;
use rand::RngExt as _;

use crate::http::headers::{RequestHeaders, names};
use crate::runtime;

use super::{Sampling, TracingStats};

/// Where the reason is.
const PLACE: usize = 14;

/// Why a request is traced, or that it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Reason {
    /// Not at all.
    #[default]
    NotTraceable,
    /// It is a health check.
    HealthCheck,
    /// Drawn.
    Sampling,
    /// A service asked for it.
    ServiceForced,
    /// The client asked for it.
    ClientForced,
}

impl Reason {
    /// True when a span is to be sent.
    pub(crate) fn is_traced(self) -> bool {
        matches!(
            self,
            Reason::Sampling | Reason::ServiceForced | Reason::ClientForced
        )
    }

    fn of(id: &str) -> Self {
        match id.as_bytes().get(PLACE) {
            Some(b'9') => Reason::Sampling,
            Some(b'a') => Reason::ServiceForced,
            Some(b'b') => Reason::ClientForced,
            _ => Reason::NotTraceable,
        }
    }

    fn letter(self) -> u8 {
        match self {
            Reason::NotTraceable | Reason::HealthCheck => b'4',
            Reason::Sampling => b'9',
            Reason::ServiceForced => b'a',
            Reason::ClientForced => b'b',
        }
    }

    pub(super) fn count(self, stats: &TracingStats) {
        match self {
            Reason::NotTraceable => stats.not_traceable.inc(),
            Reason::HealthCheck => stats.health_check.inc(),
            Reason::Sampling => stats.random_sampling.inc(),
            Reason::ServiceForced => stats.service_forced.inc(),
            Reason::ClientForced => stats.client_enabled.inc(),
        }
    }
}

/// Decides for a request. `packs`: the reason is written into the request's id; `by_id`: the id decides the draw, so that all
/// proxies on the way draw the same.
pub(super) fn decide(
    headers: &mut RequestHeaders,
    sampling: Sampling,
    packs: bool,
    by_id: bool,
) -> Reason {
    let Some(id) = headers.text(&names::X_REQUEST_ID) else {
        return Reason::NotTraceable;
    };
    let Some(number) = id.get(..8).and_then(|h| u64::from_str_radix(h, 16).ok()) else {
        return Reason::NotTraceable;
    };
    let draw = if by_id {
        number % 10_000
    } else {
        rand::rng().random_range(0..10_000)
    };
    let before = Reason::of(id);
    let mut reason = before;
    if reason == Reason::NotTraceable {
        let map = &headers.map;
        let now = |key, configured| runtime::current(key).unwrap_or(configured);
        if map.contains_key(&names::X_CLIENT_TRACE_ID)
            && now("tracing.client_enabled", sampling.client).holds(draw)
        {
            reason = Reason::ClientForced;
        } else if map.contains_key(&names::X_ENVOY_FORCE_TRACE) {
            reason = Reason::ServiceForced;
        } else if now("tracing.random_sampling", sampling.random).holds(draw) {
            reason = Reason::Sampling;
        }
    }
    let overall = runtime::current("tracing.global_enabled").unwrap_or(sampling.overall);
    if reason != Reason::NotTraceable && !overall.holds(draw) {
        reason = Reason::NotTraceable;
    }
    if packs && reason != before {
        pack(headers, reason);
    }
    reason
}

/// Takes the reason out of an id that came from outside.
pub(crate) fn clear_reason(headers: &mut RequestHeaders) {
    pack(headers, Reason::NotTraceable);
}

fn pack(headers: &mut RequestHeaders, reason: Reason) {
    let Some(id) = headers.map.get_mut(&names::X_REQUEST_ID) else {
        return;
    };
    if id.len() != 36 {
        return;
    }
    let mut bytes = id.as_bytes().to_vec();
    bytes[PLACE] = reason.letter();
    if let Ok(packed) = HeaderValue::from_bytes(&bytes) {
        *id = packed;
    }
}
