//! Rules of the 1.4 line's ServiceRoleBinding.

use proto::istio::rbac::v1alpha1::{ServiceRoleBinding, Subject};

use crate::finding::Report;
use crate::kind::service_role;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(spec: &ServiceRoleBinding, _meta: &Metadata, report: &mut Report) {
    if spec.subjects.is_empty() {
        report.error_at(
            "subjects",
            "the role is granted to nobody: give at least one subject",
        );
    }
    report.each("subjects", &spec.subjects, check_subject);
    check_role(spec, report);
}

/// The role is named in one of three ways.
fn check_role(spec: &ServiceRoleBinding, report: &mut Report) {
    let ways = [
        spec.role_ref.is_some(),
        !spec.role.is_empty(),
        !spec.actions.is_empty(),
    ];
    match ways.into_iter().filter(|given| *given).count() {
        0 => report.error("the role is missing: give roleRef, role or actions"),
        1 => {}
        _ => {
            report
                .error("the role is given in several ways: give one of roleRef, role and actions");
        }
    }
    if let Some(reference) = &spec.role_ref {
        if reference.kind != "ServiceRole" {
            report.error_at(
                "roleRef.kind",
                format!("{:?} is no kind of role: give ServiceRole", reference.kind),
            );
        }
        if reference.name.is_empty() {
            report.error_at("roleRef.name", "the role's name is missing");
        }
    }
    if !spec.role.is_empty() && spec.role.trim_start_matches('/').is_empty() {
        report.error_at("role", "the role's name is missing");
    }
    report.each("actions", &spec.actions, service_role::check_rule);
}

fn check_subject(report: &mut Report, subject: &Subject) {
    let lists: [(&str, &[String]); 8] = [
        ("names", &subject.names),
        ("notNames", &subject.not_names),
        ("groups", &subject.groups),
        ("notGroups", &subject.not_groups),
        ("namespaces", &subject.namespaces),
        ("notNamespaces", &subject.not_namespaces),
        ("ips", &subject.ips),
        ("notIps", &subject.not_ips),
    ];
    let is_empty = subject.user.is_empty()
        && group(subject).is_empty()
        && subject.properties.is_empty()
        && lists.iter().all(|(_, list)| list.is_empty());
    if is_empty {
        report.error("the subject is empty: say who gets the role");
    }
    for (field, list) in &lists[..2] {
        report.each(field, list, |report, name: &String| {
            if name == "*" {
                report.error("`*` is no name: leave names out, or use a user `*`");
            }
        });
    }
    report.entries("properties", &subject.properties, |report, key, _| {
        let taken = match key.as_str() {
            "source.namespace" => &lists[4..6],
            "source.ip" => &lists[6..8],
            "source.principal" => &lists[..2],
            _ => &[],
        };
        if let Some((field, _)) = taken.iter().find(|(_, list)| !list.is_empty()) {
            report.error(format!(
                "the subject has {field} already: leave the property {key} out"
            ));
        }
    });
}

#[allow(deprecated, reason = "the old field is still read")]
fn group(subject: &Subject) -> &str {
    &subject.group
}
