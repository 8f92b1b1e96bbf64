//! Headers that only clients within the mesh may send.

use http::{HeaderMap, HeaderName};

use crate::http::headers::names;

/// Headers by which a client could steer the proxy.
static STEERING: [&HeaderName; 15] = [
    &names::X_ENVOY_INTERNAL,
    &names::X_ENVOY_RETRIABLE_STATUS_CODES,
    &names::X_ENVOY_RETRIABLE_HEADER_NAMES,
    &names::X_ENVOY_RETRY_ON,
    &names::X_ENVOY_RETRY_GRPC_ON,
    &names::X_ENVOY_MAX_RETRIES,
    &names::X_ENVOY_UPSTREAM_ALT_STAT_NAME,
    &names::X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS,
    &names::X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS,
    &names::X_ENVOY_UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE,
    &names::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS,
    &names::X_ENVOY_FORCE_TRACE,
    &names::X_ENVOY_IP_TAGS,
    &names::X_ENVOY_ORIGINAL_URL,
    &names::X_ENVOY_HEDGE_ON_PER_TRY_TIMEOUT,
];

/// Headers by which a client of an edge could pose as a proxy.
static POSING: [&HeaderName; 4] = [
    &names::X_ENVOY_DECORATOR_OPERATION,
    &names::X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER,
    &names::X_ENVOY_DOWNSTREAM_SERVICE_NODE,
    &names::X_ENVOY_ORIGINAL_PATH,
];

/// Removes what only an inner client may say.
pub(super) fn clean(map: &mut HeaderMap, is_edge: bool, internal_only: &[HeaderName]) {
    let is_unwanted = |name: &&HeaderName| {
        name.as_str().starts_with("x-envoy-")
            && (STEERING.contains(name) || is_edge && POSING.contains(name))
    };
    // Hardly any request has one or two: looking over its names is cheaper than as many lookups as there are such headers.
    while let Some(name) = map.keys().find(is_unwanted).cloned() {
        map.remove(name);
    }
    for name in internal_only {
        map.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    /// Which of these an outer client's request keeps.
    fn kept(names: &[&HeaderName], is_edge: bool, internal_only: &[HeaderName]) -> Vec<String> {
        let value = HeaderValue::from_static("v");
        let mut map = HeaderMap::new();
        for name in names {
            map.append(*name, value.clone());
            map.append(*name, value.clone());
        }
        clean(&mut map, is_edge, internal_only);
        map.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn nothing_that_steers_or_poses_is_kept() {
        assert!(kept(&STEERING, false, &[]).is_empty());
        assert_eq!(kept(&POSING, false, &[]).len(), POSING.len());
        let all: Vec<_> = STEERING.into_iter().chain(POSING).collect();
        assert!(kept(&all, true, &[]).is_empty());
    }

    #[test]
    fn what_is_unknown_or_of_others_stays_unless_it_is_named() {
        let others = ["x-envoy-own", "x-request-id"].map(HeaderName::from_static);
        let names: Vec<_> = others.iter().chain([STEERING[0]]).collect();
        assert_eq!(kept(&names, true, &[]), ["x-envoy-own", "x-request-id"]);
        assert_eq!(kept(&names, true, &others[..1]), ["x-request-id"]);
    }
}
