//! Attributes of requests in authorization rules: the keys of conditions, and the form of their values.

use crate::kind::address::check_range;
use crate::labels::is_dns_label;

/// Keys that stand by themselves.
const PLAIN_KEYS: [&str; 12] = [
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "destination.ip",
    "destination.port",
    "connection.sni",
];

/// Keys that need a name in brackets.
const MAP_KEYS: [&str; 3] = [
    "request.headers",
    "request.auth.claims",
    "experimental.envoy.filters.",
];

/// Checks a condition's key.
pub(super) fn check_key(key: &str) -> Result<(), String> {
    if MAP_KEYS.iter().any(|prefix| key.starts_with(prefix)) {
        let name = key.strip_suffix(']').and_then(|rest| rest.split_once('['));
        return match name {
            Some((start, name)) if !start.is_empty() && !name.is_empty() => Ok(()),
            _ => Err(format!(
                "{key:?} needs a name in brackets, as in request.headers[x-token]"
            )),
        };
    }
    if PLAIN_KEYS.contains(&key) {
        return Ok(());
    }
    Err(match key {
        "destination.namespace" => {
            format!("{key} is the policy's own namespace: leave the condition out")
        }
        "destination.name" | "destination.user" => format!("{key} is of the 1.4 line's RBAC only"),
        _ if key.starts_with("destination.labels") => {
            format!("{key} is said by the policy's selector")
        }
        _ => format!("{key:?} is no attribute of a request"),
    })
}

/// Checks one value of a condition.
pub(super) fn check_value(key: &str, value: &str) -> Result<(), String> {
    if value.is_empty() {
        return Err("the value is empty".into());
    }
    match key {
        "source.ip" | "remote.ip" | "destination.ip" => check_range(value),
        "destination.port" => check_port(value),
        "source.serviceAccount" => check_service_account(value),
        _ => Ok(()),
    }
}

/// True for attributes that are known only once the request has been authenticated.
pub(super) fn is_identity(key: &str) -> bool {
    matches!(
        key,
        "source.namespace" | "source.principal" | "source.serviceAccount" | "source.trustDomain"
    ) || key.starts_with("request.auth.")
}

/// Checks a port, which is written as text.
pub(super) fn check_port(text: &str) -> Result<(), String> {
    match text.parse::<u32>() {
        Ok(0..=65535) if !text.starts_with('+') => Ok(()),
        _ => Err(format!("{text:?} is no port: give a number in 0..=65535")),
    }
}

/// Checks a service account, `name` or `namespace/name`.
pub(super) fn check_service_account(text: &str) -> Result<(), String> {
    let (namespace, name) = text
        .split_once('/')
        .map_or((None, text), |(namespace, name)| (Some(namespace), name));
    let name_fits = !name.is_empty() && name.split('.').all(is_dns_label);
    if namespace.is_none_or(is_dns_label) && name_fits {
        return Ok(());
    }
    Err(format!(
        "{text:?} is no service account: give name or namespace/name, without wildcards"
    ))
}

/// Checks a path. With `{*}` or `{**}` in it, it is a template: each segment is one of them or plain text, and `{**}` is the last
/// of them.
pub(super) fn check_path(path: &str) -> Result<(), String> {
    if !path.contains("{*}") && !path.contains("{**}") {
        return Ok(());
    }
    let mut any_number_seen = false;
    for segment in path.trim_matches('/').split('/') {
        match segment {
            "{*}" | "{**}" if any_number_seen => {
                return Err(format!(
                    "{path:?}: {{**}} must be the last operator of a path template"
                ));
            }
            "{**}" => any_number_seen = true,
            "{*}" => {}
            text if text.contains(['*', '{', '}']) => {
                return Err(format!(
                    "{path:?}: the segment {text:?} is neither {{*}} (one segment), {{**}} (any number) nor plain text"
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_made_of_whole_segments() {
        for path in [
            "/a*",
            "/{*}",
            "/a/{*}/b",
            "/a/{**}",
            "/{*}/a/{**}",
            "/{**}/a",
            "/{x}",
            "*/a",
        ] {
            assert_eq!(check_path(path), Ok(()), "{path}");
        }
        for path in [
            "/{**}/{*}",
            "/{**}/{**}",
            "/a{*}",
            "/{*}/x*",
            "/{*}/{x}",
            "/{*}/*",
            "/{*}/{a=*}",
        ] {
            assert!(check_path(path).is_err(), "{path}");
        }
    }

    #[test]
    fn keys_are_attributes_of_requests() {
        for key in [
            "source.ip",
            "request.headers[:authority]",
            "request.auth.claims[a][b]",
            "experimental.envoy.filters.a[b]",
        ] {
            assert_eq!(check_key(key), Ok(()), "{key}");
        }
        for key in [
            "",
            "key1",
            "request.headers",
            "request.headers[]",
            "destination.labels[a]",
            "destination.name",
        ] {
            assert!(check_key(key).is_err(), "{key}");
        }
    }
}
