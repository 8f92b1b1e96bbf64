//! Both forms of a policy, and what is refused.

use super::*;
use std::time::Duration;

fn balancing(text: &str) -> Result<Balancing, Invalid> {
    let wire: Wire = proto::yaml::from_str(text).unwrap();
    Balancing::of(&wire, &Discovery::Static)
}

fn typed(name: &str, fields: &str) -> String {
    let message: String = name
        .split('_')
        .map(|word| {
            let (first, rest) = word.split_at(1);
            first.to_uppercase() + rest
        })
        .collect();
    format!(
        "{{policies: [{{typed_extension_config: {{name: {name}, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.load_balancing_policies.{name}.v3.{message}{fields}}}}}}}]}}"
    )
}

#[test]
fn both_forms_mean_the_same() {
    for (older, name, fields) in [
        ("lb_policy: ROUND_ROBIN", "round_robin", ""),
        ("lb_policy: RANDOM", "random", ""),
        (
            "lb_policy: LEAST_REQUEST, least_request_lb_config: {choice_count: 5}",
            "least_request",
            ", choice_count: 5",
        ),
        (
            "lb_policy: RING_HASH, ring_hash_lb_config: {minimum_ring_size: 10}",
            "ring_hash",
            ", minimum_ring_size: 10",
        ),
        (
            "lb_policy: MAGLEV, maglev_lb_config: {table_size: 11}",
            "maglev",
            ", table_size: 11",
        ),
    ] {
        let older = balancing(&format!("{{name: a, {older}}}")).unwrap();
        let policy = typed(name, fields);
        let newer = balancing(&format!("{{name: a, load_balancing_policy: {policy}}}")).unwrap();
        assert_eq!(older.algorithm, newer.algorithm, "{name}");
    }
}

#[test]
fn policies_nest() {
    let inner = typed("least_request", "");
    let locality = typed(
        "wrr_locality",
        &format!(", endpoint_picking_policy: {inner}"),
    );
    let outer = typed(
        "subset",
        &format!(
            ", fallback_policy: ANY_ENDPOINT, subset_selectors: [{{keys: [v]}}], subset_lb_policy: {locality}"
        ),
    );
    let balancing = balancing(&format!("{{name: a, load_balancing_policy: {outer}}}")).unwrap();
    assert!(matches!(
        balancing.algorithm,
        LbPolicy::LeastRequest {
            choices: Some(2),
            ..
        }
    ));
    assert_eq!(balancing.locality, LocalityRule::Weighted);
    assert!(balancing.subsets.is_some());
}

#[test]
fn an_unknown_policy_is_skipped_and_none_known_is_refused() {
    let unknown = "{typed_extension_config: {name: odd, typed_config: {\"@type\": type.googleapis.com/envoy.config.core.v3.Locality}}}";
    let known = typed("random", "");
    let both = known.replacen('[', &format!("[{unknown}, "), 1);
    let first = balancing(&format!("{{name: a, load_balancing_policy: {both}}}")).unwrap();
    assert_eq!(first.algorithm, LbPolicy::Random);
    let error = balancing(&format!(
        "{{name: a, load_balancing_policy: {{policies: [{unknown}]}}}}"
    ))
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "load_balancing_policy.policies: no supported policy among [odd]"
    );
}

#[test]
fn a_new_host_gets_a_growing_share() {
    let slow = SlowStart {
        window: Duration::from_secs(10),
        aggression: 1.0,
        least: 0.1,
    };
    let share = |seconds| (slow.share(Duration::from_secs(seconds)) * 100.0).round();
    assert!((share(0) - 10.0).abs() < 0.1);
    assert!((share(5) - 50.0).abs() < 0.1);
    assert!((share(10) - 100.0).abs() < 0.1);
}
