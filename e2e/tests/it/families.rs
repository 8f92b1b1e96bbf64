//! Pods of both IP families: services, and endpoints that have IPv6 alone.

use e2e::echo::{Call, Outcome, Protocol};
use e2e::mesh::{Mesh, eventually};
use serde_json::Value;

use crate::scene::{Scene, namespace};
use crate::{SETTLED, proof};

/// Up without the sample application.
const ARGUMENTS: [&str; 4] = ["--app", "none", "--set", "local.dualStack=true"];
/// From now on the server takes mutual TLS only.
const STRICT: &str = r"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: both}
spec: {mtls: {mode: STRICT}}
";

#[tokio::test]
#[ignore = "needs root"]
async fn pods_of_both_families_talk_in_either() {
    let mesh = Mesh::up("e2e-families", &ARGUMENTS).await.unwrap();
    pods_talk_in_either(mesh).await;
}

#[tokio::test]
#[ignore = "needs root, nft and Envoy: set ENVOY to its path"]
async fn pods_of_both_families_talk_in_either_beside_an_envoy() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let replace = format!("proxy={}", proof::envoy(folder.path()));
    let arguments = [&ARGUMENTS[..], &["--replace", &replace]].concat();
    let mesh = Mesh::up_without_iptables("e2e-families-envoy", &arguments).await;
    pods_talk_in_either(mesh.unwrap()).await;
}

async fn pods_talk_in_either(mesh: Mesh) {
    let mut scene = Scene { mesh };
    let namespaces = [namespace("both", true), namespace("outside", false)];
    scene.apply(&namespaces.concat()).await;
    scene.apply(include_str!("../families.yaml")).await;
    scene.are_ready(3).await;
    let of_service = ["local", "get", "services", "-n", "both", "-o", "json"];
    let service = first(&scene, &of_service, "server").await;
    let service = service["spec"]["clusterIPs"][1]
        .as_str()
        .unwrap()
        .to_owned();
    let of_pods = ["local", "get", "pods", "-n", "both", "-o", "json"];
    let pod = first(&scene, &of_pods, "server").await;
    let pod = pod["status"]["podIPs"][1]["ip"]
        .as_str()
        .unwrap()
        .to_owned();
    // It has no other address than the pod's of IPv6.
    scene.apply(&only_ipv6(&pod)).await;

    let calls = [
        Call::new(Protocol::Http1, &format!("[{service}]:8001")),
        Call::new(Protocol::Http1, "server.both:8001"),
        Call::new(Protocol::Http1, "six.example.org:8001"),
        Call::new(Protocol::Tcp, &format!("[{service}]:8004")),
    ];
    let everybody = async || {
        let outcomes = scene.call("both", &calls).await;
        let served = outcomes.iter().map(Outcome::is_served);
        served.eq([true; 4])
    };
    eventually("every call inside", SETTLED, everybody)
        .await
        .unwrap();
    // The agent says both of its addresses.
    let asks = ["local", "exec", "-n", "both", "deploy/client", "--", "curl"];
    let by_name = ["-6", "--silent", "--fail", "http://server.both:8001/"];
    scene
        .mesh
        .ctl_ok(&[&asks[..], &by_name].concat())
        .await
        .unwrap();

    // Who has no proxy gets through to it as long as the server's lets it.
    let plain = [Call::new(Protocol::Http1, &format!("[{pod}]:8001"))];
    let is_let_in = async || scene.call("outside", &plain).await[0].is_served();
    eventually("a plain call", SETTLED, is_let_in)
        .await
        .unwrap();
    scene.apply(STRICT).await;
    let is_refused = async || !scene.call("outside", &plain).await[0].is_served();
    eventually("refusal", SETTLED, is_refused).await.unwrap();
    assert!(everybody().await);
    assert_eq!(scene.mesh.end().await, "");
}

/// A host outside of Kubernetes whose only endpoint is `address`.
fn only_ipv6(address: &str) -> String {
    format!(
        r#"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: six, namespace: both}}
spec:
  hosts: [six.example.org]
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
  - {{number: 8001, name: http, protocol: HTTP}}
  endpoints:
  - {{address: "{address}", labels: {{security.istio.io/tlsMode: istio}}}}
"#
    )
}

/// The object among those shown whose name begins so.
async fn first(scene: &Scene, command: &[&str], name: &str) -> Value {
    let shown = scene.mesh.ctl_ok(command).await.unwrap();
    let list: Value = serde_json::from_str(&shown).unwrap();
    let mut items = list["items"].as_array().unwrap().iter();
    let is_it = |item: &&Value| item["metadata"]["name"].as_str().unwrap().starts_with(name);
    items.find(is_it).unwrap().clone()
}
