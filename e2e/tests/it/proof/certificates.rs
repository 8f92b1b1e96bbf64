//! Certificates that are not good, shown to a server that takes mutual TLS only; each beside one that is.

use base64::Engine as _;
use e2e::echo::{Call, Protocol};
use e2e::mesh::eventually;
use serde_json::Value;
use time::Duration;

use super::matrix::PORTS;
use super::{ENVOY, Stage};
use crate::SETTLED;
use crate::authority::{Authority, Leaf, Tokens, self_signed};
use crate::scene::Line;

const CALLER: &str = "spiffe://cluster.local/ns/outside/sa/client";
/// How long a revocation may take to be in force everywhere, on a busy machine with debug programs.
const SECONDS: std::time::Duration = std::time::Duration::from_secs(30);

/// Only the good ones get an answer, whatever is spoken inside.
pub(super) async fn hold(stage: &Stage) {
    let authority = &stage.authority;
    let hours = Duration::hours;
    let stranger = Authority::new("proof");
    let good = authority.leaf(CALLER);
    let leaf_only = Leaf {
        chain: good
            .chain
            .split_inclusive("-----END CERTIFICATE-----\n")
            .next()
            .unwrap()
            .to_owned(),
        ..good.clone()
    };
    let stolen = Leaf {
        chain: authority
            .leaf("spiffe://cluster.local/ns/ops/sa/client")
            .chain,
        ..good.clone()
    };
    let cases = [
        ("good", good.clone(), true),
        (
            "of an alias of the trust domain",
            authority.leaf("spiffe://old.domain/ns/outside/sa/client"),
            true,
        ),
        ("none", Leaf::default(), false),
        (
            "of another trust domain",
            authority.leaf("spiffe://other.domain/ns/outside/sa/client"),
            false,
        ),
        (
            "of a trust domain that begins like ours",
            authority.leaf("spiffe://cluster.local.evil/ns/a/sa/b"),
            false,
        ),
        (
            "without SPIFFE identity",
            authority.leaf("https://cluster.local/ns/outside/sa/client"),
            false,
        ),
        (
            "expired",
            authority.leaf_from(CALLER, hours(-2), hours(-1)),
            false,
        ),
        (
            "not valid yet",
            authority.leaf_from(CALLER, hours(1), hours(2)),
            false,
        ),
        ("of a root with the same name", stranger.leaf(CALLER), false),
        ("self-signed", self_signed(CALLER), false),
        ("without its intermediate", leaf_only, false),
        ("somebody else's, without the key", stolen, false),
    ];
    are_told_apart(stage, &cases).await;
    identities_are_the_certificates(stage).await;
    citadel_believes_its_own_clusters_tokens_only(stage).await;
}

/// Each certificate is presented over every protocol, and is good or not.
async fn are_told_apart(stage: &Stage, cases: &[(&str, Leaf, bool)]) {
    let mut calls = Vec::new();
    for (_, leaf, _) in cases {
        calls.extend(PORTS.iter().map(|(protocol, port, alpn)| {
            Call::new(*protocol, &format!("strict.servers:{port}"))
                .tls(leaf.tls(&stage.authority, alpn))
        }));
    }
    // A busy machine may be too slow for a good one, but no bad one is served at any time.
    let mut refused = Vec::new();
    let settled = eventually("good certificates are served", SETTLED, async || {
        let outcomes = stage.call("outside", &calls).await;
        refused.clear();
        for ((what, _, is_good), outcomes) in cases.iter().zip(outcomes.chunks(PORTS.len())) {
            for outcome in outcomes {
                let what = format!("certificate {what}: {outcome:?}");
                assert!(*is_good || !outcome.is_served(), "{what}");
                if *is_good && !outcome.is_served() {
                    refused.push(what);
                }
            }
        }
        refused.is_empty()
    });
    let settled = settled.await;
    assert!(settled.is_ok(), "{}", refused.join("\n"));
}

/// A pod's token is good at its own cluster's Citadel (which then says that there is no signing request); another cluster's,
/// though it says the same, is not, nor one whose signature is left out.
async fn citadel_believes_its_own_clusters_tokens_only(stage: &Stage) {
    let read = ["cat", "/var/run/secrets/tokens/istio-token"];
    let own = stage.in_proxy("auto", &read).await;
    let own = own.trim();
    let claims = own.split('.').nth(1).unwrap();
    let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims);
    let said: Value = serde_json::from_slice(&payload.unwrap()).unwrap();
    let subject = said["sub"].as_str().unwrap();
    let others = Tokens::new("https://bireme.local").token(subject, &said);
    let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
    let unsigned = format!("{header}.{claims}.");
    let method = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
    let ask = |token: &str| {
        let mut tls = Leaf::default().tls(&stage.authority, &["h2"]);
        "istio-citadel.istio-system.svc".clone_into(&mut tls.server_name);
        Call::new(Protocol::Grpc, "istio-citadel.istio-system:8060")
            .target(method)
            .header("authorization", &format!("Bearer {token}"))
            .tls(tls)
    };
    let calls = [ask(own), ask(&others), ask(&unsigned), ask("")];
    let outcomes = stage.call("outside", &calls).await;
    let codes: Vec<&str> = outcomes
        .iter()
        .map(|outcome| outcome.text.as_str())
        .collect();
    let (no_request, not_recognised) = ("grpc-status 3", "grpc-status 16");
    assert_eq!(codes[0], no_request, "{outcomes:?}");
    assert_eq!(codes[1..], [not_recognised; 3], "{outcomes:?}");
}

/// A policy sees the identity of the certificate, whatever else the caller says; an alias counts as our own trust domain.
async fn identities_are_the_certificates(stage: &Stage) {
    let alpn = PORTS[0].2;
    let ask = |identity: &str, path: &str| {
        let tls = stage.authority.leaf(identity).tls(&stage.authority, alpn);
        Call::new(Protocol::Http1, "app.servers:8001")
            .target(path)
            .tls(tls)
    };
    let calls = [
        ask("spiffe://cluster.local/ns/auto/sa/client", "/info"),
        ask("spiffe://old.domain/ns/auto/sa/client", "/info"),
        ask("spiffe://cluster.local/ns/auto/sa/other", "/info"),
        ask("spiffe://cluster.local/ns/ops/sa/client", "/admin/x"),
        ask("spiffe://cluster.local/ns/auto/sa/client", "/admin/x"),
    ];
    let outcomes = stage.call("outside", &calls).await;
    let served: Vec<bool> = outcomes.iter().map(e2e::echo::Outcome::is_served).collect();
    assert_eq!(served, [true, true, false, true, false], "{outcomes:?}");
}

/// Whose identity is revoked, who loses one certificate, and who has nothing to do with it.
const REVOKED: [&str; 3] = ["mtls", "ops", "monitoring"];

/// A line of each of [`REVOKED`], with the serial number of the certificate that its proxy had for it.
pub(super) async fn opened(stage: &Stage) -> [(Line, String); 3] {
    let [whole, once, other] = REVOKED.map(|namespace| open(stage, namespace));
    [whole.await, once.await, other.await]
}

async fn open(stage: &Stage, namespace: &str) -> (Line, String) {
    let strict = Call::new(Protocol::Tcp, "strict.servers:8004");
    for _ in 0..5 {
        let serial = in_use(stage, namespace).await;
        let line = stage.hold(namespace, &strict).await;
        if in_use(stage, namespace).await == serial {
            return (line, serial);
        }
        line.was_held().await;
    }
    panic!("{namespace} has another certificate again and again");
}

/// A revoked identity is refused, and what it has open is closed, also what was opened under the CA `before`; whoever has lost one
/// certificate has another at once, but what was open with that one is closed, too. Everybody else goes on.
pub(super) async fn are_revoked_at_once(stage: &Stage, before: [(Line, String); 3]) {
    let [whole, once, other] = REVOKED;
    let ask = Call::new(Protocol::Http1, "strict.servers:8001");
    let gets_through = async |namespace: &str| is_served(stage, namespace, &ask).await;
    for namespace in REVOKED {
        assert!(gets_through(namespace).await, "{namespace}");
    }
    let after = opened(stage).await;
    let serial = &after[1].1.clone();
    let all = format!("--identity={}", identity(whole));
    citadel(stage, &["revoke", &all]).await;
    let told = citadel(stage, &["revoke", "--serial", serial]).await;
    assert!(told.contains(serial), "{told}");
    eventually("new handshakes are refused", SECONDS, async || {
        !gets_through(whole).await
    })
    .await
    .unwrap();
    // Each line is a handshake of its own.
    let line = Call::new(Protocol::Tcp, &format!("strict{ENVOY}.servers:8004"));
    eventually("a real Envoy refuses them, too", SECONDS, async || {
        !is_served(stage, whole, &line).await
    })
    .await
    .unwrap();
    eventually("another certificate", SETTLED, async || {
        in_use(stage, once).await != *serial && gets_through(once).await
    })
    .await
    .unwrap();
    let shown = citadel(stage, &["certs", "show", serial]).await;
    assert!(shown.contains("State          revoked"), "{shown}");
    for lines in [before, after] {
        for (namespace, (mut line, of)) in REVOKED.into_iter().zip(lines) {
            // A new certificate may not have reached that proxy before its first line.
            if namespace == whole || of == *serial {
                line.is_cut().await;
            } else {
                line.was_held().await;
            }
        }
    }
    // Certificates of the CA before are refused now, and its own may still be one.
    eventually("nobody else is refused", SETTLED, async || {
        gets_through(other).await && is_served(stage, other, &line).await
    })
    .await
    .unwrap();
    assert!(!gets_through(whole).await);
    assert!(!is_served(stage, whole, &line).await);
    nobody_calls_a_revoked_server(stage).await;
}

/// A server whose identity is revoked is called by no sidecar and no gateway any more, though it is there as before.
async fn nobody_calls_a_revoked_server(stage: &Stage) {
    let open = |address: &str| Call::new(Protocol::Http1, address).target("/open");
    let line = Call::new(Protocol::Tcp, "app.servers:8004");
    let calls = [
        ("auto", open("app.servers:8001")),
        ("auto", line),
        ("outside", open("istio-ingressgateway.istio-system:80")),
    ];
    stage
        .apply(include_str!("../../security/gateway.yaml"))
        .await;
    let served = async || {
        let mut served = 0;
        for (namespace, call) in &calls {
            served += usize::from(is_served(stage, namespace, call).await);
        }
        served
    };
    eventually("all reach the server", SETTLED, async || {
        served().await == calls.len()
    })
    .await
    .unwrap();
    let identity = "--identity=spiffe://cluster.local/ns/servers/sa/app";
    citadel(stage, &["revoke", identity]).await;
    eventually("nobody reaches it", SECONDS, async || served().await == 0)
        .await
        .unwrap();
    assert!(is_served(stage, "outside", &open("app.servers:8001")).await);
}

async fn is_served(stage: &Stage, namespace: &str, call: &Call) -> bool {
    stage.call(namespace, std::slice::from_ref(call)).await[0].is_served()
}

/// The identity of the client of a namespace.
fn identity(namespace: &str) -> String {
    format!("spiffe://cluster.local/ns/{namespace}/sa/client")
}

/// The serial number of the certificate of the client of a namespace, as its proxy says.
pub(super) async fn in_use(stage: &Stage, namespace: &str) -> String {
    let request = ["pilot-agent", "request", "GET", "/certs"];
    let shown: Value = serde_json::from_str(&stage.in_proxy(namespace, &request).await).unwrap();
    let entries = shown["certificates"].as_array().into_iter().flatten();
    let mut serials = entries.filter_map(|entry| entry["cert_chain"][0]["serial_number"].as_str());
    serials.next().unwrap().trim_start_matches('0').to_owned()
}

/// An operator's command.
async fn citadel(stage: &Stage, command: &[&str]) -> String {
    let data = "--data-dir=/var/lib/citadel";
    let command = [&["istio_ca"], command, &[data]].concat();
    stage
        .in_control_plane("deploy/istio-citadel", &command)
        .await
}
