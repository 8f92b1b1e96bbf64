//! Which quotas a request costs: the rules of the route's quota specs, on string attributes only.

use std::sync::Arc;

use proto::istio::mixer::v1::config::client as wire;
use proto_mesh::attribute::record::Record;
use proto_mesh::attribute::{Name, ValueRef};
use regex::Regex;

use crate::invalid::{Invalid, try_all};

/// Memory that a compiled pattern may take.
const PATTERN_LIMIT: usize = 1 << 20;

/// A quota that a request costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Requirement {
    pub(crate) name: Arc<str>,
    pub(crate) amount: i64,
}

/// A checked spec.
#[derive(Debug)]
pub(crate) struct QuotaSpec {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    /// One must hold; none means always.
    matches: Vec<Vec<Clause>>,
    quotas: Vec<Requirement>,
}

/// One attribute's condition.
#[derive(Debug)]
struct Clause {
    attribute: Name,
    text: TextMatch,
}

#[derive(Debug)]
enum TextMatch {
    /// It is there.
    Present,
    Exact(String),
    Prefix(String),
    /// The whole value.
    Pattern(Box<Regex>),
}

impl TryFrom<&wire::QuotaSpec> for QuotaSpec {
    type Error = Invalid;

    fn try_from(spec: &wire::QuotaSpec) -> Result<Self, Invalid> {
        let rules = try_all("rules", &spec.rules, |rule| {
            Ok(Rule {
                matches: try_all("match", &rule.r#match, clauses)?,
                quotas: rule
                    .quotas
                    .iter()
                    .map(|quota| Requirement {
                        name: quota.quota.as_str().into(),
                        amount: quota.charge,
                    })
                    .collect(),
            })
        })?;
        Ok(QuotaSpec { rules })
    }
}

fn clauses(attribute_match: &wire::AttributeMatch) -> Result<Vec<Clause>, Invalid> {
    use wire::string_match::MatchType;
    attribute_match
        .clause
        .iter()
        .map(|(attribute, text)| {
            let text = match &text.match_type {
                None => TextMatch::Present,
                Some(MatchType::Exact(text)) => TextMatch::Exact(text.clone()),
                Some(MatchType::Prefix(text)) => TextMatch::Prefix(text.clone()),
                Some(MatchType::Regex(text)) => {
                    let whole = format!("^(?:{text})$");
                    let pattern = regex::RegexBuilder::new(&whole)
                        .size_limit(PATTERN_LIMIT)
                        .build();
                    let problem = |error: regex::Error| {
                        Invalid::new(error.to_string())
                            .at(format_args!("clause[{attribute}].regex"))
                    };
                    TextMatch::Pattern(Box::new(pattern.map_err(problem)?))
                }
            };
            Ok(Clause {
                attribute: Name::new(attribute),
                text,
            })
        })
        .collect()
}

impl QuotaSpec {
    /// What such a request costs.
    pub(crate) fn requirements<'a>(
        &'a self,
        record: &'a Record,
    ) -> impl Iterator<Item = Requirement> + 'a {
        let applies = |rule: &&Rule| {
            rule.matches.is_empty()
                || rule
                    .matches
                    .iter()
                    .any(|clauses| clauses.iter().all(|clause| clause.holds(record)))
        };
        self.rules
            .iter()
            .filter(applies)
            .flat_map(|rule| rule.quotas.iter().cloned())
    }
}

impl Clause {
    fn holds(&self, record: &Record) -> bool {
        let Some(ValueRef::String(value)) = record.get(&self.attribute) else {
            return false;
        };
        match &self.text {
            TextMatch::Present => true,
            TextMatch::Exact(text) => value == text,
            TextMatch::Prefix(text) => value.starts_with(text.as_str()),
            TextMatch::Pattern(pattern) => pattern.is_match(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::record;
    use super::*;
    use wire::string_match::MatchType::{Exact, Prefix, Regex};

    #[test]
    fn quota_rules_look_at_text() {
        let clause = |attribute: &str, match_type: Option<wire::string_match::MatchType>| {
            wire::AttributeMatch {
                clause: [(attribute.to_owned(), wire::StringMatch { match_type })].into(),
            }
        };
        let requires = |attribute_match: Vec<wire::AttributeMatch>| {
            let quotas = vec![wire::Quota {
                quota: "q".into(),
                charge: 2,
            }];
            let spec = wire::QuotaSpec {
                rules: vec![wire::QuotaRule {
                    r#match: attribute_match,
                    quotas,
                }],
            };
            QuotaSpec::try_from(&spec).map(|spec| spec.requirements(&record("alice")).count())
        };
        assert_eq!(requires(vec![]), Ok(1));
        assert_eq!(
            requires(vec![clause("source.user", Some(Exact("alice".into())))]),
            Ok(1)
        );
        assert_eq!(
            requires(vec![clause("source.user", Some(Prefix("bob".into())))]),
            Ok(0)
        );
        assert_eq!(
            requires(vec![clause("source.user", Some(Regex("al".into())))]),
            Ok(0)
        );
        assert_eq!(
            requires(vec![clause("source.user", Some(Regex("al.*".into())))]),
            Ok(1)
        );
        assert_eq!(requires(vec![clause("source.user", None)]), Ok(1));
        assert_eq!(requires(vec![clause("request.headers", None)]), Ok(0));
        let either = vec![clause("nothing", None), clause("source.user", None)];
        assert_eq!(requires(either), Ok(1));
        assert!(requires(vec![clause("source.user", Some(Regex("(".into())))]).is_err());
    }
}
