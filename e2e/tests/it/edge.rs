//! The edge of the mesh and the keys inside it: TLS of every mode at the ingress gateway, TLS to the outside by the egress
//! gateway, the control plane's own channels under mutual TLS and without those who are revoked, and the change of the root
//! while traffic flows.

mod brief;
mod egress;
mod ingress;
mod revoked;
mod root;

use e2e::echo::{Call, Protocol, Tls};
use e2e::mesh::eventually;
use futures::FutureExt as _;
use futures::future::LocalBoxFuture;

use crate::SETTLED;
use crate::authority::{Authority, Leaf, Tokens};
use crate::proof;
use crate::scene::{self, Scene};

const NAME: &str = "e2e-edge";
const CONTROL_PLANE: &str = "istio-system";
/// The steps of a change of roots, a good deal shorter than a mesh that nobody waits for would have them.
const SETTINGS: &str = "global.controlPlaneSecurityEnabled=true,\
    security.env.CITADEL_SELF_SIGNED_ROOT_CERT_INTRODUCTION=4s,\
    security.env.CITADEL_SELF_SIGNED_ROOT_CERT_RETIREMENT=30s";

/// The mesh, and who vouches for whom around it.
struct Stage {
    scene: Scene,
    /// For the gateway's first name (and lines), and for its others.
    a: Authority,
    b: Authority,
    /// For clients that the gateway knows.
    clients: Authority,
    /// The only ones of them that two of the gateway's names let in: by the public key, and by the certificate.
    by_key: Leaf,
    by_certificate: Leaf,
    /// For the server outside, and for its clients.
    outside: Authority,
    tokens: Tokens,
}

impl Stage {
    /// With everything in the mesh of `scene`.
    async fn set(scene: Scene) -> Self {
        let clients = Authority::new("clients");
        let stage = Self {
            scene,
            by_key: clients.leaf("spiffe://partner/ns/x/sa/by-key"),
            by_certificate: clients.leaf("spiffe://partner/ns/x/sa/by-certificate"),
            a: Authority::new("a"),
            b: Authority::new("b"),
            clients,
            outside: Authority::new("outside"),
            tokens: Tokens::new("https://edge.test"),
        };
        stage.scene.apply(&stage.manifests()).await;
        // Servers and clients with a sidecar, a client without one, and the server outside.
        stage.scene.are_ready(6).await;
        stage
    }

    fn manifests(&self) -> String {
        let mut text = ["servers", "auto"]
            .map(|name| scene::namespace(name, true))
            .concat();
        text += &scene::namespace("outside", false);
        text += &scene::server("app", "default", "STRICT", None);
        text += &scene::client("auto", None);
        text += &scene::client("outside", None);
        text += &brief::manifests();
        text += &self.credential("a", &self.a.host("a.test"), None);
        text += &self.credential("b", &self.b.host("b.test"), None);
        let mutual = self.b.host("mutual.test");
        text += &self.credential("mutual", &mutual, Some(&self.clients));
        for pinned in ["by-key", "by-certificate"] {
            let server = self.b.host(&format!("{pinned}.test"));
            text += &self.credential(pinned, &server, Some(&self.clients));
        }
        // In the generic form.
        let optional = self.b.host("optional.test");
        let generic = [
            ("cert", optional.chain.as_str()),
            ("key", &optional.key),
            ("cacert", &self.clients.root()),
        ];
        text += &scene::secret(CONTROL_PLANE, "optional", &generic);
        let server = self.outside.host("tls.outside.svc.cluster.local");
        let files = [
            ("tls.crt", server.chain.as_str()),
            ("tls.key", &server.key),
            ("ca.crt", &self.outside.root()),
        ];
        text += &scene::secret("outside", "tls", &files);
        text += include_str!("../security/tls.yaml");
        text += &egress::manifests(self);
        text += include_str!("../security/edge.yaml");
        text.replace("{{jwks}}", &self.tokens.jwks())
            .replace("{{spki}}", &self.by_key.spki)
            .replace("{{hash}}", &self.by_certificate.hash)
    }

    /// A gateway's credential.
    fn credential(&self, name: &str, leaf: &Leaf, clients: Option<&Authority>) -> String {
        let roots = clients.map(Authority::root);
        let mut data = vec![("tls.crt", leaf.chain.as_str()), ("tls.key", &leaf.key)];
        data.extend(roots.as_deref().map(|roots| ("ca.crt", roots)));
        scene::secret(CONTROL_PLANE, name, &data)
    }
}

/// TLS towards `server_name`, which `authority` must vouch for.
fn tls(server_name: &str, roots: &str) -> Tls {
    Tls {
        server_name: server_name.to_owned(),
        roots: roots.to_owned(),
        ..Tls::default()
    }
}

#[tokio::test]
#[ignore = "needs root and iptables"]
async fn the_edge_holds_while_the_root_changes() {
    let scene = Scene::up(NAME, &["--set", SETTINGS]).await;
    let mut stage = Stage::set(scene).await;
    control_plane_is_closed(&stage).await;
    // The root changes while everything else is looked at.
    let parts = [
        (
            "root",
            root::changes_and_nobody_notices(&stage).boxed_local(),
        ),
        ("ingress", ingress::holds(&stage).boxed_local()),
        ("egress", egress::holds(&stage).boxed_local()),
        (
            "brief",
            brief::outlives_its_certificates(&stage).boxed_local(),
        ),
    ];
    all_hold(parts).await;
    revoked::are_refused(&stage).await;
    assert_eq!(stage.scene.mesh.end().await, "");
}

#[tokio::test]
#[ignore = "needs root, iptables and Envoy: set ENVOY to its path"]
async fn the_edge_holds_with_envoys() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let replace = format!("proxy={}", proof::envoy(folder.path()));
    let flags = ["--set", SETTINGS, "--replace", &replace];
    let mut stage = Stage::set(Scene::up("e2e-edge-envoy", &flags).await).await;
    hold(&stage).await;
    assert_eq!(stage.scene.mesh.end().await, "");
}

/// The case itself, wherever the mesh is; the root stays.
pub(crate) async fn holds(scene: Scene) {
    hold(&Stage::set(scene).await).await;
}

async fn hold(stage: &Stage) {
    control_plane_is_closed(stage).await;
    let parts = [
        ("ingress", ingress::holds(stage).boxed_local()),
        ("egress", egress::holds(stage).boxed_local()),
    ];
    all_hold(parts).await;
}

/// At the same time; one that fails does not hide what the others find.
async fn all_hold<'a>(parts: impl IntoIterator<Item = (&'static str, LocalBoxFuture<'a, ()>)>) {
    let (names, parts): (Vec<&str>, Vec<_>) = parts.into_iter().unzip();
    let parts = parts
        .into_iter()
        .map(|part| std::panic::AssertUnwindSafe(part).catch_unwind());
    let outcomes = futures::future::join_all(parts).await;
    let outcomes = names.iter().zip(outcomes);
    let failed: Vec<&&str> = outcomes
        .filter(|(_, outcome)| outcome.is_err())
        .map(|(name, _)| name)
        .collect();
    assert!(failed.is_empty(), "failed, see above: {failed:?}");
}

/// The control plane's channels: plain text for nobody else, TLS only for those who have a certificate of the mesh. That they
/// work is in everything else here: configuration comes by MCP and xDS, and Mixer must agree to each request.
async fn control_plane_is_closed(stage: &Stage) {
    let call = |host: &str, port: u16| {
        Call::new(Protocol::Grpc, &format!("{host}.{CONTROL_PLANE}:{port}"))
    };
    let plain = [
        call("istio-pilot", 15010),
        call("istio-policy", 9091),
        call("istio-telemetry", 9091),
        call("istio-galley", 9901),
    ];
    let closed = [
        call("istio-pilot", 15011),
        call("istio-policy", 15004),
        call("istio-telemetry", 15004),
        call("istio-galley", 9901),
    ];
    let root = root::present(stage).await;
    let stranger = Authority::new("stranger");
    let stranger =
        stranger.leaf("spiffe://cluster.local/ns/istio-system/sa/istio-pilot-service-account");
    let mut calls = plain.to_vec();
    for call in &closed {
        let mut without = tls("x.test", &root);
        without.alpn = vec!["h2".to_owned()];
        let mut with = without.clone();
        with.chain.clone_from(&stranger.chain);
        with.key.clone_from(&stranger.key);
        calls.extend([without, with].map(|tls| call.clone().tls(tls)));
    }
    let outcomes = stage.scene.call("outside", &calls).await;
    for (call, outcome) in calls.iter().zip(&outcomes) {
        assert_eq!(outcome.status, None, "{}: {outcome:?}", call.address);
    }
    // Those are there, so it is for the certificate that they refuse.
    for (call, outcome) in calls.iter().zip(&outcomes).skip(plain.len()) {
        let is_reached = !outcome.text.starts_with("failed: connect istio");
        assert!(is_reached, "{}: {outcome:?}", call.address);
    }
}

/// Calls until every outcome is as wanted.
async fn settle(stage: &Stage, from: &str, cases: &[(&str, Call, Option<u16>)]) {
    let calls: Vec<Call> = cases.iter().map(|(_, call, _)| call.clone()).collect();
    let mut wrong = Vec::new();
    let settled = eventually("every call ends as it must", SETTLED, async || {
        let outcomes = stage.scene.call(from, &calls).await;
        wrong = cases
            .iter()
            .zip(outcomes)
            .filter(|((_, _, wanted), outcome)| match wanted {
                Some(200) => !outcome.is_served(),
                // No answer, or one that says that there is no way.
                None => outcome.is_served(),
                wanted => outcome.status != *wanted,
            })
            .map(|((what, _, wanted), outcome)| {
                format!("{what}: wanted {wanted:?}, got {outcome:?}")
            })
            .collect();
        wrong.is_empty()
    });
    let settled = settled.await;
    assert!(settled.is_ok(), "{}", wrong.join("\n"));
}
