//! A container's command, arguments and environment: values from fields, config maps and secrets, and `$(NAME)`.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod};
use serde_json::Value;

use crate::local::store::Store;

/// `PATH` in a container, as images usually set it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a container's fields may refer to.
pub(crate) struct Fields<'a> {
    /// The pod as it is run.
    pub pod: &'a Pod,
    /// Its address.
    pub pod_ip: Ipv4Addr,
    /// Its IPv6 address, if it has one.
    pub second_ip: Option<Ipv6Addr>,
    /// The node's address.
    pub host_ip: Ipv4Addr,
}

/// A value that is not there (yet).
#[derive(Debug, thiserror::Error)]
#[error("env {name}: {problem}")]
pub(crate) struct InvalidEnv {
    name: String,
    problem: String,
}

impl Fields<'_> {
    /// The value of a field path; none if there is no such field.
    pub(crate) fn value(&self, path: &str) -> Option<String> {
        let meta = &self.pod.metadata;
        let spec = self.pod.spec.as_ref();
        if let Some(key) = key_of(path, "metadata.labels") {
            return Some(entry(meta.labels.as_ref(), key));
        }
        if let Some(key) = key_of(path, "metadata.annotations") {
            return Some(entry(meta.annotations.as_ref(), key));
        }
        Some(match path {
            "metadata.name" => meta.name.clone()?,
            "metadata.namespace" => meta.namespace.clone()?,
            "metadata.uid" => meta.uid.clone().unwrap_or_default(),
            "metadata.labels" => lines(meta.labels.as_ref()),
            "metadata.annotations" => lines(meta.annotations.as_ref()),
            "spec.nodeName" => "local".into(),
            "spec.serviceAccountName" => spec
                .and_then(|spec| spec.service_account_name.clone())
                .unwrap_or_else(|| "default".into()),
            "status.podIP" => self.pod_ip.to_string(),
            "status.podIPs" => match self.second_ip {
                Some(second) => format!("{},{second}", self.pod_ip),
                None => self.pod_ip.to_string(),
            },
            "status.hostIP" | "status.hostIPs" => self.host_ip.to_string(),
            _ => return None,
        })
    }
}

/// `metadata.labels['app']` → `app`.
fn key_of<'a>(path: &'a str, field: &str) -> Option<&'a str> {
    let rest = path
        .strip_prefix(field)?
        .strip_prefix('[')?
        .strip_suffix(']')?;
    Some(rest.trim_matches(['\'', '"']))
}

fn entry(map: Option<&BTreeMap<String, String>>, key: &str) -> String {
    map.and_then(|map| map.get(key))
        .cloned()
        .unwrap_or_default()
}

/// `key="value"` lines, as the downward API writes maps.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let line = |(key, value): (&String, &String)| format!("{key}={}", Value::from(value.as_str()));
    map.into_iter()
        .flatten()
        .map(line)
        .collect::<Vec<_>>()
        .join("\n")
}

/// The whole environment of a container, in order.
///
/// # Errors
/// When a value comes from an object that is missing.
pub(crate) fn build_environment(
    container: &Container,
    fields: &Fields<'_>,
    store: &Store,
) -> Result<Vec<(String, String)>, InvalidEnv> {
    let namespace = fields.pod.metadata.namespace.as_deref().unwrap_or_default();
    let pod_name = fields.pod.metadata.name.clone().unwrap_or_default();
    let mut environment = vec![
        ("PATH".to_owned(), PATH.to_owned()),
        ("HOME".to_owned(), "/".to_owned()),
        ("HOSTNAME".to_owned(), pod_name),
    ];
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let (kind, name) = match (&source.config_map_ref, &source.secret_ref) {
            (Some(config_map), _) => ("ConfigMap", &config_map.name),
            (None, Some(secret)) => ("Secret", &secret.name),
            (None, None) => continue,
        };
        for (key, value) in store.data_of(kind, namespace, name).unwrap_or_default() {
            set(
                &mut environment,
                format!("{prefix}{key}"),
                String::from_utf8_lossy(&value).into_owned(),
            );
        }
    }
    for variable in container.env.iter().flatten() {
        let value =
            value_of(variable, &environment, fields, store, namespace).map_err(|problem| {
                InvalidEnv {
                    name: variable.name.clone(),
                    problem,
                }
            })?;
        if let Some(value) = value {
            set(&mut environment, variable.name.clone(), value);
        }
    }
    Ok(environment)
}

fn set(environment: &mut Vec<(String, String)>, name: String, value: String) {
    environment.retain(|(existing, _)| *existing != name);
    environment.push((name, value));
}

fn value_of(
    variable: &EnvVar,
    environment: &[(String, String)],
    fields: &Fields<'_>,
    store: &Store,
    namespace: &str,
) -> Result<Option<String>, String> {
    let Some(source) = &variable.value_from else {
        let text = variable.value.as_deref().unwrap_or_default();
        return Ok(Some(expand(text, environment)));
    };
    if let Some(field) = &source.field_ref {
        let path = &field.field_path;
        return fields
            .value(path)
            .map(Some)
            .ok_or_else(|| format!("there is no field {path}"));
    }
    if let Some(resource) = &source.resource_field_ref {
        return Ok(Some(limit_of(
            fields.pod,
            resource.container_name.as_deref(),
            &resource.resource,
        )));
    }
    let (kind, name, key, is_optional) = match (&source.config_map_key_ref, &source.secret_key_ref)
    {
        (Some(selector), _) => (
            "ConfigMap",
            &selector.name,
            &selector.key,
            selector.optional,
        ),
        (None, Some(selector)) => ("Secret", &selector.name, &selector.key, selector.optional),
        (None, None) => return Err("valueFrom names no source".into()),
    };
    let value = store
        .data_of(kind, namespace, name)
        .and_then(|mut data| data.remove(key.as_str()));
    match value {
        Some(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
        None if is_optional == Some(true) => Ok(None),
        None => Err(format!(
            "{kind} {namespace}/{name} with key {key} does not exist"
        )),
    }
}

/// A container's limit of a resource, in whole units; nothing here enforces limits, so without one the answer is 0.
fn limit_of(pod: &Pod, container: Option<&str>, resource: &str) -> String {
    let name = resource
        .trim_start_matches("limits.")
        .trim_start_matches("requests.");
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let found = containers
        .filter(|candidate| container.is_none_or(|name| candidate.name == name))
        .find_map(|candidate| candidate.resources.as_ref()?.limits.as_ref()?.get(name));
    let Some(quantity) = found else {
        return "0".into();
    };
    match quantity.0.strip_suffix('m') {
        Some(milli) => milli
            .parse::<u64>()
            .map_or(0, |milli| milli.div_ceil(1000))
            .to_string(),
        None => quantity.0.clone(),
    }
}

/// Replaces `$(NAME)` where the variable exists; `$$(NAME)` stays as `$(NAME)`.
pub(crate) fn expand(text: &str, environment: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(position) = rest.find('$') {
        out.push_str(&rest[..position]);
        let after = &rest[position + 1..];
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let reference = after
            .strip_prefix('(')
            .and_then(|inner| inner.split_once(')'));
        let value = reference.and_then(|(name, tail)| {
            let (_, value) = environment
                .iter()
                .rev()
                .find(|(existing, _)| existing == name)?;
            Some((value, tail))
        });
        match value {
            Some((value, tail)) => {
                out.push_str(value);
                rest = tail;
            }
            None => {
                out.push('$');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_expanded_as_kubernetes_does() {
        let environment = vec![("POD".to_owned(), "a".to_owned())];
        assert_eq!(expand("x.$(POD).svc", &environment), "x.a.svc");
        assert_eq!(
            expand("$(NONE) $$(POD) $ $(POD", &environment),
            "$(NONE) $(POD) $ $(POD"
        );
    }

    #[test]
    fn fields_are_read_by_path() {
        let mut pod = Pod::default();
        pod.metadata.name = Some("p".into());
        pod.metadata.labels = Some(BTreeMap::from([("app".into(), "web".into())]));
        let fields = Fields {
            pod: &pod,
            pod_ip: Ipv4Addr::LOCALHOST,
            second_ip: Some(Ipv6Addr::LOCALHOST),
            host_ip: Ipv4Addr::LOCALHOST,
        };
        assert_eq!(fields.value("metadata.labels['app']").unwrap(), "web");
        assert_eq!(fields.value("metadata.labels").unwrap(), "app=\"web\"");
        assert_eq!(fields.value("spec.serviceAccountName").unwrap(), "default");
        assert_eq!(fields.value("status.podIP").unwrap(), "127.0.0.1");
        assert_eq!(fields.value("status.podIPs").unwrap(), "127.0.0.1,::1");
        assert!(fields.value("spec.nothing").is_none());
    }
}
