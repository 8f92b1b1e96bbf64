//! Rules of AuthorizationPolicy: action, provider, and the rules' sources, operations and conditions.

use proto::istio::security::v1beta1::authorization_policy::Action;
use proto::istio::security::v1beta1::{AuthorizationPolicy, Condition, Operation, Rule, Source};

use crate::finding::Report;
use crate::kind::selector;
use crate::resource::Metadata;

mod attribute;

/// How many rules a policy may have.
const MAX_RULES: usize = 512;

/// How many service accounts a source may name.
const MAX_SERVICE_ACCOUNTS: usize = 16;

/// Annotation: decide, but do not enforce.
pub(super) const DRY_RUN: &str = "istio.io/dry-run";

/// Reports what is wrong.
pub(super) fn check(spec: &AuthorizationPolicy, meta: &Metadata, report: &mut Report) {
    check_dry_run(spec, meta, report);
    selector::check_target(
        spec.selector.as_ref(),
        spec.target_ref.as_ref(),
        &spec.target_refs,
        report,
    );
    check_action(spec, report);
    if spec.rules.len() > MAX_RULES {
        report.error_at(
            "rules",
            format!(
                "there are {} rules; at most {MAX_RULES} are allowed",
                spec.rules.len()
            ),
        );
    }
    report.each("rules", &spec.rules, |report, rule| {
        report.each("from", &rule.from, |report, from| match &from.source {
            Some(source) => report.at("source", |report| check_source(source, report)),
            None => report.error_at("source", "the source is missing"),
        });
        report.each("to", &rule.to, |report, to| match &to.operation {
            Some(operation) => report.at("operation", |report| check_operation(operation, report)),
            None => report.error_at("operation", "the operation is missing"),
        });
        report.each("when", &rule.when, check_condition);
        if spec.action() == Action::Custom {
            refuse_identity(rule, report);
        }
        if spec.action() == Action::Deny {
            warn_of_tcp(rule, report);
        }
    });
}

fn check_dry_run(spec: &AuthorizationPolicy, meta: &Metadata, report: &mut Report) {
    let Some(value) = meta.annotation(DRY_RUN) else {
        return;
    };
    if !matches!(spec.action(), Action::Allow | Action::Deny) {
        report.error(format!(
            "the annotation {DRY_RUN} works with the actions ALLOW and DENY only"
        ));
    } else if ![
        "1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False",
    ]
    .contains(&value)
    {
        report.error(format!(
            "the annotation {DRY_RUN} is {value:?}: give \"true\" or \"false\""
        ));
    }
}

fn check_action(spec: &AuthorizationPolicy, report: &mut Report) {
    let action = spec.action();
    if matches!(action, Action::Deny | Action::Custom) && spec.rules.is_empty() {
        report.error_at(
            "rules",
            format!(
                "{} without rules never does anything: give a rule; `{{}}` matches every request",
                action.as_str_name()
            ),
        );
    }
    match &spec.provider {
        Some(_) if action != Action::Custom => {
            report.error_at(
                "provider",
                format!(
                    "only CUSTOM has a provider, {} has not",
                    action.as_str_name()
                ),
            );
        }
        None if action == Action::Custom => {
            report.error_at("provider.name", "CUSTOM needs the name of a provider");
        }
        Some(provider) if provider.name.is_empty() => {
            report.error_at("provider.name", "CUSTOM needs the name of a provider");
        }
        _ => {}
    }
}

/// The lists of a source with their fields.
fn source_lists(source: &Source) -> [(&'static str, &[String]); 14] {
    [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
        ("serviceAccounts", &source.service_accounts),
        ("notServiceAccounts", &source.not_service_accounts),
        ("trustDomains", &source.trust_domains),
        ("notTrustDomains", &source.not_trust_domains),
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ]
}

fn check_source(source: &Source, report: &mut Report) {
    let lists = source_lists(source);
    if lists.iter().all(|(_, list)| list.is_empty()) {
        report.error("the source is empty: say where requests come from, or leave `from` out");
    }
    for (field, list) in lists {
        let is_range = field.ends_with("pBlocks");
        report.each(field, list, |report, value: &String| {
            if value.is_empty() {
                report.error("the value is empty");
            } else if is_range {
                report.require(crate::kind::address::check_range(value));
            }
        });
    }
    check_service_accounts(source, report);
}

fn check_service_accounts(source: &Source, report: &mut Report) {
    let given = !source.service_accounts.is_empty() || !source.not_service_accounts.is_empty();
    let others = [
        &source.principals,
        &source.not_principals,
        &source.namespaces,
        &source.not_namespaces,
    ];
    if given && others.into_iter().any(|list| !list.is_empty()) {
        report.error_at("serviceAccounts", "service accounts say namespace and principal already: leave namespaces and principals out");
    }
    for (field, list) in [
        ("serviceAccounts", &source.service_accounts),
        ("notServiceAccounts", &source.not_service_accounts),
    ] {
        if list.len() > MAX_SERVICE_ACCOUNTS {
            report.error_at(
                field,
                format!("at most {MAX_SERVICE_ACCOUNTS} service accounts can be named"),
            );
        }
        report.each(field, list, |report, value: &String| {
            if !value.is_empty() {
                report.require(attribute::check_service_account(value));
            }
        });
    }
}

fn check_operation(operation: &Operation, report: &mut Report) {
    let lists: [(&str, &[String]); 8] = [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("ports", &operation.ports),
        ("notPorts", &operation.not_ports),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
        ("paths", &operation.paths),
        ("notPaths", &operation.not_paths),
    ];
    if lists.iter().all(|(_, list)| list.is_empty()) {
        report.error("the operation is empty: say what is asked for, or leave `to` out");
    }
    for (field, list) in lists {
        report.each(field, list, |report, value: &String| {
            let result = match field {
                _ if value.is_empty() => Err("the value is empty".into()),
                "ports" | "notPorts" => attribute::check_port(value),
                "paths" | "notPaths" => attribute::check_path(value),
                _ => Ok(()),
            };
            report.require(result);
        });
    }
}

fn check_condition(report: &mut Report, condition: &Condition) {
    if condition.key.is_empty() {
        report.error_at("key", "the key is missing");
        return;
    }
    if condition.values.is_empty() && condition.not_values.is_empty() {
        report.error("the condition has no values: give values or notValues");
        return;
    }
    report.require_at("key", attribute::check_key(&condition.key));
    for (field, list) in [
        ("values", &condition.values),
        ("notValues", &condition.not_values),
    ] {
        report.each(field, list, |report, value: &String| {
            report.require(attribute::check_value(&condition.key, value));
        });
    }
}

/// An external provider is asked before identities are known.
fn refuse_identity(rule: &Rule, report: &mut Report) {
    report.each("from", &rule.from, |report, from| {
        let Some(source) = &from.source else { return };
        for (field, list) in source_lists(source) {
            if !list.is_empty() && !field.ends_with("pBlocks") {
                report.error_at(
                    &format!("source.{field}"),
                    format!("CUSTOM is decided before {field} are known: leave it out"),
                );
            }
        }
    });
    report.each("when", &rule.when, |report, condition| {
        if attribute::is_identity(&condition.key) {
            report.error_at(
                "key",
                format!("CUSTOM is decided before {} is known", condition.key),
            );
        }
    });
}

/// On plain TCP what is said about requests is left out of a DENY rule, so that it denies more than it seems to.
fn warn_of_tcp(rule: &Rule, report: &mut Report) {
    let sources = || rule.from.iter().filter_map(|from| from.source.as_ref());
    let operations = || rule.to.iter().filter_map(|to| to.operation.as_ref());
    let source_says_tcp = sources().any(|source| {
        let lists = source_lists(source);
        lists.iter().any(|(field, list)| {
            !list.is_empty() && !field.to_lowercase().contains("requestprincipals")
        })
    });
    let operation_says_tcp = operations()
        .any(|operation| !operation.ports.is_empty() || !operation.not_ports.is_empty());
    let has_operations = operations().next().is_some();
    let only_source = sources().next().is_some() && !has_operations && !source_says_tcp;
    if only_source || (has_operations && !operation_says_tcp) {
        report.warning("on TCP ports this rule denies everything, because it speaks of HTTP only: name the ports it is for");
    }
}
