//! Two gateways with the same servers, of which one is an Envoy.

use e2e::echo::{Call, Outcome, Protocol, Tls};
use e2e::mesh::eventually;
use serde_json::{Value, json};

use super::row::is_by;
use crate::SETTLED;
use crate::scene::Scene;

const NAMESPACE: &str = "istio-system";
/// The mesh's own, and the one that is an Envoy.
const GATEWAYS: [&str; 2] = ["istio-ingressgateway", "istio-envoygateway"];
const PORTS: [(&str, u16); 3] = [("http2", 80), ("tcp", 31400), ("tls", 15443)];

/// Adds the second gateway, which is the first one but for its name and its proxy, and both their servers. Both have the label by
/// which servers and Ingresses choose them.
pub(super) async fn add(scene: &Scene, envoy: &str) {
    let [own, other] = GATEWAYS;
    let of = format!("deploy/{own}");
    let shown = ["local", "get", &of, "-n", NAMESPACE, "-o", "json"];
    let shown = scene.mesh.ctl_ok(&shown).await.unwrap();
    let text = shown.replace(own, other);
    let mut deployment: Value = serde_json::from_str(&text).unwrap();
    let name = deployment["metadata"]["name"].clone();
    let template = &mut deployment["spec"]["template"]["spec"];
    let proxy = &mut template["containers"][0];
    let config = json!({"binaryPath": envoy}).to_string();
    let environment = proxy["env"].as_array_mut().unwrap();
    environment.push(json!({"name": "PROXY_CONFIG", "value": config}));
    for port in proxy["ports"].as_array_mut().unwrap() {
        port.as_object_mut().unwrap().remove("hostPort");
    }
    template["serviceAccountName"] = json!(format!("{own}-service-account"));
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
                "spec": {"selector": {"app": name}, "ports": ports},
            },
        ],
    });
    let own = [
        include_str!("../../routing/gateway.yaml"),
        include_str!("../../routing/ingress.yaml"),
    ];
    let text = format!("---\n{objects}\n") + &own.concat();
    scene.apply(&text).await;
}

/// Routes of several resources are one; names are taken from the namespaces that may have them; plain HTTP is sent on to TLS;
/// lines are lines; clusters are asked for by names of TLS, whose servers `roots` vouch for; and Ingresses are followed.
pub(super) async fn holds(scene: &Scene, roots: &str) {
    let mut seen = Vec::new();
    let all = eventually("both gateways are as they say", SETTLED, async || {
        seen.clear();
        for name in GATEWAYS {
            seen.push(scene.call("outside", &calls(name, roots)).await);
        }
        seen.iter().all(|outcomes| are_as_said(outcomes))
    });
    assert!(all.await.is_ok(), "{seen:#?}");
}

fn calls(name: &str, roots: &str) -> Vec<Call> {
    let at = |port: u16| format!("{name}.{NAMESPACE}:{port}");
    let http = |host: &str, target: &str| {
        Call::new(Protocol::Http1, &at(80))
            .host(host)
            .target(target)
    };
    let through = |cluster: &str| {
        let tls = Tls {
            server_name: format!("outbound_.443_.{cluster}.servers.svc.cluster.local"),
            roots: roots.to_owned(),
            ..Tls::default()
        };
        Call::new(Protocol::Http1, &at(15443)).tls(tls)
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
        through("_.passed"),
        through("v2_.passed"),
        // The mesh does not speak its own TLS with it.
        through("_.foreign"),
        through("_.unknown"),
        http("ingress.test", "/exact"),
        http("ingress.test", "/exact/x"),
        http("ingress.test", "/below/x"),
        http("ingress.test", "/below-not"),
        http("others-ingress.test", "/"),
    ]
}

fn are_as_said(outcomes: &[Outcome]) -> bool {
    let (merged, [through, to_subset, to_foreign, to_nobody, ingress @ ..]) = outcomes.split_at(8)
    else {
        return false;
    };
    let [exact, not_exact, below, not_below, others] = ingress else {
        return false;
    };
    are_merged(merged)
        && through.is_served()
        && is_by("v2", to_subset)
        && !to_foreign.is_served()
        && !to_nobody.is_served()
        && is_by("v2", exact)
        && is_by("v1", not_exact)
        && is_by("v2", below)
        && is_by("v1", not_below)
        && others.status == Some(404)
}

fn are_merged(outcomes: &[Outcome]) -> bool {
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
