//! The annotations by which a pod says how it wants to be injected, and what each may hold. A value that cannot be meant
//! fails the admission; a key that looks like ours but is not known is only warned about.

use ipnet::IpNet;
use serde_json::Value;

/// Asks for or declines injection.
pub const INJECT: &str = "sidecar.istio.io/inject";
/// Written by the injector: what was added, so that it can be taken out again.
pub const STATUS: &str = "sidecar.istio.io/status";
/// Whether HTTP health checks go through the agent.
pub const REWRITE_PROBES: &str = "sidecar.istio.io/rewriteAppHTTPProbers";

/// Settings of the proxy, laid over those of the mesh: YAML.
pub const PROXY_CONFIG: &str = "proxy.istio.io/config";
/// Whether the application's metrics are served by the agent, together with the proxy's.
pub const MERGE_METRICS: &str = "prometheus.istio.io/merge-metrics";

/// What an annotation's value may be.
#[derive(Clone, Copy)]
enum Form {
    Any,
    Number,
    InterceptionMode,
    AuthPolicy,
    JsonMap,
    Ports,
    PortsOrAll,
    Blocks,
    BlocksOrAll,
}

const KNOWN: &[(&str, Form)] = &[
    (INJECT, Form::Any),
    (STATUS, Form::Any),
    (REWRITE_PROBES, Form::Any),
    (PROXY_CONFIG, Form::Any),
    (MERGE_METRICS, Form::Any),
    ("sidecar.istio.io/discoveryAddress", Form::Any),
    ("sidecar.istio.io/proxyImage", Form::Any),
    ("sidecar.istio.io/proxyCPU", Form::Any),
    ("sidecar.istio.io/proxyMemory", Form::Any),
    ("sidecar.istio.io/proxyCPULimit", Form::Any),
    ("sidecar.istio.io/proxyMemoryLimit", Form::Any),
    ("sidecar.istio.io/controlPlaneAuthPolicy", Form::AuthPolicy),
    ("sidecar.istio.io/bootstrapOverride", Form::Any),
    ("sidecar.istio.io/userVolume", Form::JsonMap),
    ("sidecar.istio.io/userVolumeMount", Form::JsonMap),
    ("sidecar.istio.io/nativeSidecar", Form::Any),
    ("sidecar.istio.io/logLevel", Form::Any),
    ("sidecar.istio.io/componentLogLevel", Form::Any),
    ("sidecar.istio.io/interceptionMode", Form::InterceptionMode),
    ("sidecar.istio.io/statsInclusionPrefixes", Form::Any),
    ("sidecar.istio.io/statsInclusionSuffixes", Form::Any),
    ("sidecar.istio.io/statsInclusionRegexps", Form::Any),
    ("status.sidecar.istio.io/port", Form::Number),
    (
        "readiness.status.sidecar.istio.io/initialDelaySeconds",
        Form::Number,
    ),
    (
        "readiness.status.sidecar.istio.io/periodSeconds",
        Form::Number,
    ),
    (
        "readiness.status.sidecar.istio.io/failureThreshold",
        Form::Number,
    ),
    (
        "readiness.status.sidecar.istio.io/applicationPorts",
        Form::Ports,
    ),
    (
        "traffic.sidecar.istio.io/includeOutboundIPRanges",
        Form::BlocksOrAll,
    ),
    (
        "traffic.sidecar.istio.io/excludeOutboundIPRanges",
        Form::Blocks,
    ),
    (
        "traffic.sidecar.istio.io/includeInboundPorts",
        Form::PortsOrAll,
    ),
    ("traffic.sidecar.istio.io/excludeInboundPorts", Form::Ports),
    ("traffic.sidecar.istio.io/excludeOutboundPorts", Form::Ports),
    ("traffic.sidecar.istio.io/kubevirtInterfaces", Form::Any),
    ("policy.istio.io/check", Form::Any),
    ("policy.istio.io/lang", Form::Any),
    ("policy.istio.io/checkRetries", Form::Any),
    ("policy.istio.io/checkBaseRetryWaitTime", Form::Any),
    ("policy.istio.io/checkMaxRetryWaitTime", Form::Any),
];

/// Every annotation that a pod may have.
pub fn known() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().map(|(key, _)| *key)
}

/// A value that cannot be meant.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("annotation {key}: {value:?} is not {wanted}")]
pub struct InvalidAnnotation {
    /// The annotation.
    pub key: String,
    /// Its value.
    pub value: String,
    /// What would be right.
    pub wanted: &'static str,
}

/// Checks a pod's annotations. Unknown ones that look like ours are returned.
///
/// # Errors
/// The first annotation whose value cannot be meant.
pub fn check(annotations: &Value) -> Result<Vec<String>, InvalidAnnotation> {
    let mut unknown = Vec::new();
    for (key, value) in annotations.as_object().into_iter().flatten() {
        let value = value.as_str().unwrap_or_default();
        match KNOWN.iter().find(|(known, _)| known == key) {
            Some((_, form)) => check_form(*form, value).map_err(|wanted| InvalidAnnotation {
                key: key.clone(),
                value: value.to_owned(),
                wanted,
            })?,
            None if key.contains("sidecar.istio.io/") => unknown.push(key.clone()),
            None => {}
        }
    }
    Ok(unknown)
}

fn check_form(form: Form, value: &str) -> Result<(), &'static str> {
    let items = || {
        value
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
    };
    let is_ports = || items().all(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    let is_blocks = || items().all(|block| block.parse::<IpNet>().is_ok());
    let is_all = value.trim() == "*";
    match form {
        Form::Any => Ok(()),
        Form::Number => value
            .parse::<u32>()
            .map(drop)
            .map_err(|_| "a number, 0 or greater"),
        Form::InterceptionMode => ["REDIRECT", "TPROXY", "NONE"]
            .contains(&value)
            .then_some(())
            .ok_or("REDIRECT, TPROXY or NONE"),
        Form::AuthPolicy => ["NONE", "MUTUAL_TLS"]
            .contains(&value)
            .then_some(())
            .ok_or("NONE or MUTUAL_TLS"),
        Form::JsonMap => serde_json::from_str::<serde_json::Map<String, Value>>(value)
            .map(drop)
            .map_err(|_| "a JSON object, by name"),
        Form::Ports => is_ports()
            .then_some(())
            .ok_or("a list of ports such as 80,443"),
        Form::PortsOrAll => (is_all || is_ports())
            .then_some(())
            .ok_or("* or a list of ports such as 80,443"),
        Form::Blocks => is_blocks()
            .then_some(())
            .ok_or("a list of address blocks such as 10.0.0.0/8"),
        Form::BlocksOrAll => (is_all || is_blocks())
            .then_some(())
            .ok_or("* or a list of address blocks such as 10.0.0.0/8"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_that_cannot_be_meant_are_refused() {
        for (key, value, good) in [
            ("traffic.sidecar.istio.io/includeInboundPorts", "*", true),
            (
                "traffic.sidecar.istio.io/includeInboundPorts",
                "80, 443",
                true,
            ),
            ("traffic.sidecar.istio.io/includeInboundPorts", "", true),
            (
                "traffic.sidecar.istio.io/includeInboundPorts",
                "80,http",
                false,
            ),
            ("traffic.sidecar.istio.io/excludeInboundPorts", "*", false),
            (
                "traffic.sidecar.istio.io/excludeOutboundIPRanges",
                "10.0.0.0/8",
                true,
            ),
            (
                "traffic.sidecar.istio.io/excludeOutboundIPRanges",
                "10.0.0.0",
                false,
            ),
            ("sidecar.istio.io/interceptionMode", "redirect", false),
            ("sidecar.istio.io/interceptionMode", "NONE", true),
            ("status.sidecar.istio.io/port", "-1", false),
            ("sidecar.istio.io/userVolume", "{\"data\":{}}", true),
            ("sidecar.istio.io/userVolume", "[]", false),
            ("sidecar.istio.io/controlPlaneAuthPolicy", "MTLS", false),
            ("example.com/anything", "x", true),
        ] {
            assert_eq!(check(&json!({key: value})).is_ok(), good, "{key}: {value}");
        }
    }

    #[test]
    fn a_key_that_looks_like_ours_is_warned_about() {
        assert_eq!(
            check(&json!({"sidecar.istio.io/injekt": "x"})),
            Ok(vec!["sidecar.istio.io/injekt".to_owned()])
        );
    }
}
