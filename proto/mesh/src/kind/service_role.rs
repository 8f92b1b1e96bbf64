//! Rules of the 1.4 line's ServiceRole, and of the rules in it, which a ServiceRoleBinding may have too.

use proto::istio::rbac::v1alpha1::{AccessRule, ServiceRole};

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(spec: &ServiceRole, _meta: &Metadata, report: &mut Report) {
    if spec.rules.is_empty() {
        report.error_at("rules", "the role allows nothing: give at least one rule");
    }
    report.each("rules", &spec.rules, check_rule);
}

/// Checks one rule.
pub(super) fn check_rule(report: &mut Report, rule: &AccessRule) {
    for (field, both) in [
        (
            "methods",
            !rule.methods.is_empty() && !rule.not_methods.is_empty(),
        ),
        (
            "ports",
            !rule.ports.is_empty() && !rule.not_ports.is_empty(),
        ),
    ] {
        if both {
            report.error_at(
                field,
                format!(
                    "{field} are given both as allowed and as not allowed: give one of the two"
                ),
            );
        }
    }
    report.each("constraints", &rule.constraints, |report, constraint| {
        if constraint.key.is_empty() {
            report.error_at("key", "the key is missing");
        } else if constraint.key == "destination.port"
            && !(rule.ports.is_empty() && rule.not_ports.is_empty())
        {
            report.error_at(
                "key",
                "the rule has ports already: leave the constraint on destination.port out",
            );
        }
        if constraint.values.is_empty() {
            report.error_at("values", "the constraint has no values");
        }
        report.each("values", &constraint.values, |report, value: &String| {
            if value.is_empty() {
                report.error("the value is empty");
            }
        });
    });
}
