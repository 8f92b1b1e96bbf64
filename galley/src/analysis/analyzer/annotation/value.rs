//! The values of annotations that have a form: what the injector refuses, analysis tells before.

use ipnet::IpNet;
use std::net::IpAddr;

/// Whether the annotation's value can be read.
pub(super) fn check(key: &str, value: &str) -> Result<(), String> {
    match key {
        "sidecar.istio.io/interceptionMode" => match value {
            "REDIRECT" | "TPROXY" | "NONE" => Ok(()),
            _ => Err(format!("{value:?} is none of REDIRECT, TPROXY, NONE")),
        },
        "status.sidecar.istio.io/port" => port(value),
        "readiness.status.sidecar.istio.io/initialDelaySeconds"
        | "readiness.status.sidecar.istio.io/periodSeconds"
        | "readiness.status.sidecar.istio.io/failureThreshold" => value
            .parse::<u32>()
            .map(drop)
            .map_err(|_| format!("{value:?} is no whole number")),
        "traffic.sidecar.istio.io/includeOutboundIPRanges" if value == "*" => Ok(()),
        "traffic.sidecar.istio.io/includeOutboundIPRanges"
        | "traffic.sidecar.istio.io/excludeOutboundIPRanges" => each(value, range),
        "traffic.sidecar.istio.io/includeInboundPorts" if value == "*" => Ok(()),
        "traffic.sidecar.istio.io/includeInboundPorts"
        | "traffic.sidecar.istio.io/excludeInboundPorts"
        | "traffic.sidecar.istio.io/excludeOutboundPorts"
        | "traffic.sidecar.istio.io/includeOutboundPorts" => each(value, port),
        "prometheus.istio.io/merge-metrics" => match value {
            "1" | "t" | "T" | "TRUE" | "true" | "True" | "0" | "f" | "F" | "FALSE" | "false"
            | "False" => Ok(()),
            _ => Err(format!("{value:?} is neither true nor false")),
        },
        "proxy.istio.io/config" => {
            proto::yaml::from_str::<proto::istio::mesh::v1alpha1::ProxyConfig>(value)
                .map(drop)
                .map_err(|error| error.to_string())
        }
        _ => Ok(()),
    }
}

fn each(list: &str, check: fn(&str) -> Result<(), String>) -> Result<(), String> {
    list.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .try_for_each(check)
}

fn port(text: &str) -> Result<(), String> {
    text.parse::<u16>()
        .map(drop)
        .map_err(|_| format!("{text:?} is no port"))
}

fn range(text: &str) -> Result<(), String> {
    let is_range = text.parse::<IpNet>().is_ok() || text.parse::<IpAddr>().is_ok();
    is_range
        .then_some(())
        .ok_or_else(|| format!("{text:?} is no range of addresses"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_with_a_form_are_checked() {
        for (key, good, bad) in [
            ("sidecar.istio.io/interceptionMode", "TPROXY", "tproxy"),
            ("status.sidecar.istio.io/port", "15020", "70000"),
            (
                "traffic.sidecar.istio.io/includeOutboundIPRanges",
                "10.0.0.0/8,::/0",
                "ten",
            ),
            ("traffic.sidecar.istio.io/excludeInboundPorts", "1, 2", "*"),
            ("prometheus.istio.io/merge-metrics", "true", "yes"),
            ("proxy.istio.io/config", "concurrency: 2", "nonsense: 2"),
        ] {
            assert!(check(key, good).is_ok(), "{key} {good}");
            assert!(check(key, bad).is_err(), "{key} {bad}");
        }
    }
}
