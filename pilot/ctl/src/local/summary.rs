//! What `local up` tells in the end: where things are, what is switched off, or what it still waits for.

use std::time::Duration;

use serde_json::Value;

use super::{progress::is_ready, values::is_on};

/// What is not there yet, and where to look.
pub(super) fn lateness(rows: &[Value], is_configuring: bool, patience: Duration) -> String {
    let late = rows.iter().filter(|row| !is_ready(row));
    let mut late: Vec<String> = late
        .map(|row| {
            let text = |key: &str| row[key].as_str().unwrap_or_default();
            let reason = [text("status"), text("message")];
            let reason: Vec<&str> = reason.into_iter().filter(|text| !text.is_empty()).collect();
            format!(
                "{}/{} ({})",
                text("namespace"),
                text("name"),
                reason.join(": ")
            )
        })
        .collect();
    if is_configuring {
        late.push("configuration (galley has not taken it)".to_owned());
    }
    format!(
        "\nNot ready after {} s: {}.\nStill waiting; `biremectl local logs NAME` says more, Ctrl-C ends everything.\n",
        patience.as_secs(),
        late.join(", ")
    )
}

/// The components that are switched off, each with what is missing without it.
fn missing(values: &Value) -> String {
    const WITHOUT: &[(&str, &str)] = &[
        (
            "pilot",
            "proxies get no configuration, so nothing is served",
        ),
        (
            "galley",
            "configuration is not checked; pilot and mixer read it from files",
        ),
        ("security", "no certificates, so no mutual TLS"),
        ("mixer.policy", "no checks and quotas"),
        ("mixer.telemetry", "no mesh metrics"),
        ("sidecarInjectorWebhook", "new pods get no sidecar"),
    ];
    let off = WITHOUT
        .iter()
        .filter(|(component, _)| !is_on(values, &format!("{component}.enabled")));
    off.map(|(component, without)| format!("Switched off: {component} ({without}).\n"))
        .collect()
}

pub(super) fn summary(values: &Value, is_sample: bool, seconds: f64) -> String {
    let mut text = format!("\nThe mesh is up after {seconds:.1} s.\n");
    let mut line = |name: &str, port: &str, switch: &str, path: &str| {
        let number = values["local"]["hostPorts"][port]
            .as_u64()
            .unwrap_or_default();
        if number != 0 && is_on(values, switch) && is_on(values, "pilot.enabled") {
            text.push_str(&format!("  {name:<18} http://127.0.0.1:{number}{path}\n"));
        }
    };
    line(
        "ingress gateway",
        "http",
        "gateways.istio-ingressgateway.enabled",
        "",
    );
    if is_sample {
        line(
            "bookinfo",
            "http",
            "gateways.istio-ingressgateway.enabled",
            "/productpage",
        );
    }
    line(
        "mesh metrics",
        "metrics",
        "mixer.telemetry.enabled",
        "/metrics",
    );
    line("pilot", "pilot", "pilot.enabled", "/");
    text.push_str(&missing(values));
    text.push_str("`biremectl local status` shows the components; Ctrl-C (or `biremectl local down`) ends everything.\n");
    text
}
