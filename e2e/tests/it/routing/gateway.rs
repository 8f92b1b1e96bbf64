//! Two gateways with the same servers, of which one is an Envoy.

use e2e::echo::{Call, Outcome, Protocol};
use e2e::mesh::eventually;
use serde_json::{Value, json};

use super::row::is_by;
use crate::SETTLED;
use crate::scene::Scene;

const NAMESPACE: &str = "istio-system";
/// The mesh's own, and the one that is an Envoy: name of the Gateway resource, and of everything else.
const GATEWAYS: [(&str, &str); 2] = [("ours", "ingressgateway"), ("envoys", "envoygateway")];
const PORTS: [(&str, u16); 2] = [("http2", 80), ("tcp", 31400)];

/// Adds the second gateway, which is the first one but for its name and its proxy, and both their servers.
pub(super) async fn add(scene: &Scene, envoy: &str) {
    let (own, other) = (GATEWAYS[0].1, GATEWAYS[1].1);
    let of = format!("deploy/istio-{own}");
    let shown = ["local", "get", &of, "-n", NAMESPACE, "-o", "json"];
    let shown = scene.mesh.ctl_ok(&shown).await.unwrap();
    let text = shown.replace(own, other);
    let mut deployment: Value = serde_json::from_str(&text).unwrap();
    let (name, template) = (
        deployment["metadata"]["name"].clone(),
        &mut deployment["spec"]["template"]["spec"],
    );
    let proxy = &mut template["containers"][0];
    let config = json!({"binaryPath": envoy}).to_string();
    let environment = proxy["env"].as_array_mut().unwrap();
    environment.push(json!({"name": "PROXY_CONFIG", "value": config}));
    for port in proxy["ports"].as_array_mut().unwrap() {
        port.as_object_mut().unwrap().remove("hostPort");
    }
    template["serviceAccountName"] = json!(format!("istio-{own}-service-account"));
    let ports = PORTS.map(|(name, port)| json!({"name": name, "port": port}));
    let objects = json!({
        "apiVersion": "v1", "kind": "List",
        "items": [
            {
                "apiVersion": "apps/v1", "kind": "Deployment",
                "metadata": {"name": name, "namespace": NAMESPACE}, "spec": deployment["spec"],
            },
            {
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {"selector": {"istio": other}, "ports": ports},
            },
        ],
    });
    let mut text = format!("---\n{objects}\n");
    for (name, selector) in GATEWAYS {
        text += &include_str!("../../routing-gateway.yaml")
            .replace("{{name}}", name)
            .replace("{{selector}}", selector);
    }
    scene.apply(&text).await;
}

/// Routes of several resources are one; names are taken from the namespaces that may have them; plain HTTP is sent on to TLS;
/// and lines are lines.
pub(super) async fn holds(scene: &Scene) {
    let mut seen = Vec::new();
    let all = eventually("both gateways are as they say", SETTLED, async || {
        seen.clear();
        for (_, name) in GATEWAYS {
            seen.push(scene.call("outside", &calls(name)).await);
        }
        seen.iter().all(|outcomes| are_as_said(outcomes))
    });
    assert!(all.await.is_ok(), "{seen:#?}");
}

fn calls(name: &str) -> Vec<Call> {
    let at = |port: u16| format!("istio-{name}.{NAMESPACE}:{port}");
    let http = |host: &str, target: &str| {
        Call::new(Protocol::Http1, &at(80))
            .host(host)
            .target(target)
    };
    vec![
        http("merged.test", "/a"),
        http("merged.test", "/b"),
        http("merged.test", "/c"),
        http("namespaced.test", "/"),
        http("foreign.test", "/"),
        http("unknown.test", "/"),
        http("safe.test", "/x"),
        Call::new(Protocol::Tcp, &at(31400)),
    ]
}

fn are_as_said(outcomes: &[Outcome]) -> bool {
    let [a, b, neither, own, foreign, unknown, safe, line] = outcomes else {
        return false;
    };
    let nobody = [neither, foreign, unknown];
    is_by("v1", a)
        && is_by("v2", b)
        && is_by("v1", own)
        && nobody.iter().all(|outcome| outcome.status == Some(404))
        && safe.status == Some(301)
        && safe.text.contains("\"location\": \"https://safe.test/x\"")
        && is_by("v2", line)
}
