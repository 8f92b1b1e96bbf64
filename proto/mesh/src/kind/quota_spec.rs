//! Rules of QuotaSpec: which requests cost which quotas.

use proto::istio::mixer::v1::config::client::string_match::MatchType;
use proto::istio::mixer::v1::config::client::{QuotaRule, QuotaSpec};

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(spec: &QuotaSpec, _meta: &Metadata, report: &mut Report) {
    if spec.rules.is_empty() {
        report.error_at("rules", "there are no rules: give at least one");
    }
    report.each("rules", &spec.rules, check_rule);
}

fn check_rule(report: &mut Report, rule: &QuotaRule) {
    report.each("match", &rule.r#match, |report, condition| {
        report.entries("clause", &condition.clause, |report, _, value| {
            let (field, text) = match &value.match_type {
                Some(MatchType::Exact(text)) => ("exact", text),
                Some(MatchType::Prefix(text)) => ("prefix", text),
                Some(MatchType::Regex(text)) => ("regex", text),
                None => return,
            };
            if text.is_empty() {
                report.error_at(
                    field,
                    "the text is empty: leave it out to ask for presence only",
                );
            } else if field == "regex" {
                report.require_at(field, crate::re2::check(text));
            }
        });
    });
    if rule.quotas.is_empty() {
        report.error_at("quotas", "the rule costs nothing: give at least one quota");
    }
    report.each("quotas", &rule.quotas, |report, quota| {
        if quota.quota.is_empty() {
            report.error_at("quota", "the quota's name is missing");
        }
        if quota.charge <= 0 {
            report.error_at(
                "charge",
                format!("the charge {} must be greater than 0", quota.charge),
            );
        }
    });
}
