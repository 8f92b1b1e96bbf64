//! Pods of several kinds in one namespace that takes mutual TLS only: with a sidecar that is an init container, with one that
//! diverts by TPROXY, with health checks of all kinds; each is called in every protocol, from inside and from outside.

use std::time::Duration;

use e2e::echo::{Call, Outcome, Protocol};
use e2e::mesh::eventually;

use super::{SOON, kubectl, pods_are_injected};
use crate::scene::{self, Scene};

const INSIDE: &str = "kinds";
const OUTSIDE: &str = "strangers";
const SERVERS: [&str; 3] = ["native", "tproxy", "probed"];
const PORTS: [(Protocol, u16); 4] = [
    (Protocol::Http1, 8001),
    (Protocol::Http2, 8002),
    (Protocol::Grpc, 8003),
    (Protocol::Tcp, 8004),
];

pub(super) async fn are_in_the_mesh(scene: &Scene) {
    pods_are_injected("istio-init").await;
    let manifests = [
        scene::namespace(INSIDE, true),
        scene::namespace(OUTSIDE, false),
        scene::client(INSIDE, None),
        scene::client(OUTSIDE, None),
        include_str!("../../pods.yaml").to_owned(),
    ];
    scene.apply(&manifests.concat()).await;
    for name in SERVERS {
        let deployment = format!("deployment/{name}");
        let status = ["-n", INSIDE, "rollout", "status", &deployment];
        kubectl(&[&status[..], &["--timeout=180s"]].concat());
    }
    for namespace in [INSIDE, OUTSIDE] {
        let status = ["-n", namespace, "rollout", "status", "deployment/client"];
        kubectl(&[&status[..], &["--timeout=180s"]].concat());
    }
    are_called(scene).await;
    sidecars_are_as_asked_for();
    // Its own container ends, and with it the pod: a sidecar of the usual kind would stay.
    let complete = ["-n", INSIDE, "wait", "job/once", "--for=condition=Complete"];
    kubectl(&[&complete[..], &["--timeout=120s"]].concat());
    a_sick_pod_is_found_out().await;
}

/// Everybody inside is served, nobody from outside is.
async fn are_called(scene: &Scene) {
    let calls: Vec<Call> = SERVERS
        .iter()
        .flat_map(|server| {
            PORTS.map(|(protocol, port)| Call::new(protocol, &format!("{server}.{INSIDE}:{port}")))
        })
        .collect();
    let mut wrong = Vec::new();
    let settled = eventually("calls end as they must", SOON, async || {
        wrong.clear();
        for (client, is_welcome) in [(INSIDE, true), (OUTSIDE, false)] {
            let outcomes: Vec<Outcome> = scene.call(client, &calls).await;
            for (call, outcome) in calls.iter().zip(outcomes) {
                if outcome.is_served() != is_welcome {
                    wrong.push(format!("{client} → {}: {outcome:?}", call.address));
                }
            }
        }
        wrong.is_empty()
    });
    let settled = settled.await;
    assert!(settled.is_ok(), "{}", wrong.join("\n"));
}

fn sidecars_are_as_asked_for() {
    let of = |app: &str, path: &str| {
        let label = format!("app={app}");
        let output = format!("jsonpath={{.items[0].{path}}}");
        kubectl(&["-n", INSIDE, "get", "pods", "-l", &label, "-o", &output])
    };
    let proxy = "[?(@.name==\"istio-proxy\")]";
    let policy = of(
        "native",
        &format!("spec.initContainers{proxy}.restartPolicy"),
    );
    assert_eq!(policy, "Always");
    let mode = "env[?(@.name==\"ISTIO_META_INTERCEPTION_MODE\")].value";
    let mode = of("tproxy", &format!("spec.containers{proxy}.{mode}"));
    assert_eq!(mode, "TPROXY");
    let probed = "spec.containers[?(@.name==\"probed\")]";
    for (probe, path) in [
        ("readiness", "readyz"),
        ("liveness", "livez"),
        ("startup", "startupz"),
    ] {
        let path = format!("/app-health/probed/{path}");
        assert_eq!(
            of("probed", &format!("{probed}.{probe}Probe.httpGet.path")),
            path
        );
    }
}

/// A sidecar takes every connection, so a check that asked the port itself would find everybody well.
async fn a_sick_pod_is_found_out() {
    let ready = |app: &str| {
        let label = format!("app={app}");
        let container =
            format!("jsonpath={{.items[0].status.containerStatuses[?(@.name==\"{app}\")].ready}}");
        kubectl(&["-n", INSIDE, "get", "pods", "-l", &label, "-o", &container])
    };
    let events = |app: &str| {
        let failed = [
            "-n",
            INSIDE,
            "get",
            "events",
            "--field-selector",
            "reason=Unhealthy",
        ];
        let all = kubectl(
            &[
                &failed[..],
                &["-o", "jsonpath={.items[*].involvedObject.name}"],
            ]
            .concat(),
        );
        all.split(' ')
            .any(|name| name.starts_with(&format!("{app}-")))
    };
    for app in ["deaf", "dumb"] {
        let found_out = eventually("the sick pod is found out", SOON, async || {
            tokio::time::sleep(Duration::from_millis(200)).await;
            events(app) && ready(app) == "false"
        });
        found_out.await.unwrap();
    }
}
