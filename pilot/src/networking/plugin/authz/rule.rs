//! One rule of an authorization policy as one RBAC policy.

use proto::envoy::config::rbac::v3::{
    Permission, Policy, Principal, permission::Rule as Perm, principal::Identifier,
};
use proto::istio::security::v1beta1::{Condition, Operation, Rule, Source};

use super::Layer;
use super::matcher::{
    all_permissions, all_principals, any_permission, any_principal, authenticated, cidr, header,
    metadata, metadata_list, metadata_permission, metadata_principal, namespace, not_permission,
    not_principal, path, permission, principal, service_account, text, text_after, trust_domain,
};
use crate::networking::plugin::authn;
use crate::networking::wire::exact;

/// What a rule is read in.
pub(super) struct Context<'a> {
    pub(super) layer: Layer,
    pub(super) is_allow: bool,
    pub(super) namespace: &'a str,
    pub(super) trust_domain: &'a str,
    pub(super) aliases: &'a [String],
}

/// Matches every request.
pub(super) fn everything() -> Policy {
    Policy {
        permissions: vec![permission(Perm::Any(true))],
        principals: vec![principal(Identifier::Any(true))],
        ..Policy::default()
    }
}

/// Builds the policy, or says why the rule can never match (a rule about HTTP where there is none).
pub(super) fn build(rule: &Rule, context: &Context<'_>) -> Result<Policy, String> {
    let (mut condition_permissions, mut condition_principals) = (Vec::new(), Vec::new());
    for condition in &rule.when {
        match condition_matchers(condition, context)? {
            Matchers::Permissions(found) => condition_permissions.extend(found),
            Matchers::Principals(found) => condition_principals.extend(found),
        }
    }
    let mut permissions = Vec::new();
    for operation in rule.to.iter().filter_map(|to| to.operation.as_ref()) {
        let mut all = operation_permissions(operation, context)?;
        all.extend(condition_permissions.iter().cloned());
        permissions.push(all_permissions(all));
    }
    if rule.to.is_empty() {
        permissions.push(all_permissions(condition_permissions));
    }
    let mut principals = Vec::new();
    for source in rule.from.iter().filter_map(|from| from.source.as_ref()) {
        let mut all = source_principals(source, context)?;
        all.extend(condition_principals.iter().cloned());
        principals.push(all_principals(all));
    }
    if rule.from.is_empty() {
        principals.push(all_principals(condition_principals));
    }
    Ok(Policy {
        permissions,
        principals,
        ..Policy::default()
    })
}

enum Matchers {
    Permissions(Vec<Permission>),
    Principals(Vec<Principal>),
}

/// Whether a part of a rule that needs HTTP can be said. On TCP an ALLOW rule with it never matches, and other rules go on
/// without it: rather too much is denied than too little.
fn is_sayable(context: &Context<'_>, what: &str) -> Result<bool, String> {
    match (context.layer, context.is_allow) {
        (Layer::Http, _) => Ok(true),
        (Layer::Tcp, true) => Err(format!("{what} cannot be seen in TCP traffic")),
        (Layer::Tcp, false) => Ok(false),
    }
}

/// Values and their negation, for one field.
fn permissions_of<E>(
    into: &mut Vec<Permission>,
    values: &[String],
    not_values: &[String],
    build: impl Fn(&str) -> Result<Permission, E>,
) -> Result<(), E> {
    if !values.is_empty() {
        into.push(any_permission(
            values
                .iter()
                .map(|value| build(value))
                .collect::<Result<_, E>>()?,
        ));
    }
    if !not_values.is_empty() {
        let any = any_permission(
            not_values
                .iter()
                .map(|value| build(value))
                .collect::<Result<_, E>>()?,
        );
        into.push(not_permission(any));
    }
    Ok(())
}

fn principals_of(
    into: &mut Vec<Principal>,
    values: &[String],
    not_values: &[String],
    build: impl Fn(&str) -> Result<Principal, String>,
) -> Result<(), String> {
    if !values.is_empty() {
        into.push(any_principal(
            values
                .iter()
                .map(|value| build(value))
                .collect::<Result<_, String>>()?,
        ));
    }
    if !not_values.is_empty() {
        let any = any_principal(
            not_values
                .iter()
                .map(|value| build(value))
                .collect::<Result<_, String>>()?,
        );
        into.push(not_principal(any));
    }
    Ok(())
}

fn operation_permissions(
    operation: &Operation,
    context: &Context<'_>,
) -> Result<Vec<Permission>, String> {
    let mut all = Vec::new();
    permissions_of(&mut all, &operation.ports, &operation.not_ports, port)?;
    let has_hosts = !operation.hosts.is_empty() || !operation.not_hosts.is_empty();
    if has_hosts && is_sayable(context, "hosts")? {
        permissions_of(&mut all, &operation.hosts, &operation.not_hosts, |value| {
            Ok::<_, String>(permission(Perm::Header(header(":authority", value, true))))
        })?;
    }
    let has_methods = !operation.methods.is_empty() || !operation.not_methods.is_empty();
    if has_methods && is_sayable(context, "methods")? {
        permissions_of(
            &mut all,
            &operation.methods,
            &operation.not_methods,
            |value| Ok::<_, String>(permission(Perm::Header(header(":method", value, false)))),
        )?;
    }
    let has_paths = !operation.paths.is_empty() || !operation.not_paths.is_empty();
    if has_paths && is_sayable(context, "paths")? {
        permissions_of(&mut all, &operation.paths, &operation.not_paths, |value| {
            Ok::<_, String>(permission(Perm::UrlPath(path(value))))
        })?;
    }
    Ok(all)
}

fn port(value: &str) -> Result<Permission, String> {
    let port = value
        .parse::<u16>()
        .map_err(|_| format!("{value:?} is not a port"))?;
    Ok(permission(Perm::DestinationPort(u32::from(port))))
}

fn source_principals(source: &Source, context: &Context<'_>) -> Result<Vec<Principal>, String> {
    let mut all = Vec::new();
    let own = context.namespace;
    principals_of(
        &mut all,
        &source.principals,
        &source.not_principals,
        |value| peer(value, context),
    )?;
    principals_of(
        &mut all,
        &source.namespaces,
        &source.not_namespaces,
        |value| Ok(authenticated(namespace(value))),
    )?;
    principals_of(
        &mut all,
        &source.service_accounts,
        &source.not_service_accounts,
        |value| Ok(authenticated(service_account(value, own))),
    )?;
    principals_of(
        &mut all,
        &source.trust_domains,
        &source.not_trust_domains,
        |value| Ok(authenticated(trust_domain(value))),
    )?;
    principals_of(
        &mut all,
        &source.ip_blocks,
        &source.not_ip_blocks,
        |value| Ok(principal(Identifier::DirectRemoteIp(cidr(value)?))),
    )?;
    principals_of(
        &mut all,
        &source.remote_ip_blocks,
        &source.not_remote_ip_blocks,
        |value| Ok(principal(Identifier::RemoteIp(cidr(value)?))),
    )?;
    let has_request =
        !source.request_principals.is_empty() || !source.not_request_principals.is_empty();
    if has_request && is_sayable(context, "requestPrincipals")? {
        principals_of(
            &mut all,
            &source.request_principals,
            &source.not_request_principals,
            |value| Ok(request_principal(value)),
        )?;
    }
    Ok(all)
}

/// The identity in the peer's certificate; the local trust domain and its aliases are one.
fn peer(value: &str, context: &Context<'_>) -> Result<Principal, String> {
    let matcher = |value: &str| authenticated(text_after("spiffe://", value));
    let Some((domain, rest)) = value
        .split_once('/')
        .filter(|(domain, _)| !domain.contains('*'))
    else {
        return Ok(matcher(value));
    };
    let is_local = domain == context.trust_domain
        || domain == "cluster.local"
        || context.aliases.iter().any(|alias| alias == domain);
    if !is_local {
        return Ok(matcher(value));
    }
    let domains =
        std::iter::once(context.trust_domain).chain(context.aliases.iter().map(String::as_str));
    Ok(any_principal(
        domains
            .map(|domain| matcher(&format!("{domain}/{rest}")))
            .collect(),
    ))
}

/// `issuer/subject`, split at the last slash because issuers contain some.
fn request_principal(value: &str) -> Principal {
    let claim = |name: &str, matcher| {
        metadata_principal(metadata(authn::NAME, &[authn::PAYLOAD, name], matcher))
    };
    let (issuer, subject) = if let Some((issuer, subject)) = value.rsplit_once('/') {
        (text(issuer), text(subject))
    } else if value == "*" {
        (text("*"), text("*"))
    } else if value.starts_with('*') {
        (text("*"), text(value))
    } else if value.ends_with('*') {
        (text(value), text("*"))
    } else {
        (exact(value), exact(""))
    };
    all_principals(vec![claim("iss", issuer), claim("sub", subject)])
}

fn condition_matchers(condition: &Condition, context: &Context<'_>) -> Result<Matchers, String> {
    let (values, not_values) = (&condition.values, &condition.not_values);
    let (name, argument) = match condition.key.split_once('[') {
        Some((name, rest)) => (name, rest.strip_suffix(']').unwrap_or(rest)),
        None => (condition.key.as_str(), ""),
    };
    let (mut permissions, mut principals) = (Vec::new(), Vec::new());
    match name {
        "destination.ip" => permissions_of(&mut permissions, values, not_values, |value| {
            Ok::<_, String>(permission(Perm::DestinationIp(cidr(value)?)))
        })?,
        "destination.port" => permissions_of(&mut permissions, values, not_values, port)?,
        "connection.sni" => permissions_of(&mut permissions, values, not_values, |value| {
            Ok::<_, String>(permission(Perm::RequestedServerName(text(value))))
        })?,
        "source.ip" => principals_of(&mut principals, values, not_values, |value| {
            Ok(principal(Identifier::DirectRemoteIp(cidr(value)?)))
        })?,
        "remote.ip" => principals_of(&mut principals, values, not_values, |value| {
            Ok(principal(Identifier::RemoteIp(cidr(value)?)))
        })?,
        "source.namespace" => principals_of(&mut principals, values, not_values, |value| {
            Ok(authenticated(namespace(value)))
        })?,
        "source.principal" => principals_of(&mut principals, values, not_values, |value| {
            peer(value, context)
        })?,
        "source.serviceAccount" => principals_of(&mut principals, values, not_values, |value| {
            Ok(authenticated(service_account(value, context.namespace)))
        })?,
        "source.trustDomain" => principals_of(&mut principals, values, not_values, |value| {
            Ok(authenticated(trust_domain(value)))
        })?,
        name if name.starts_with("experimental.envoy.filters.") => {
            let filter = name.trim_start_matches("experimental.");
            permissions_of(&mut permissions, values, not_values, |value| {
                Ok::<_, String>(filter_metadata(filter, argument, value))
            })?;
        }
        _ => {
            if is_sayable(context, &condition.key)? {
                principals = request_condition(name, argument, values, not_values)?;
            }
        }
    }
    Ok(if permissions.is_empty() {
        Matchers::Principals(principals)
    } else {
        Matchers::Permissions(permissions)
    })
}

/// `[v]` means that a list contains `v`.
fn filter_metadata(filter: &str, key: &str, value: &str) -> Permission {
    let matcher = match value
        .strip_prefix('[')
        .and_then(|value| value.strip_suffix(']'))
    {
        Some(member) => metadata_list(filter, &[key], text(member)),
        None => metadata(filter, &[key], text(value)),
    };
    metadata_permission(matcher)
}

/// Conditions about the request itself.
fn request_condition(
    name: &str,
    argument: &str,
    values: &[String],
    not_values: &[String],
) -> Result<Vec<Principal>, String> {
    let mut principals = Vec::new();
    let claim = |path: &[&str], value: &str| {
        let full: Vec<&str> = std::iter::once(authn::PAYLOAD)
            .chain(path.iter().copied())
            .collect();
        // A claim is text, or a list of which any member will do.
        let as_text = metadata_principal(metadata(authn::NAME, &full, text(value)));
        let as_list = metadata_principal(metadata_list(authn::NAME, &full, text(value)));
        any_principal(vec![as_text, as_list])
    };
    match name {
        "request.headers" => principals_of(&mut principals, values, not_values, |value| {
            Ok(principal(Identifier::Header(header(
                argument, value, false,
            ))))
        })?,
        "request.auth.principal" => {
            principals_of(&mut principals, values, not_values, |value| {
                Ok(request_principal(value))
            })?;
        }
        "request.auth.audiences" => principals_of(&mut principals, values, not_values, |value| {
            Ok(claim(&["aud"], value))
        })?,
        "request.auth.presenter" => principals_of(&mut principals, values, not_values, |value| {
            Ok(claim(&["azp"], value))
        })?,
        "request.auth.claims" => {
            let path: Vec<&str> = argument.split("][").collect();
            principals_of(&mut principals, values, not_values, |value| {
                Ok(claim(&path, value))
            })?;
        }
        other => return Err(format!("unknown condition {other:?}")),
    }
    Ok(principals)
}
