//! Whether a pod is intercepted, and what of it: Istio 1.4's decision, from the pod as the API server knows it. Pure.
//!
//! QUIRK: 1.4 lets a pod with a wrong annotation run without interception, and says so in the node's log. Here it does not
//! start, and says why in its events.

use clap::Parser as _;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use crate::options::Options;

/// Asks for or declines injection: an annotation, or a label as today.
const INJECT: &str = "sidecar.istio.io/inject";
/// Written by the injector into pods that it has injected.
const STATUS: &str = "sidecar.istio.io/status";
/// Port of the agent, which the kubelet asks: never intercepted.
const STATUS_PORT: &str = "status.sidecar.istio.io/port";
/// The container with the proxy.
const PROXY_CONTAINER: &str = "istio-proxy";
/// The init container that does what we would do.
const INIT_CONTAINER: &str = "istio-init";
/// Where the agent answers DNS, its environment says so.
const DNS_CAPTURE: &str = "ISTIO_META_DNS_CAPTURE";

/// The annotations that say what is intercepted, the flag of `istio-iptables` for each, and what holds without.
const FLAGS: &[(&str, &str, &str)] = &[
    ("sidecar.istio.io/interceptionMode", "-m", "REDIRECT"),
    (
        "traffic.sidecar.istio.io/includeOutboundIPRanges",
        "-i",
        "*",
    ),
    ("traffic.sidecar.istio.io/excludeOutboundIPRanges", "-x", ""),
    ("traffic.sidecar.istio.io/includeInboundPorts", "-b", "*"),
    ("traffic.sidecar.istio.io/excludeOutboundPorts", "-o", ""),
    ("traffic.sidecar.istio.io/kubevirtInterfaces", "-k", ""),
];
/// Inbound ports to leave alone, to which the agent's own is added.
const EXCLUDED_INBOUND: &str = "traffic.sidecar.istio.io/excludeInboundPorts";

/// The decision about a pod.
#[derive(Debug)]
pub enum Decision {
    /// Intercept it, so.
    Intercept(Box<Options>),
    /// Leave it alone, because.
    Skip(&'static str),
}

/// Decides about a pod.
///
/// # Errors
/// When an annotation that says what to intercept cannot be meant.
pub fn decide(pod: &Pod) -> Result<Decision, String> {
    let Some(spec) = &pod.spec else {
        return Ok(Decision::Skip("it has no spec"));
    };
    if let Some(reason) = reason_to_skip(pod, spec) {
        return Ok(Decision::Skip(reason));
    }
    let arguments = arguments(pod, spec);
    let options = Options::try_parse_from(&arguments)
        .map_err(|error| error.to_string().replace('\n', " "))?;
    Ok(Decision::Intercept(Box::new(options)))
}

fn reason_to_skip(pod: &Pod, spec: &PodSpec) -> Option<&'static str> {
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let declines = |text: &str| {
        let text = text.to_ascii_lowercase();
        !text.is_empty() && !["y", "yes", "true", "on"].contains(&text.as_str())
    };
    let label = pod
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(INJECT));
    let wish = label
        .map(String::as_str)
        .or_else(|| annotation(pod, INJECT));
    // A native sidecar is an init container that stays.
    let has_proxy = spec.containers.len() > 1 || named(init, PROXY_CONTAINER).is_some();
    if spec.host_network == Some(true) {
        Some("it uses the host's network")
    } else if named(init, INIT_CONTAINER).is_some() {
        Some("its init container istio-init programs the rules")
    } else if !has_proxy {
        Some("it has no second container, so no proxy")
    } else if wish.is_some_and(declines) {
        Some("its annotation sidecar.istio.io/inject says no")
    } else if annotation(pod, STATUS).is_none() {
        Some("it was not injected")
    } else if annotation(pod, FLAGS[0].0) == Some("NONE") {
        Some("its interception mode is NONE")
    } else {
        None
    }
}

/// As the init container would be called. Every flag is given, so that nothing of the node's environment counts.
fn arguments(pod: &Pod, spec: &PodSpec) -> Vec<String> {
    let mut arguments: Vec<String> = "istio-iptables -p 15001 -z 15006 -u 1337 -g 1337"
        .split(' ')
        .map(str::to_owned)
        .collect();
    for (key, flag, default) in FLAGS {
        let value = annotation(pod, key).unwrap_or(default);
        arguments.extend([(*flag).to_owned(), value.to_owned()]);
    }
    let own = annotation(pod, STATUS_PORT).unwrap_or("15020");
    let others = annotation(pod, EXCLUDED_INBOUND).unwrap_or_default();
    let excluded = if own == "0" {
        others.to_owned()
    } else {
        format!("{others},{own}")
    };
    arguments.extend(["-d".to_owned(), excluded]);
    arguments.push(format!("--redirect-dns={}", answers_dns(spec)));
    arguments
}

fn answers_dns(spec: &PodSpec) -> bool {
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let proxy = named(&spec.containers, PROXY_CONTAINER).or_else(|| named(init, PROXY_CONTAINER));
    let environment = proxy
        .and_then(|proxy| proxy.env.as_deref())
        .unwrap_or_default();
    environment
        .iter()
        .any(|variable| variable.name == DNS_CAPTURE && variable.value.as_deref() == Some("true"))
}

fn named<'a>(containers: &'a [Container], name: &str) -> Option<&'a Container> {
    containers.iter().find(|container| container.name == name)
}

fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata
        .annotations
        .as_ref()?
        .get(key)
        .map(String::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::rules::{Family, build};

    fn pod(change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = json!({
            "metadata": {"annotations": {STATUS: "{}"}, "labels": {}},
            "spec": {"containers": [{"name": "web"}, {"name": "istio-proxy", "env": []}], "initContainers": []},
        });
        change(&mut pod);
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn pods_that_were_injected_are_intercepted_and_no_others() {
        type Change = fn(&mut Value);
        let cases: &[(&str, Change, bool)] = &[
            ("as injected", |_| {}, true),
            (
                "with istio-init",
                |pod| pod["spec"]["initContainers"] = json!([{"name": "istio-init"}]),
                false,
            ),
            (
                "with istio-validation",
                |pod| pod["spec"]["initContainers"] = json!([{"name": "istio-validation"}]),
                true,
            ),
            (
                "one container",
                |pod| pod["spec"]["containers"] = json!([{"name": "web"}]),
                false,
            ),
            (
                "a native sidecar",
                |pod| {
                    pod["spec"]["containers"] = json!([{"name": "web"}]);
                    pod["spec"]["initContainers"] =
                        json!([{"name": "istio-proxy", "restartPolicy": "Always"}]);
                },
                true,
            ),
            (
                "declined",
                |pod| pod["metadata"]["annotations"][INJECT] = json!("False"),
                false,
            ),
            (
                "declined by label",
                |pod| pod["metadata"]["labels"][INJECT] = json!("false"),
                false,
            ),
            (
                "asked for",
                |pod| pod["metadata"]["annotations"][INJECT] = json!("true"),
                true,
            ),
            (
                "not injected",
                |pod| pod["metadata"]["annotations"] = json!({}),
                false,
            ),
            (
                "mode NONE",
                |pod| pod["metadata"]["annotations"][FLAGS[0].0] = json!("NONE"),
                false,
            ),
            (
                "the host's network",
                |pod| pod["spec"]["hostNetwork"] = json!(true),
                false,
            ),
        ];
        for (name, change, want) in cases {
            let decision = decide(&pod(change)).unwrap();
            assert_eq!(
                matches!(decision, Decision::Intercept(_)),
                *want,
                "{name}: {decision:?}"
            );
        }
    }

    #[test]
    fn annotations_say_what_is_intercepted_as_flags_do() {
        let pod = pod(|pod| {
            let annotations = &mut pod["metadata"]["annotations"];
            annotations["sidecar.istio.io/interceptionMode"] = json!("TPROXY");
            annotations["traffic.sidecar.istio.io/includeOutboundIPRanges"] = json!("10.0.0.0/8");
            annotations["traffic.sidecar.istio.io/excludeOutboundIPRanges"] = json!("10.9.0.0/16");
            annotations["traffic.sidecar.istio.io/includeInboundPorts"] = json!("*");
            annotations["traffic.sidecar.istio.io/excludeInboundPorts"] = json!("9000");
            annotations["traffic.sidecar.istio.io/excludeOutboundPorts"] = json!("3306");
            annotations["traffic.sidecar.istio.io/kubevirtInterfaces"] = json!("net1");
            annotations["status.sidecar.istio.io/port"] = json!("15099");
            pod["spec"]["containers"][1]["env"] = json!([{"name": DNS_CAPTURE, "value": "true"}]);
        });
        let Decision::Intercept(options) = decide(&pod).unwrap() else {
            panic!("it is not intercepted");
        };
        let flags = [
            "istio-iptables",
            "-m",
            "TPROXY",
            "-i",
            "10.0.0.0/8",
            "-x",
            "10.9.0.0/16",
            "-b",
            "*",
            "-d",
            "9000,15099",
            "-o",
            "3306",
            "-k",
            "net1",
            "--redirect-dns",
        ];
        let want = Options::parse_from(flags);
        assert_eq!(build(&options, Family::V4), build(&want, Family::V4));
    }

    #[test]
    fn a_wish_that_cannot_be_meant_is_named() {
        let pod = pod(|pod| {
            pod["metadata"]["annotations"]["traffic.sidecar.istio.io/includeInboundPorts"] =
                json!("http");
        });
        let error = decide(&pod).unwrap_err();
        assert!(error.contains("\"http\" is not a port"), "{error}");
    }
}
