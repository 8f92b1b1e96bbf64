//! Keys of those who issue tokens, with our proxy and with a real Envoy at the server: an issuer has another one, in the policy or
//! where Pilot fetches it, and key sets that take their time are waited for as long as the rule says.

use e2e::echo::{Call, Protocol};
use e2e::mesh::eventually;
use serde_json::json;

use super::{ENVOY, Stage};
use crate::SETTLED;
use crate::authority::Tokens;

/// The server; the other one has a real Envoy.
const SERVER: &str = "levels";

/// Whose tokens are good, and whose are not.
pub(super) async fn hold(stage: &Stage) {
    stand_in_the_policy(stage).await;
    are_fetched_by_pilot(stage).await;
}

async fn stand_in_the_policy(stage: &Stage) {
    let next = Tokens::new("https://inline.test");
    let inline = stage.inline.token("alice", &json!({}));
    let renewed = next.token("alice", &json!({}));
    // The server of keys answers one of these in time, and the other one too late.
    let late = |issuer: &str| stage.fetched.token("bob", &json!({"iss": issuer}));
    let (patient, hasty) = (late("https://patient.test"), late("https://hasty.test"));
    let tokens = [inline, renewed, patient, hasty];
    for (issuer, wanted) in [
        (&stage.inline, [200, 401, 200, 401]),
        (&next, [401, 200, 200, 401]),
    ] {
        apply(stage, include_str!("../../security/keys.yaml"), |text| {
            text.replace("{{jwks}}", &issuer.jwks())
        })
        .await;
        count(stage, &tokens, &wanted).await;
    }
}

/// From an issuer outside of the mesh, which has no key at first, and then one after the other.
async fn are_fetched_by_pilot(stage: &Stage) {
    const ISSUER: &str = "https://published.test";
    let [first, next] = [(); 2].map(|()| Tokens::new(ISSUER));
    let publish = |text: &str| {
        std::fs::write(stage.published.path().join("jwks.json"), text).unwrap();
    };
    let tokens = [&first, &next].map(|issuer| issuer.token("alice", &json!({})));
    publish("no keys yet");
    // No service has that address, so the proxies cannot be sent there.
    let address = stage.pod_ip("outside", "keys").await;
    apply(
        stage,
        include_str!("../../security/published.yaml"),
        |text| text.replace("{{address}}", &address),
    )
    .await;
    for (keys, wanted) in [
        ("no keys yet".to_owned(), [401, 401]),
        (first.jwks(), [200, 401]),
        (next.jwks(), [401, 200]),
    ] {
        publish(&keys);
        count(stage, &tokens, &wanted).await;
    }
}

/// Applies what is for the server and the other one.
async fn apply(stage: &Stage, manifest: &str, fill_in: impl Fn(&str) -> String) {
    let of = |of| fill_in(&manifest.replace("{{name}}", &format!("{SERVER}{of}")));
    stage.apply(&["", ENVOY].map(of).concat()).await;
}

/// Waits until both answer calls with these tokens as is `wanted`.
async fn count(stage: &Stage, tokens: &[String], wanted: &[u16]) {
    let calls: Vec<Call> = ["", ENVOY]
        .iter()
        .flat_map(|of| {
            tokens.iter().map(move |token| {
                Call::new(Protocol::Http1, &format!("{SERVER}{of}.servers:8001"))
                    .header("authorization", &format!("Bearer {token}"))
            })
        })
        .collect();
    let mut seen = Vec::new();
    let settled = eventually("tokens count as they must", SETTLED, async || {
        seen = stage.call("outside", &calls).await;
        let statuses: Vec<u16> = seen.iter().filter_map(|outcome| outcome.status).collect();
        statuses == [wanted, wanted].concat()
    });
    let settled = settled.await;
    assert!(settled.is_ok(), "wanted {wanted:?} twice: {seen:?}");
}
