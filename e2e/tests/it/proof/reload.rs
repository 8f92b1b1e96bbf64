//! Other files of the plugged-in CA: first another root beside the one that is there, then a CA under it. Citadel and every
//! proxy go over to it, nobody restarts anything, and nobody's call fails meanwhile.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use e2e::echo::{Call, Outcome, Protocol};
use e2e::mesh::eventually;
use serde_json::Value;

use super::{ENVOY, Stage};
use crate::SETTLED;
use crate::authority::{Authority, Leaf};

const CALLER: &str = "spiffe://cluster.local/ns/outside/sa/client";
const CITADEL: &str = "istio-citadel.istio-system";

/// Servers that take mutual TLS only, under either proxy.
fn servers() -> [String; 2] {
    ["", ENVOY].map(|of| format!("strict{of}.servers"))
}

/// Callers with a sidecar, under either proxy.
fn clients() -> [String; 2] {
    ["", ENVOY].map(|of| format!("auto{of}"))
}

/// From the first change of the files to the last certificate of the CA before.
pub(super) async fn breaks_nothing(stage: &Stage) {
    let next = Authority::new("next");
    let both = stage.authority.root() + &next.root();
    assert_eq!(served(stage, &next, &both).await, [false, false]);
    stage.authority.write_with(stage.plugged_in.path(), &both);
    eventually("the next root is trusted", SETTLED, async || {
        nobody_notices(stage).await;
        // A server shows the next certificate as soon as it has it, so the clients must know its root by then.
        served(stage, &next, &both).await == [true, true] && clients_know_both_roots(stage).await
    })
    .await
    .unwrap();
    next.write_with(
        stage.plugged_in.path(),
        &(next.root() + &stage.authority.root()),
    );
    eventually(
        "everybody has a certificate of the next CA",
        SETTLED,
        async || {
            nobody_notices(stage).await;
            let has_citadel = signs(stage, &next).await;
            has_citadel && served(stage, &next, &next.root()).await == [true, true]
        },
    )
    .await
    .unwrap();
    // Certificates of the CA before are good to their end.
    let before = served(stage, &stage.authority, &next.root()).await;
    assert_eq!(before, [true, true]);
}

/// Who of the servers takes a certificate of `authority`, and shows one below `roots`.
async fn served(stage: &Stage, authority: &Authority, roots: &str) -> [bool; 2] {
    let mut tls = authority.leaf(CALLER).tls(authority, &["istio"]);
    roots.clone_into(&mut tls.roots);
    let calls = servers()
        .map(|server| Call::new(Protocol::Tcp, &format!("{server}:8004")).tls(tls.clone()));
    let outcomes = stage.call("outside", &calls).await;
    [outcomes[0].is_served(), outcomes[1].is_served()]
}

/// Whether the clients' proxies check servers by two roots.
async fn clients_know_both_roots(stage: &Stage) -> bool {
    let dump = ["pilot-agent", "request", "GET", "/config_dump"];
    for client in clients() {
        let dump: Value = serde_json::from_str(&stage.in_proxy(&client, &dump).await).unwrap();
        let parts = dump["configs"].as_array().into_iter().flatten();
        let secrets = parts.flat_map(|part| part["dynamic_active_secrets"].as_array());
        let roots = secrets.flatten().find(|secret| secret["name"] == "ROOTCA");
        let source = roots.map(|roots| &roots["secret"]["validation_context"]["trusted_ca"]);
        let bytes =
            source.and_then(|source| STANDARD.decode(source["inline_bytes"].as_str()?).ok());
        let text = String::from_utf8(bytes.unwrap_or_default()).unwrap();
        if text.matches("BEGIN CERTIFICATE").count() != 2 {
            return false;
        }
    }
    true
}

/// Whether Citadel itself shows a certificate of `authority`.
async fn signs(stage: &Stage, authority: &Authority) -> bool {
    let mut tls = Leaf::default().tls(authority, &["h2"]);
    tls.server_name = format!("{CITADEL}.svc");
    let call = Call::new(Protocol::Grpc, &format!("{CITADEL}:8060")).tls(tls);
    let outcomes = stage.call("outside", &[call]).await;
    outcomes[0].text.starts_with("grpc-status")
}

/// New connections (each line is one) and old ones, from and to either proxy.
async fn nobody_notices(stage: &Stage) {
    let calls: Vec<Call> = servers()
        .iter()
        .flat_map(|server| {
            [(Protocol::Tcp, 8004), (Protocol::Http1, 8001)]
                .map(|(protocol, port)| Call::new(protocol, &format!("{server}:{port}")))
        })
        .collect();
    for client in clients() {
        let outcomes = stage.call(&client, &calls).await;
        assert!(
            outcomes.iter().all(Outcome::is_served),
            "{client}: {outcomes:?}"
        );
    }
}
