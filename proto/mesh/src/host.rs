//! Host names: short and full names, wildcards, which of two is more specific.
//!
//! A host is a DNS name, an IP address, `*`, or a wildcard whose first label is `*` (`*.example.com`). Short names (`reviews`)
//! belong to a Kubernetes namespace. Everything here takes hosts as written: lower case is for those who read the wire.

use std::cmp::Ordering;
use std::net::IpAddr;

use crate::labels::is_dns_label;

/// The host that matches everything.
pub const ANY: &str = "*";

/// True for `*` and `*.example.com`.
#[must_use]
pub fn is_wildcard(host: &str) -> bool {
    host.starts_with('*')
}

/// The full name of a service's short name in `namespace`: `reviews` → `reviews.bookinfo.svc.cluster.local`. Names with a dot,
/// wildcards and addresses are full already.
#[must_use]
pub fn resolve(host: &str, namespace: &str, domain: &str) -> String {
    if host.is_empty() || is_wildcard(host) || host.contains('.') || host.parse::<IpAddr>().is_ok()
    {
        return host.to_owned();
    }
    service_host(host, namespace, domain)
}

/// The full name of a Kubernetes service.
#[must_use]
pub fn service_host(name: &str, namespace: &str, domain: &str) -> String {
    format!("{name}.{namespace}.svc.{domain}")
}

/// Name and namespace in the full name of a Kubernetes service under `domain`; none for other hosts.
#[must_use]
pub fn service_of<'a>(host: &'a str, domain: &str) -> Option<(&'a str, &'a str)> {
    let service = host.strip_suffix(domain)?.strip_suffix(".svc.")?;
    let (name, namespace) = service.split_once('.')?;
    (!name.is_empty() && !namespace.is_empty() && !namespace.contains('.'))
        .then_some((name, namespace))
}

/// True when some name is covered by both: equal names, a wildcard and a name under it, overlapping wildcards.
#[must_use]
pub fn matches(a: &str, b: &str) -> bool {
    match (a.strip_prefix('*'), b.strip_prefix('*')) {
        (Some(a), Some(b)) => a.ends_with(b) || b.ends_with(a),
        (Some(suffix), None) => b.ends_with(suffix),
        (None, Some(suffix)) => a.ends_with(suffix),
        (None, None) => a == b,
    }
}

/// True when every name that `inner` covers is covered by `outer`.
#[must_use]
pub fn is_subset(inner: &str, outer: &str) -> bool {
    match (inner.strip_prefix('*'), outer.strip_prefix('*')) {
        (Some(inner), Some(outer)) => inner.ends_with(outer),
        (Some(_), None) => false,
        (None, Some(suffix)) => inner.ends_with(suffix),
        (None, None) => inner == outer,
    }
}

/// Puts the more specific host first: names before wildcards, long before short, then by the alphabet from its end.
#[must_use]
pub fn compare_specificity(a: &str, b: &str) -> Ordering {
    is_wildcard(a)
        .cmp(&is_wildcard(b))
        .then_with(|| b.len().cmp(&a.len()))
        .then_with(|| b.cmp(a))
}

/// The most specific of `patterns` that covers `host`.
pub fn most_specific<'a, I>(host: &str, patterns: I) -> Option<&'a str>
where
    I: IntoIterator<Item = &'a str>,
{
    patterns
        .into_iter()
        .filter(|pattern| is_subset(host, pattern))
        .min_by(|a, b| compare_specificity(a, b))
}

/// A host with the namespace that it may come from, as gateways and sidecars write it: `namespace/host`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespacedHost {
    /// A namespace, `*` (any) or `.` (the object's own).
    pub namespace: String,
    /// A host.
    pub host: String,
}

impl NamespacedHost {
    /// Reads `namespace/host`; a bare host may come from any namespace.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let (namespace, host) = text.split_once('/').unwrap_or((ANY, text));
        Self {
            namespace: namespace.to_owned(),
            host: host.to_owned(),
        }
    }

    /// True when `namespace` is one this host may come from; `own` is the namespace of the object that says so.
    #[must_use]
    pub fn allows_namespace(&self, namespace: &str, own: &str) -> bool {
        match self.namespace.as_str() {
            ANY => true,
            "." => namespace == own,
            "~" => false,
            name => name == namespace,
        }
    }
}

/// Checks a DNS name without wildcards.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(name: &str) -> Result<(), String> {
    check_length(name)?;
    check_labels(name, name)
}

/// Checks a DNS name whose first label may be, or begin with, `*`.
///
/// # Errors
/// What is wrong with it.
pub fn check(host: &str) -> Result<(), String> {
    check_length(host)?;
    let (first, rest) = host
        .split_once('.')
        .map_or((host, None), |(first, rest)| (first, Some(rest)));
    if !is_wildcard_label(first) {
        return Err(format!(
            "{host:?} is no host: {first:?} is neither a DNS label nor `*`"
        ));
    }
    rest.map_or(Ok(()), |rest| check_labels(host, rest))
}

/// Refuses wildcards that are not a whole first label: `*foo.com`.
///
/// # Errors
/// Says so.
pub fn check_whole_wildcard(host: &str) -> Result<(), String> {
    if host.contains('*') && host != ANY && !host.starts_with("*.") {
        return Err(format!(
            "{host:?} has a partial wildcard: only a whole first label can be `*`, as in `*.example.com`"
        ));
    }
    Ok(())
}

fn check_length(name: &str) -> Result<(), String> {
    match name.len() {
        0 => Err("the host is empty: give a DNS name".into()),
        1..=255 => Ok(()),
        length => Err(format!("the host has {length} characters; 255 are allowed")),
    }
}

fn check_labels(name: &str, labels: &str) -> Result<(), String> {
    let (rest, last) = labels
        .rsplit_once('.')
        .map_or((None, labels), |(rest, last)| (Some(rest), last));
    if last.parse::<i64>().is_ok() {
        return Err(format!(
            "{name:?} is no host: the last label {last:?} must not be a number"
        ));
    }
    // A name may end in a dot, to say that it is complete.
    let last = (!last.is_empty() || rest.is_none()).then_some(last);
    let mut labels = rest
        .into_iter()
        .flat_map(|rest| rest.split('.'))
        .chain(last);
    match labels.find(|label| !is_dns_label(label)) {
        Some(label) => Err(format!(
            "{name:?} is no host: {label:?} is no DNS label (letters, digits and `-`)"
        )),
        None => Ok(()),
    }
}

fn is_wildcard_label(label: &str) -> bool {
    let rest = label.strip_prefix("*-").or_else(|| label.strip_prefix('*'));
    label.len() <= 63 && (label == ANY || is_dns_label(rest.unwrap_or(label)))
}

#[cfg(test)]
mod tests;
