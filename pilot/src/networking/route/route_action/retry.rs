//! Retries: the route's own, or the mesh's, or today's default.

use prost_types::Duration;
use proto::envoy::config::route::v3::{
    RetryPolicy,
    retry_policy::{
        RetryBackOff, RetryHostPredicate, RetryPriority, retry_host_predicate, retry_priority,
    },
};
use proto::envoy::extensions::retry::{
    host::previous_hosts::v3::PreviousHostsPredicate,
    priority::previous_priorities::v3::PreviousPrioritiesConfig,
};
use proto::istio::networking::v1alpha3::HttpRetry;

use crate::networking::wire::any;

/// Failures after which the request has not been handled.
const DEFAULT_RETRY_ON: &str =
    "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";

/// The policy, or none if there are to be no retries. With a hash key the host must stay the same, so that others are not
/// sought.
pub(super) fn build(
    own: Option<&HttpRetry>,
    mesh: Option<&HttpRetry>,
    is_hashed: bool,
) -> Option<RetryPolicy> {
    let mut policy = RetryPolicy {
        num_retries: Some(2),
        retry_on: DEFAULT_RETRY_ON.to_owned(),
        host_selection_retry_max_attempts: 5,
        ..RetryPolicy::default()
    };
    let mut keeps_hosts = is_hashed;
    if let Some(retries) = own.or(mesh) {
        let attempts = u32::try_from(retries.attempts)
            .ok()
            .filter(|attempts| *attempts > 0)?;
        policy.num_retries = Some(attempts);
        if !retries.retry_on.is_empty() {
            (policy.retry_on, policy.retriable_status_codes) = conditions(&retries.retry_on);
        }
        policy.per_try_timeout = retries.per_try_timeout.filter(is_positive);
        policy.retry_back_off = retries
            .backoff
            .filter(is_positive)
            .map(|base| RetryBackOff {
                base_interval: Some(base),
                max_interval: None,
            });
        keeps_hosts |= retries.retry_ignore_previous_hosts == Some(false);
        if retries.retry_remote_localities == Some(true) {
            policy.retry_priority = Some(RetryPriority {
                name: "envoy.retry_priorities.previous_priorities".to_owned(),
                config_type: Some(retry_priority::ConfigType::TypedConfig(any(
                    &PreviousPrioritiesConfig {
                        update_frequency: 2,
                    },
                ))),
            });
        }
    }
    if keeps_hosts {
        policy.host_selection_retry_max_attempts = 0;
    } else {
        policy.retry_host_predicate = vec![RetryHostPredicate {
            name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
            config_type: Some(retry_host_predicate::ConfigType::TypedConfig(any(
                &PreviousHostsPredicate {},
            ))),
        }];
    }
    Some(policy)
}

/// `5xx,503` as Envoy's list and codes: numbers are statuses.
fn conditions(retry_on: &str) -> (String, Vec<u32>) {
    let (mut names, mut codes) = (Vec::new(), Vec::new());
    for token in retry_on
        .split(',')
        .map(str::trim)
        .filter(|token| !token.is_empty())
    {
        match token.parse::<u32>() {
            Ok(code) => codes.push(code),
            Err(_) => names.push(token),
        }
    }
    if !codes.is_empty() && !names.contains(&"retriable-status-codes") {
        names.push("retriable-status-codes");
    }
    (names.join(","), codes)
}

fn is_positive(duration: &Duration) -> bool {
    duration.seconds > 0 || duration.nanos > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_retry_on_are_status_codes() {
        assert_eq!(
            conditions("5xx, 503"),
            ("5xx,retriable-status-codes".to_owned(), vec![503])
        );
        assert_eq!(
            conditions("connect-failure"),
            ("connect-failure".to_owned(), vec![])
        );
    }

    #[test]
    fn zero_attempts_turn_retries_off() {
        assert_eq!(build(Some(&HttpRetry::default()), None, false), None);
        assert_eq!(build(None, None, false).unwrap().num_retries, Some(2));
        assert!(
            build(None, None, true)
                .unwrap()
                .retry_host_predicate
                .is_empty()
        );
    }
}
