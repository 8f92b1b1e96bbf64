//! Whether a pod is injected. The order of the checks is Istio's: what the pod needs, where it lives, what it says itself,
//! what the selectors say, and last the policy.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::Value;

use crate::annotations::INJECT;
use crate::config::{InjectConfig, Policy};

/// Namespaces that are never injected: the cluster itself lives there.
const IGNORED_NAMESPACES: &[&str] = &["kube-system", "kube-public"];

/// The decision about a pod, with its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Inject it.
    Inject,
    /// Leave it alone, because.
    Skip(&'static str),
}

/// Decides about `pod` in `namespace`.
#[must_use]
pub fn decide(config: &InjectConfig, pod: &Value, namespace: &str) -> Decision {
    if uses_host_network(pod) {
        return Decision::Skip("it uses the host's network");
    }
    if IGNORED_NAMESPACES.contains(&namespace) {
        return Decision::Skip("its namespace is the cluster's own");
    }
    let labels = &pod["metadata"]["labels"];
    let matches_any =
        |selectors: &[LabelSelector]| selectors.iter().any(|selector| matches(selector, labels));
    match (wish(pod), config.policy) {
        (Some(true), _) => Decision::Inject,
        (Some(false), _) => Decision::Skip("its annotation sidecar.istio.io/inject says no"),
        (None, _) if matches_any(&config.never_inject_selector) => {
            Decision::Skip("neverInjectSelector selects it")
        }
        (None, _) if matches_any(&config.always_inject_selector) => Decision::Inject,
        (None, Policy::Enabled) => Decision::Inject,
        (None, Policy::Disabled) => {
            Decision::Skip("the policy is disabled and the pod does not ask for it")
        }
    }
}

/// True for a pod without a network namespace of its own: interception there would hit the whole node.
#[must_use]
pub fn uses_host_network(pod: &Value) -> bool {
    pod["spec"]["hostNetwork"] == true
}

/// What the pod says itself: by label, as today, or by annotation, as in 1.4.
fn wish(pod: &Value) -> Option<bool> {
    let metadata = &pod["metadata"];
    let text = [
        &metadata["labels"][INJECT],
        &metadata["annotations"][INJECT],
    ]
    .into_iter()
    .find_map(Value::as_str)?;
    match text.to_ascii_lowercase().as_str() {
        "" => None,
        "y" | "yes" | "true" | "on" => Some(true),
        _ => Some(false),
    }
}

/// Whether a selector selects these labels. An empty selector selects nothing here, lest it select every pod by accident.
fn matches(selector: &LabelSelector, labels: &Value) -> bool {
    let wanted = selector.match_labels.iter().flatten();
    let expressions = selector.match_expressions.iter().flatten();
    if wanted.clone().next().is_none() && expressions.clone().next().is_none() {
        return false;
    }
    wanted
        .into_iter()
        .all(|(key, value)| labels[key] == value.as_str())
        && expressions.into_iter().all(|expression| {
            let label = labels[&expression.key].as_str();
            let among = label.is_some_and(|label| {
                expression
                    .values
                    .iter()
                    .flatten()
                    .any(|value| value == label)
            });
            match expression.operator.as_str() {
                "In" => among,
                "NotIn" => !among,
                "Exists" => label.is_some(),
                "DoesNotExist" => label.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(policy: Policy, always: Value, never: Value) -> InjectConfig {
        InjectConfig {
            policy,
            always_inject_selector: serde_json::from_value(always).unwrap(),
            never_inject_selector: serde_json::from_value(never).unwrap(),
            ..InjectConfig::default()
        }
    }

    #[test]
    fn the_pods_own_word_beats_selectors_and_policy() {
        let job = json!([{"matchExpressions": [{"key": "job", "operator": "Exists"}]}]);
        let cases = [
            (Policy::Enabled, json!({}), true),
            (
                Policy::Enabled,
                json!({"annotations": {INJECT: "false"}}),
                false,
            ),
            (Policy::Enabled, json!({"annotations": {INJECT: ""}}), true),
            (Policy::Enabled, json!({"labels": {"job": "x"}}), false),
            (
                Policy::Enabled,
                json!({"labels": {"job": "x"}, "annotations": {INJECT: "On"}}),
                true,
            ),
            (Policy::Disabled, json!({}), false),
            (
                Policy::Disabled,
                json!({"annotations": {INJECT: "true"}}),
                true,
            ),
            (Policy::Disabled, json!({"labels": {INJECT: "true"}}), true),
        ];
        for (policy, metadata, want) in cases {
            let config = config(policy, json!([]), job.clone());
            let decision = decide(&config, &json!({"metadata": metadata}), "default");
            assert_eq!(
                decision == Decision::Inject,
                want,
                "{policy:?} {metadata}: {decision:?}"
            );
        }
    }

    #[test]
    fn selectors_match_as_in_kubernetes_but_the_empty_one() {
        let pod = json!({"metadata": {"labels": {"app": "a", "tier": "web"}}});
        for (selector, want) in [
            (json!({"matchLabels": {"app": "a"}}), true),
            (json!({"matchLabels": {"app": "b"}}), false),
            (
                json!({"matchExpressions": [{"key": "tier", "operator": "In", "values": ["web", "api"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["web"]}]}),
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "none", "operator": "DoesNotExist"}]}),
                true,
            ),
            (json!({}), false),
        ] {
            let config = config(Policy::Disabled, json!([selector]), json!([]));
            assert_eq!(
                decide(&config, &pod, "default") == Decision::Inject,
                want,
                "{selector}"
            );
        }
    }

    #[test]
    fn the_cluster_itself_is_left_alone() {
        let config = config(Policy::Enabled, json!([]), json!([]));
        let asks =
            json!({"metadata": {"annotations": {INJECT: "true"}}, "spec": {"hostNetwork": true}});
        assert!(matches!(
            decide(&config, &asks, "default"),
            Decision::Skip(_)
        ));
        assert!(matches!(
            decide(&config, &json!({}), "kube-system"),
            Decision::Skip(_)
        ));
    }
}
