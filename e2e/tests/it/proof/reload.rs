//! Other files of the plugged-in CA: first another root beside the one that is there, then a CA under it. Citadel and every
//! proxy go over to it, nobody restarts anything, and nobody's call fails meanwhile.

use e2e::echo::{Call, Outcome, Protocol};
use e2e::mesh::eventually;

use super::{ENVOY, Stage};
use crate::SETTLED;
use crate::authority::{Authority, Leaf};

const CALLER: &str = "spiffe://cluster.local/ns/outside/sa/client";
const CITADEL: &str = "istio-citadel.istio-system";

/// Servers that take mutual TLS only, under either proxy.
fn servers() -> [String; 2] {
    ["", ENVOY].map(|of| format!("strict{of}.servers"))
}

/// From the first change of the files to the last certificate of the CA before.
pub(super) async fn breaks_nothing(stage: &Stage) {
    let next = Authority::new("next");
    let both = stage.authority.root() + &next.root();
    assert_eq!(served(stage, &next, &both).await, [false, false]);
    stage.authority.write_with(stage.plugged_in.path(), &both);
    eventually("the next root is trusted", SETTLED, async || {
        nobody_notices(stage).await;
        served(stage, &next, &both).await == [true, true]
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
    for client in ["auto".to_owned(), format!("auto{ENVOY}")] {
        let outcomes = stage.call(&client, &calls).await;
        assert!(
            outcomes.iter().all(Outcome::is_served),
            "{client}: {outcomes:?}"
        );
    }
}
