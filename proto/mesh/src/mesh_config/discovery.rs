//! Which namespaces the mesh follows: `discoverySelectors`.

use std::collections::BTreeMap;

use proto::istio::mesh::v1alpha1::{LabelSelector, LabelSelectorRequirement};

/// True when one of `selectors` chooses a namespace with these labels, or there are none.
#[must_use]
pub fn is_followed(selectors: &[LabelSelector], labels: &BTreeMap<String, String>) -> bool {
    selectors.is_empty() || selectors.iter().any(|selector| selects(selector, labels))
}

fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let mut wanted = selector.match_labels.iter();
    let mut expressions = selector.match_expressions.iter();
    wanted.all(|(key, value)| labels.get(key) == Some(value))
        && expressions.all(|expression| meets(expression, labels))
}

fn meets(expression: &LabelSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let value = labels.get(&expression.key);
    let is_listed = value.is_some_and(|value| expression.values.contains(value));
    match expression.operator.as_str() {
        "In" => is_listed,
        "NotIn" => !is_listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        // The settings' own check has refused everything else.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_choose_namespaces_by_labels() {
        let labels = BTreeMap::from([("team".to_owned(), "a".to_owned())]);
        let expression = |operator: &str, values: &[&str]| {
            vec![LabelSelector {
                match_expressions: vec![LabelSelectorRequirement {
                    key: "team".to_owned(),
                    operator: operator.to_owned(),
                    values: values.iter().map(ToString::to_string).collect(),
                }],
                ..LabelSelector::default()
            }]
        };
        assert!(is_followed(&[], &BTreeMap::new()));
        let cases = [
            (expression("In", &["a", "b"]), true),
            (expression("In", &["b"]), false),
            (expression("NotIn", &["a"]), false),
            (expression("NotIn", &["b"]), true),
            (expression("Exists", &[]), true),
            (expression("DoesNotExist", &[]), false),
        ];
        for (selectors, wanted) in cases {
            assert_eq!(is_followed(&selectors, &labels), wanted, "{selectors:?}");
        }
    }
}
