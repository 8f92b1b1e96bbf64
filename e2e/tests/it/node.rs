//! The mesh on a whole node, in pods: `e2e/test.sh node`. The demo profile runs bookinfo with injected sidecars, once with the init
//! container that diverts and once with the node's CNI plugin; the images are made of this build's programs. Here are the very
//! cases that a local mesh is tested with, and what only a node shows: [`pods`] of several kinds, [`certificates`] that the
//! kubelet brings. Everything is one cluster's, so the tests run one after another.

mod certificates;
mod pods;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use e2e::mesh::{Mesh, eventually, project};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::policy::CHECKS;
use crate::scene::Scene;
use crate::{edge, failure, has_details, names, policy, security, settles, traffic};

const NAMESPACE: &str = "istio-system";
const SOON: Duration = Duration::from_secs(120);
const GATEWAY: &str = "istio-ingressgateway";
const WORKLOADS: &[&str] = &[
    "details-v1",
    "productpage-v1",
    "ratings-v1",
    "reviews-v1",
    "reviews-v2",
    "reviews-v3",
];
/// Images of others cannot be had here.
const OWN_IMAGES_ONLY: &str =
    "prometheus.enabled=false,grafana.enabled=false,tracing.enabled=false";
const CNI: &str = "istio_cni.enabled=true";
/// Of the mesh's kinds what a case may leave behind; what the charts have made is labelled.
const KINDS: &str = "virtualservices.networking.istio.io,destinationrules.networking.istio.io,gateways.networking.istio.io,\
    serviceentries.networking.istio.io,peerauthentications.security.istio.io,requestauthentications.security.istio.io,\
    authorizationpolicies.security.istio.io";

/// What a program says, or why it failed.
fn run(program: &Path, arguments: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(project())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Whoever has no use for it does not read it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn kubectl(arguments: &[&str]) -> String {
    run(Path::new("kubectl"), arguments, "").unwrap_or_else(|error| {
        let pods = run(
            Path::new("kubectl"),
            &["get", "pods", "--all-namespaces"],
            "",
        );
        panic!("{arguments:?}: {error}\n{}", pods.unwrap_or_default())
    })
}

fn helm(arguments: &[&str], values: &str) {
    let program = std::env::var_os("HELM").expect("$HELM names a Helm; e2e/helm.sh prints one");
    let arguments = [arguments, &["-n", NAMESPACE]].concat();
    run(Path::new(&program), &arguments, values).unwrap();
}

/// Settings as `--set` takes them, in a file's form: not every Helm has the flag.
fn values(settings: &str) -> String {
    let mut values = json!({});
    for setting in settings.split(',') {
        let (path, value) = setting.split_once('=').unwrap();
        let place = path
            .split('.')
            .fold(&mut values, |place, key| &mut place[key]);
        *place = serde_json::from_str(value).unwrap_or_else(|_| json!(value));
    }
    values.to_string()
}

/// The images of this build's programs are in the node.
static IMAGES: LazyLock<()> = LazyLock::new(|| {
    let programs = e2e::mesh::programs().unwrap().display().to_string();
    run(Path::new("e2e/kube/node/images"), &[&programs], "").unwrap();
});
/// What the pods of bookinfo were started with.
static BOOKINFO: Mutex<String> = Mutex::new(String::new());

/// The mesh with these settings, and nothing of what cases before have made.
fn mesh(settings: &str) -> Mesh {
    LazyLock::force(&IMAGES);
    let initial = ["upgrade", "istio-init", "helm/bireme-init", "--install"];
    helm(&[&initial[..], &["--create-namespace"]].concat(), "");
    helm(&["dependency", "build", "helm/bireme"], "");
    let upgrade = ["upgrade", "istio", "helm/bireme", "--install"];
    let files = ["-f", "helm/profiles/demo.yaml", "-f", "-"];
    let values = values(&format!("{OWN_IMAGES_ONLY},{settings}"));
    helm(&[&upgrade[..], &files[..]].concat(), &values);
    for kind in ["deployments", "daemonsets"] {
        let all = kubectl(&["-n", NAMESPACE, "get", kind, "-o", "name"]);
        for name in all.lines() {
            kubectl(&["-n", NAMESPACE, "rollout", "status", name, "--timeout=180s"]);
        }
    }
    kubectl(&["delete", KINDS, "--all-namespaces", "-l", "!release"]);
    for namespace in ["servers", "auto", "outside", "kinds", "strangers"] {
        kubectl(&["delete", "namespace", namespace, "--ignore-not-found"]);
    }
    kubectl(&[
        "delete",
        "deployment",
        "stranger",
        "asker",
        "part",
        "--ignore-not-found",
    ]);
    let address = |service: &str| {
        let flags = ["-n", NAMESPACE, "get", "service", service];
        kubectl(&[&flags[..], &["-o", "jsonpath={.spec.clusterIP}"]].concat())
    };
    let metrics = format!("{}:42422", address("istio-telemetry"));
    Mesh::in_cluster(format!("{}:80", address(GATEWAY)), metrics)
}

/// The init container that a new pod would get.
fn init_container() -> Value {
    let container = json!({"name": "a", "image": "docker.io/bireme/a:1"});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [container]},
    });
    let flags = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
    // The injector may have to start yet.
    let made = run(Path::new("kubectl"), &flags, &pod.to_string()).unwrap_or_default();
    let made: Value = serde_json::from_str(&made).unwrap_or_default();
    made["spec"]["initContainers"][0].clone()
}

/// Pods get this init container from now on.
async fn pods_are_injected(init: &str) {
    let label = ["label", "namespace", "default", "istio-injection=enabled"];
    kubectl(&[&label[..], &["--overwrite"]].concat());
    let follows = eventually("the injector's new settings", SOON, async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        init_container()["name"] == init
    });
    follows.await.unwrap();
}

/// The mesh with these settings and bookinfo, whose pods have this init container.
async fn bookinfo(settings: &str, init: &str) -> Mesh {
    let mesh = mesh(settings);
    pods_are_injected(init).await;
    kubectl(&["apply", "-f", "e2e/bookinfo/bookinfo-gateway.yaml"]);
    let started_with = format!("{settings} {init}");
    if *BOOKINFO.lock() != started_with {
        kubectl(&["apply", "-f", "e2e/bookinfo/bookinfo.yaml"]);
        for step in [&["restart"][..], &["status", "--timeout=180s"]] {
            for name in WORKLOADS {
                let workload = format!("deployment/{name}");
                kubectl(&[&["rollout"], step, &[&workload]].concat());
            }
        }
        *BOOKINFO.lock() = started_with;
    }
    // Those before them may still be on their way out.
    let only = eventually("one pod for each workload", SOON, async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        kubectl(&["get", "pods", "-o", "name"]).lines().count() == WORKLOADS.len()
    });
    only.await.unwrap();
    settles(&mesh, "the page", 12, has_details).await;
    mesh
}

/// `biremectl` finds all that these settings ask for, and all of it available.
fn is_verified(settings: &str) {
    let program = e2e::mesh::programs().unwrap().join("biremectl");
    let fixed = "verify-install --manifests helm -f helm/profiles/demo.yaml";
    let mut arguments: Vec<&str> = fixed.split(' ').collect();
    let settings = format!("{OWN_IMAGES_ONLY},{settings}");
    for setting in settings.split(',') {
        arguments.extend(["--set", setting]);
    }
    let said = run(&program, &arguments, "").unwrap();
    assert!(said.contains(": 0 not as they should be"), "{said}");
}

/// A pod goes, and another takes its place.
async fn a_pod_is_replaced(mesh: &Mesh) {
    crate::send_everybody_to_red_stars(mesh).await;
    kubectl(&["delete", "pod", "-l", "app=reviews,version=v3"]);
    let status = ["rollout", "status", "deployment/reviews-v3"];
    kubectl(&[&status[..], &["--timeout=120s"]].concat());
    settles(mesh, "red stars from another pod", 10, |page| {
        page.body.contains("stars red")
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a whole node: e2e/kube/node/run"]
async fn components_and_gateways_go_and_nobody_notices() {
    let mesh = bookinfo(CHECKS, "istio-init").await;
    failure::nobody_notices(&mesh).await;
}

#[tokio::test]
#[ignore = "needs a whole node: e2e/kube/node/run"]
async fn init_containers_divert_what_pods_send_and_get() {
    let mesh = bookinfo(CHECKS, "istio-init").await;
    is_verified(CHECKS);
    a_pod_is_replaced(&mesh).await;
    traffic::weights_headers_and_faults_count(&mesh).await;
    security::policies_decide_who_gets_through(&mesh).await;
}

#[tokio::test]
#[ignore = "needs a whole node: e2e/kube/node/run"]
async fn mixer_denies_and_counts() {
    let mesh = bookinfo(CHECKS, "istio-init").await;
    policy::requests_are_denied_and_counted(&mesh).await;
}

#[tokio::test]
#[ignore = "needs a whole node: e2e/kube/node/run"]
async fn names_are_answered_by_the_agent() {
    let mesh = bookinfo(CHECKS, "istio-init").await;
    names::names_are_answered(&mesh).await;
}

#[tokio::test]
#[ignore = "needs a whole node: e2e/kube/node/run"]
async fn pods_of_every_kind_are_in_the_mesh() {
    let scene = Scene { mesh: mesh(CHECKS) };
    pods::are_in_the_mesh(&scene).await;
}

#[tokio::test]
#[ignore = "needs a whole node: e2e/kube/node/run"]
async fn the_edge_holds() {
    let mesh = mesh("global.controlPlaneSecurityEnabled=true");
    edge::holds(Scene { mesh }).await;
}

#[tokio::test]
#[ignore = "needs a whole node: e2e/kube/node/run"]
async fn the_nodes_plugin_diverts_for_pods_without_rights() {
    let by_plugin = async || bookinfo(&format!("{CHECKS},{CNI}"), "istio-validation").await;
    let mesh = by_plugin().await;
    let init = init_container();
    let added = &init["securityContext"]["capabilities"]["add"];
    assert!(added.is_null(), "{init}");
    a_pod_is_replaced(&mesh).await;
    traffic::weights_headers_and_faults_count(&mesh).await;
    security::policies_decide_who_gets_through(&mesh).await;
    policy::requests_are_denied_and_counted(&by_plugin().await).await;
    names::names_are_answered(&by_plugin().await).await;
    failure::nobody_notices(&by_plugin().await).await;
    // Pods that come later have nobody to divert for them, so they get their own.
    bookinfo(CHECKS, "istio-init").await;
}

#[tokio::test]
#[ignore = "needs a whole node: e2e/kube/node/run"]
async fn webhooks_serve_what_citadel_gives_them() {
    mesh(&format!("{CHECKS},{}", certificates::SETTINGS));
    certificates::are_followed().await;
}
