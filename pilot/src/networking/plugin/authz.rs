//! AuthorizationPolicy as RBAC filters: what an external authorizer decides ([`custom`]), then audited and denied requests first, then what is allowed.
//!
//! Each rule becomes one RBAC policy: its permissions are the operations (`to`) and those conditions that are about the request
//! or the destination; its principals are the sources (`from`) and the other conditions. Everything given in one rule has to
//! hold; alternatives are united.

use std::collections::BTreeMap;

use proto::envoy::config::listener::v3::Filter;
use proto::envoy::config::rbac::v3::{Policy, Rbac, rbac::Action as WireAction};
use proto::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use proto::envoy::extensions::filters::network::rbac::v3::Rbac as TcpRbac;
use proto::istio::security::v1beta1::{AuthorizationPolicy, authorization_policy::Action};

mod custom;
mod legacy;
mod matcher;
mod rule;

pub use custom::{custom_http_filters, custom_tcp_filters};
pub use legacy::{legacy_http_filter, legacy_tcp_filter};

use crate::config::Config;
use crate::networking::View;
use crate::networking::wire::{http_filter, network_filter};
use crate::push_context::status::Metric;

/// Policies with this annotation set to `true` only say what they would do.
const DRY_RUN: &str = "istio.io/dry-run";
/// Statistics prefix of connections.
const TCP_STAT_PREFIX: &str = "tcp.";

/// What the traffic is seen as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layer {
    Http,
    Tcp,
}

/// One filter's worth of rules.
#[derive(Clone, Debug, Default, PartialEq)]
struct Rules {
    enforced: Option<Rbac>,
    shadow: Option<Rbac>,
}

/// The filters of a connection manager.
#[must_use]
pub fn http_filters(view: &View<'_>) -> Vec<HttpFilter> {
    let filters = rules(view, Layer::Http).into_iter().map(|(action, rules)| {
        let prefix = shadow_prefix(action, &rules);
        let config = HttpRbac {
            rules: rules.enforced,
            shadow_rules: rules.shadow,
            shadow_rules_stat_prefix: prefix,
            ..HttpRbac::default()
        };
        http_filter("envoy.filters.http.rbac", &config)
    });
    filters.collect()
}

/// The filters of connections that are passed on.
#[must_use]
pub fn tcp_filters(view: &View<'_>) -> Vec<Filter> {
    let mut all = custom_tcp_filters(view);
    let filters = rules(view, Layer::Tcp).into_iter().map(|(action, rules)| {
        let prefix = shadow_prefix(action, &rules);
        let config = TcpRbac {
            rules: rules.enforced,
            shadow_rules: rules.shadow,
            shadow_rules_stat_prefix: prefix,
            stat_prefix: TCP_STAT_PREFIX.to_owned(),
            ..TcpRbac::default()
        };
        network_filter("envoy.filters.network.rbac", &config)
    });
    all.extend(filters);
    all
}

fn shadow_prefix(action: Action, rules: &Rules) -> String {
    match (&rules.shadow, action) {
        (None, _) => String::new(),
        (Some(_), Action::Allow) => "istio_dry_run_allow_".to_owned(),
        (Some(_), _) => "istio_dry_run_deny_".to_owned(),
    }
}

/// The rules for this workload by action, in the order of the filters.
fn rules(view: &View<'_>, layer: Layer) -> Vec<(Action, Rules)> {
    let policies = |action| {
        view.push
            .policies
            .authorization_policies(view.proxy, action)
    };
    let mut all = Vec::new();
    for action in [Action::Audit, Action::Deny, Action::Allow] {
        let policies = policies(action);
        if !policies.is_empty() {
            all.push((action, build(view, &policies, action, layer)));
        }
    }
    all.retain(|(_, rules)| *rules != Rules::default());
    all
}

fn build(
    view: &View<'_>,
    policies: &[&Config<AuthorizationPolicy>],
    action: Action,
    layer: Layer,
) -> Rules {
    let wire_action = match action {
        Action::Allow => WireAction::Allow,
        Action::Deny | Action::Custom => WireAction::Deny,
        Action::Audit => WireAction::Log,
    };
    let rbac = || Rbac {
        action: wire_action as i32,
        ..Rbac::default()
    };
    let mut rules = Rules::default();
    for policy in policies {
        let is_dry_run = policy
            .meta
            .annotations
            .get(DRY_RUN)
            .is_some_and(|value| value == "true");
        let target = if is_dry_run {
            &mut rules.shadow
        } else {
            &mut rules.enforced
        };
        // An ALLOW policy without rules allows nothing, so the filter must be there even when it is empty.
        let target = target.get_or_insert_with(rbac);
        target
            .policies
            .extend(policies_of(view, policy, action, layer));
    }
    rules
}

fn policies_of(
    view: &View<'_>,
    config: &Config<AuthorizationPolicy>,
    action: Action,
    layer: Layer,
) -> BTreeMap<String, Policy> {
    let (meta, mesh) = (&config.meta, &view.push.mesh);
    let context = rule::Context {
        layer,
        // Connections that a CUSTOM rule cannot see are not its business.
        is_allow: action == Action::Allow || (action == Action::Custom && layer == Layer::Tcp),
        namespace: &meta.namespace,
        trust_domain: &mesh.trust_domain,
        aliases: &mesh.trust_domain_aliases,
    };
    let numbered = config.spec.rules.iter().enumerate();
    numbered
        .filter_map(|(index, rule)| {
            let name = format!("ns[{}]-policy[{}]-rule[{index}]", meta.namespace, meta.name);
            match rule::build(rule, &context) {
                Ok(policy) => Some((name, policy)),
                Err(reason) => {
                    // HTTP rules have nothing to say about the TCP ports that every workload also has.
                    if layer == Layer::Http {
                        view.record(
                            Metric::InvalidPolicy,
                            &format!("{}/{}", meta.namespace, meta.name),
                            &reason,
                        );
                    }
                    // An ALLOW rule that cannot be said allows nothing; a DENY rule that cannot be said denies everything.
                    (!context.is_allow && layer == Layer::Http).then(|| (name, rule::everything()))
                }
            }
        })
        .collect()
}

#[cfg(test)]
mod tests;
