//! The 1.4 line's role-based access: ClusterRbacConfig says for which services, ServiceRole what, ServiceRoleBinding who.
//!
//! Each binding of each role becomes one rule as an AuthorizationPolicy would say it; conditions about the destination are
//! decided here. A workload that any AuthorizationPolicy selects does not look at these at all.

use std::collections::BTreeMap;

use proto::envoy::config::listener::v3::Filter;
use proto::envoy::config::rbac::v3::{Policy, Rbac, rbac::Action as WireAction};
use proto::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use proto::envoy::extensions::filters::network::rbac::v3::Rbac as TcpRbac;
use proto::istio::rbac::v1alpha1::{AccessRule, EnforcementMode, ServiceRoleBinding, Subject};
use proto::istio::security::v1beta1::{
    Condition, Operation, Rule, Source,
    rule::{From, To},
};

use super::rule::{self, Context};
use super::{Layer, TCP_STAT_PREFIX};
use crate::model::Service;
use crate::networking::wire::{http_filter, network_filter};
use crate::networking::{Instance, View};

/// The filter of a connection manager before a port of the workload.
#[must_use]
pub fn legacy_http_filter(view: &View<'_>, instance: Option<&Instance>) -> Option<HttpFilter> {
    let rules = rules(view, instance?, Layer::Http)?;
    let config = HttpRbac {
        rules: rules.enforced,
        shadow_rules: rules.shadow,
        ..HttpRbac::default()
    };
    Some(http_filter("envoy.filters.http.rbac", &config))
}

/// The filter of connections to a port of the workload.
#[must_use]
pub fn legacy_tcp_filter(view: &View<'_>, instance: Option<&Instance>) -> Option<Filter> {
    let rules = rules(view, instance?, Layer::Tcp)?;
    let config = TcpRbac {
        rules: rules.enforced,
        shadow_rules: rules.shadow,
        stat_prefix: TCP_STAT_PREFIX.to_owned(),
        ..TcpRbac::default()
    };
    Some(network_filter("envoy.filters.network.rbac", &config))
}

fn rules(view: &View<'_>, instance: &Instance, layer: Layer) -> Option<super::Rules> {
    let policies = &view.push.policies;
    let service = instance.service.as_ref();
    let mode = policies.legacy_rbac(service)?;
    if policies.has_authorization_policy(view.proxy) {
        return None;
    }
    let mut enforced: BTreeMap<String, Policy> = BTreeMap::new();
    let mut shadow: BTreeMap<String, Policy> = BTreeMap::new();
    for (name, binding) in policies.role_bindings(&service.namespace) {
        let is_shadow =
            mode == EnforcementMode::Permissive || binding.mode() == EnforcementMode::Permissive;
        let target = if is_shadow {
            &mut shadow
        } else {
            &mut enforced
        };
        for (index, rule) in roles_of(view, service, binding).into_iter().enumerate() {
            // A subject's properties are its own: whoever is any of the subjects may come in.
            for (number, subject) in binding.subjects.iter().enumerate() {
                if let Some(policy) = policy(view, instance, rule, subject, layer) {
                    target.insert(format!("{name}-rule[{index}]-subject[{number}]"), policy);
                }
            }
        }
    }
    let rbac = |policies| Rbac {
        action: WireAction::Allow as i32,
        policies,
        ..Rbac::default()
    };
    let is_shadow_only = mode == EnforcementMode::Permissive;
    Some(super::Rules {
        // Whatever nobody is bound to is refused, so the filter is there even without a rule.
        enforced: (!is_shadow_only).then(|| rbac(enforced)),
        shadow: (is_shadow_only || !shadow.is_empty()).then(|| rbac(shadow)),
    })
}

fn roles_of<'a>(
    view: &'a View<'_>,
    service: &Service,
    binding: &'a ServiceRoleBinding,
) -> Vec<&'a AccessRule> {
    let name = binding
        .role_ref
        .as_ref()
        .map_or(binding.role.as_str(), |role| role.name.as_str());
    let role = view.push.policies.role(&service.namespace, name);
    let of_role = role.into_iter().flat_map(|role| &role.rules);
    of_role.chain(&binding.actions).collect()
}

fn policy(
    view: &View<'_>,
    instance: &Instance,
    rule: &AccessRule,
    subject: &Subject,
    layer: Layer,
) -> Option<Policy> {
    let service = instance.service.as_ref();
    let is_for_service = rule.services.is_empty()
        || rule
            .services
            .iter()
            .any(|pattern| matches(pattern, &service.host));
    if !is_for_service {
        return None;
    }
    let (decided, when): (Vec<_>, Vec<_>) = rule
        .constraints
        .iter()
        .partition(|constraint| destination(instance, &constraint.key).is_some());
    let holds = decided.iter().all(|constraint| {
        let value = destination(instance, &constraint.key).unwrap_or_default();
        constraint
            .values
            .iter()
            .any(|pattern| matches(pattern, &value))
    });
    if !holds {
        return None;
    }
    let when = when.into_iter().map(|constraint| Condition {
        key: constraint.key.clone(),
        values: constraint.values.clone(),
        not_values: Vec::new(),
    });
    let mut when: Vec<Condition> = when.collect();
    let ports = |list: &[i32]| list.iter().map(ToString::to_string).collect();
    let any_path = |list: &[String]| list.iter().filter(|path| *path != "*").cloned().collect();
    let operation = Operation {
        hosts: rule.hosts.clone(),
        not_hosts: rule.not_hosts.clone(),
        methods: any_path(&rule.methods),
        not_methods: rule.not_methods.clone(),
        paths: any_path(&rule.paths),
        not_paths: rule.not_paths.clone(),
        ports: ports(&rule.ports),
        not_ports: ports(&rule.not_ports),
    };
    let context = Context {
        layer,
        is_allow: true,
        namespace: &service.namespace,
        trust_domain: &view.push.mesh.trust_domain,
        aliases: &view.push.mesh.trust_domain_aliases,
    };
    let has_operation = operation != Operation::default();
    when.extend(properties(subject));
    let source = source(subject);
    let rule = Rule {
        from: (source != Source::default())
            .then_some(From {
                source: Some(source),
            })
            .into_iter()
            .collect(),
        to: has_operation
            .then_some(To {
                operation: Some(operation),
            })
            .into_iter()
            .collect(),
        when,
    };
    rule::build(&rule, &context).ok()
}

/// Conditions about the destination that are known beforehand.
fn destination(instance: &Instance, key: &str) -> Option<String> {
    let label = key
        .strip_prefix("destination.labels[")
        .and_then(|key| key.strip_suffix(']'));
    if let Some(label) = label {
        return Some(
            instance
                .endpoint
                .labels
                .get(label)
                .cloned()
                .unwrap_or_default(),
        );
    }
    Some(match key {
        "destination.name" => instance.service.name.clone(),
        "destination.namespace" => instance.service.namespace.clone(),
        "destination.user" => {
            let identity = instance.endpoint.identity.rsplit('/').next();
            identity.unwrap_or_default().to_owned()
        }
        _ => return None,
    })
}

fn source(subject: &Subject) -> Source {
    let is_anybody = |name: &String| name == "*";
    let mut principals: Vec<String> = subject.names.clone();
    principals.extend((!subject.user.is_empty()).then(|| subject.user.clone()));
    // QUIRK: in this API a star means anybody, authenticated or not.
    if principals.iter().any(is_anybody) {
        principals.clear();
    }
    Source {
        principals,
        not_principals: subject.not_names.clone(),
        namespaces: subject.namespaces.clone(),
        not_namespaces: subject.not_namespaces.clone(),
        ip_blocks: subject.ips.clone(),
        not_ip_blocks: subject.not_ips.clone(),
        ..Source::default()
    }
}

fn properties(subject: &Subject) -> Vec<Condition> {
    let mut conditions: Vec<Condition> = subject
        .properties
        .iter()
        .map(|(key, value)| Condition {
            key: key.clone(),
            values: vec![value.clone()],
            not_values: Vec::new(),
        })
        .collect();
    #[allow(deprecated, reason = "the old field is still in use")]
    let old = (!subject.group.is_empty()).then(|| subject.group.clone());
    let groups: Vec<String> = subject.groups.iter().cloned().chain(old).collect();
    if !groups.is_empty() || !subject.not_groups.is_empty() {
        conditions.push(Condition {
            key: "request.auth.claims[groups]".to_owned(),
            values: groups,
            not_values: subject.not_groups.clone(),
        });
    }
    conditions
}

/// `abc`, `abc*`, `*abc` or `*`.
fn matches(pattern: &str, value: &str) -> bool {
    if let Some(suffix) = pattern.strip_prefix('*') {
        return value.ends_with(suffix);
    }
    match pattern.strip_suffix('*') {
        Some(prefix) => value.starts_with(prefix),
        None => pattern == value,
    }
}
