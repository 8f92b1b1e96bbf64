//! Two outcomes side by side: every place where they differ, less those that the case names with a reason. A statistic that is
//! 0 on one side and not shown on the other is no difference.

use crate::case::{Case, Difference, Group};
use regex::Regex;
use serde_json::Value;

/// How a value that is not there is shown.
const NOTHING: &str = "–";

/// One place where the outcomes differ.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Diff {
    /// Where (`client[0][1].headers.via`).
    pub at: String,
    /// What Envoy's outcome has there.
    pub envoy: String,
    /// What ours has.
    pub ours: String,
}

/// What comparing a case came to.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Verdict {
    /// Differences that nobody explained.
    pub unexplained: Vec<Diff>,
    /// Those that the case explains, with the reason.
    pub explained: Vec<(Diff, String)>,
    /// Explanations that fit nothing any more: they would hide the next difference.
    pub stale: Vec<String>,
}

impl Verdict {
    /// Nothing is unexplained, and nothing is explained that is not there.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.unexplained.is_empty() && self.stale.is_empty()
    }
}

impl Diff {
    /// A statistic that one side has at 0 and the other does not show: some appear only when there is something to count.
    fn is_zero_statistic(&self) -> bool {
        let is_statistic = self.at.starts_with("stats.") || self.at.starts_with("stats_now.");
        let sides = (self.envoy.as_str(), self.ours.as_str());
        is_statistic && matches!(sides, ("0", NOTHING) | (NOTHING, "0"))
    }
}

/// Compares the outcomes of a case.
#[must_use]
pub fn compare(envoy: &Value, ours: &Value, differs: &[Difference]) -> Verdict {
    let mut diffs = Vec::new();
    walk(envoy, ours, String::new(), &mut diffs);
    let mut verdict = Verdict::default();
    let mut used = vec![false; differs.len()];
    for diff in diffs.into_iter().filter(|diff| !diff.is_zero_statistic()) {
        match differs
            .iter()
            .position(|differs| fits(&differs.at, &diff.at))
        {
            Some(index) => {
                used[index] = true;
                verdict.explained.push((diff, differs[index].why.clone()));
            }
            None => verdict.unexplained.push(diff),
        }
    }
    verdict.stale = differs
        .iter()
        .zip(used)
        .filter(|(differs, used)| !used && !differs.sometimes)
        .map(|(differs, _)| differs.at.clone())
        .collect();
    verdict
}

/// A case's own explanations and its group's.
#[must_use]
pub fn explanations(group: &Group, case: &Case) -> Vec<Difference> {
    let of_group = group
        .differs
        .iter()
        .filter(|differs| {
            differs
                .cases
                .iter()
                .any(|pattern| fits(pattern, &case.name))
        })
        .flat_map(|differs| {
            differs.at.iter().map(|at| Difference {
                at: at.clone(),
                why: differs.why.clone(),
                sometimes: differs.sometimes,
            })
        });
    case.differs.iter().cloned().chain(of_group).collect()
}

/// Whether a text fits a pattern, in which `*` stands for anything.
fn fits(pattern: &str, at: &str) -> bool {
    let pattern = regex::escape(pattern).replace(r"\*", ".*");
    Regex::new(&format!("^{pattern}$")).is_ok_and(|pattern| pattern.is_match(at))
}

fn walk(envoy: &Value, ours: &Value, at: String, diffs: &mut Vec<Diff>) {
    match (envoy, ours) {
        (Value::Object(left), Value::Object(right)) => {
            for (key, value) in left {
                walk(
                    value,
                    right.get(key).unwrap_or(&Value::Null),
                    join(&at, key),
                    diffs,
                );
            }
            for (key, value) in right.iter().filter(|(key, _)| !left.contains_key(*key)) {
                walk(&Value::Null, value, join(&at, key), diffs);
            }
        }
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
            for (index, (left, right)) in left.iter().zip(right).enumerate() {
                walk(left, right, format!("{at}[{index}]"), diffs);
            }
        }
        (left, right) if left == right => {}
        (left, right) => diffs.push(Diff {
            at,
            envoy: show(left),
            ours: show(right),
        }),
    }
}

fn join(at: &str, key: &str) -> String {
    if at.is_empty() {
        key.to_owned()
    } else {
        format!("{at}.{key}")
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::Null => NOTHING.to_owned(),
        Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn explained(at: &str) -> Vec<Difference> {
        vec![Difference {
            at: at.to_owned(),
            why: "meant".to_owned(),
            sometimes: false,
        }]
    }

    #[test]
    fn a_difference_is_named_by_its_place() {
        let verdict = compare(
            &json!({"a": [{"b": 1}]}),
            &json!({"a": [{"b": 2, "c": 3}]}),
            &[],
        );
        let at: Vec<&str> = verdict
            .unexplained
            .iter()
            .map(|diff| diff.at.as_str())
            .collect();
        assert_eq!(at, ["a[0].b", "a[0].c"]);
    }

    #[test]
    fn a_statistic_that_is_not_shown_counts_only_where_it_counted() {
        let verdict = compare(
            &json!({"stats": {"a": 0, "b": 1}, "other": {"c": 0}}),
            &json!({"stats": {"d": 0}, "other": {}}),
            &[],
        );
        let at: Vec<&str> = verdict
            .unexplained
            .iter()
            .map(|diff| diff.at.as_str())
            .collect();
        assert_eq!(at, ["stats.b", "other.c"]);
    }

    #[test]
    fn an_explanation_covers_its_place_only_and_one_without_use_fails() {
        let (left, right) = (
            json!({"a": {"b": 1}, "c": 1}),
            json!({"a": {"b": 2}, "c": 2}),
        );
        let verdict = compare(&left, &right, &explained("a.*"));
        assert_eq!((verdict.explained.len(), verdict.unexplained.len()), (1, 1));
        let stale = compare(&left, &left, &explained("a.*"));
        assert_eq!(stale.stale, ["a.*"]);
        assert!(!stale.is_good());
        let mut chance = explained("a.*");
        chance[0].sometimes = true;
        assert!(compare(&left, &left, &chance).is_good());
    }
}
