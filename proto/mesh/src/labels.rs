//! Labels and what selects by them.

use std::collections::BTreeMap;

use proto::istio::mesh::v1alpha1::{LabelSelector, LabelSelectorRequirement};

/// Labels of a workload, sorted.
pub type Labels = BTreeMap<String, String>;

/// True when `labels` has every pair of `selector`; an empty selector selects everything.
pub fn selects<'a, I>(selector: I, labels: &Labels) -> bool
where
    I: IntoIterator<Item = (&'a String, &'a String)>,
{
    selector
        .into_iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

/// True when `labels` meets a Kubernetes selector: every pair and every requirement. An unknown operator meets nothing.
#[must_use]
pub fn meets(selector: &LabelSelector, labels: &Labels) -> bool {
    selects(&selector.match_labels, labels)
        && selector
            .match_expressions
            .iter()
            .all(|requirement| meets_requirement(requirement, labels))
}

fn meets_requirement(requirement: &LabelSelectorRequirement, labels: &Labels) -> bool {
    let value = labels.get(&requirement.key);
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|value| requirement.values.contains(value)),
        "NotIn" => !value.is_some_and(|value| requirement.values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => false,
    }
}

/// Checks a label's key as Kubernetes does: `[prefix/]name`, the prefix a DNS name, the name at most 63 characters.
///
/// # Errors
/// What is wrong with it.
pub fn check_key(key: &str) -> Result<(), String> {
    let (prefix, name) = key
        .split_once('/')
        .map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let prefix_fits = prefix.is_none_or(is_dns_subdomain);
    if prefix_fits && name.len() <= 63 && is_label_text(name) {
        return Ok(());
    }
    Err(format!(
        "{key:?} is no label key: give letters, digits, `-`, `_` or `.`, at most 63, perhaps after a DNS name and `/`"
    ))
}

/// Checks a label's value: empty, or letters, digits, `-`, `_`, `.`, framed by letters or digits. QUIRK: as in Istio, its length
/// is not limited (Kubernetes allows 63 characters).
///
/// # Errors
/// What is wrong with it.
pub fn check_value(value: &str) -> Result<(), String> {
    if value.is_empty() || is_label_text(value) {
        return Ok(());
    }
    Err(format!(
        "{value:?} is no label value: give letters, digits, `-`, `_` or `.`, framed by letters or digits"
    ))
}

fn is_label_text(text: &str) -> bool {
    let bytes = text.as_bytes();
    let framed = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    framed(bytes.first())
        && framed(bytes.last())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

/// True for a DNS label: 1 to 63 letters, digits and `-`, framed by letters or digits.
#[must_use]
pub fn is_dns_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let framed = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    text.len() <= 63
        && framed(bytes.first())
        && framed(bytes.last())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn a_selector_wants_all_its_pairs() {
        let workload = labels(&[("app", "reviews"), ("version", "v1")]);
        assert!(selects(&labels(&[]), &workload));
        assert!(selects(&labels(&[("app", "reviews")]), &workload));
        assert!(!selects(&labels(&[("app", "ratings")]), &workload));
        assert!(!selects(&labels(&[("team", "a")]), &workload));
    }

    #[test]
    fn requirements_work_as_in_kubernetes() {
        let workload = labels(&[("app", "reviews")]);
        for (operator, values, want) in [
            ("In", &["reviews"][..], true),
            ("In", &["ratings"], false),
            ("NotIn", &["reviews"], false),
            ("NotIn", &["ratings"], true),
            ("Exists", &[], true),
            ("DoesNotExist", &[], false),
            ("Near", &[], false),
        ] {
            let requirement = LabelSelectorRequirement {
                key: "app".into(),
                operator: operator.into(),
                values: values.iter().map(ToString::to_string).collect(),
            };
            let selector = LabelSelector {
                match_expressions: vec![requirement],
                ..LabelSelector::default()
            };
            assert_eq!(meets(&selector, &workload), want, "{operator} {values:?}");
        }
    }

    #[test]
    fn keys_and_values_are_those_of_kubernetes() {
        for key in ["app", "app.kubernetes.io/name", "a_b.c-d", "X"] {
            assert!(check_key(key).is_ok(), "{key}");
        }
        for key in ["", "/", ".", "a/", "/a", "a/b/c", "-a", &"a".repeat(64)] {
            assert!(check_key(key).is_err(), "{key}");
        }
        assert!(check_value("").is_ok() && check_value("v1.2_3-x").is_ok());
        assert!(
            check_value("~").is_err() && check_value("a*").is_err() && check_value("-").is_err()
        );
    }
}
