//! Keys of those who issue tokens, with our proxy and with a real Envoy at the server: an issuer has another one, and key sets that
//! take their time are waited for as long as the rule says.

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
    let next = Tokens::new("https://inline.test");
    let inline = stage.inline.token("alice", &json!({}));
    let renewed = next.token("alice", &json!({}));
    // The server of keys answers one of these in time, and the other one too late.
    let late = |issuer: &str| stage.fetched.token("bob", &json!({"iss": issuer}));
    let (patient, hasty) = (late("https://patient.test"), late("https://hasty.test"));
    for (tokens, wanted) in [
        (&stage.inline, [200, 401, 200, 401]),
        (&next, [401, 200, 200, 401]),
    ] {
        let manifests = ["", ENVOY].map(|of| {
            include_str!("../../security/keys.yaml")
                .replace("{{name}}", &format!("{SERVER}{of}"))
                .replace("{{jwks}}", &tokens.jwks())
        });
        stage.apply(&manifests.concat()).await;
        let calls = ["", ENVOY].map(|of| {
            [&inline, &renewed, &patient, &hasty].map(|token| {
                Call::new(Protocol::Http1, &format!("{SERVER}{of}.servers:8001"))
                    .header("authorization", &format!("Bearer {token}"))
            })
        });
        let mut seen = Vec::new();
        let settled = eventually("tokens count as they must", SETTLED, async || {
            let outcomes = stage.call("outside", calls.as_flattened()).await;
            seen = outcomes;
            let statuses: Vec<u16> = seen.iter().filter_map(|outcome| outcome.status).collect();
            statuses == [wanted, wanted].concat()
        });
        let settled = settled.await;
        assert!(settled.is_ok(), "wanted {wanted:?} twice: {seen:?}");
    }
}
