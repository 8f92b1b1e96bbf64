//! Workloads whose certificates live for half a minute: traffic goes on past their end, on what is open and what is new.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use e2e::echo::{Call, Protocol};
use e2e::mesh::eventually;
use serde_json::{Value, json};

use super::Stage;
use crate::{SETTLED, scene};

/// Client and namespace, and the server.
const NAME: &str = "brief";
const LIFE: Duration = Duration::from_secs(30);

pub(super) fn manifests() -> String {
    let life = format!("{}s", LIFE.as_secs());
    let config = json!({"proxyMetadata": {"SECRET_TTL": life}}).to_string();
    let annotations = json!({"proxy.istio.io/config": config}).to_string();
    let workloads = [
        include_str!("../../security/client.yaml").replace("{{namespace}}", NAME),
        include_str!("../../security/server.yaml")
            .replace("{{name}}", NAME)
            .replace("{{account}}", "default")
            .replace("{{mode}}", "STRICT"),
    ];
    scene::namespace(NAME, true) + &workloads.concat().replace("{{annotations}}", &annotations)
}

/// Two whole lives and a bit.
pub(super) async fn outlives_its_certificates(stage: &Stage) {
    let scene = &stage.scene;
    let server = |port: u16| format!("{NAME}.servers:{port}");
    let calls = [
        Call::new(Protocol::Http1, &server(8001)),
        // A handshake each time.
        Call::new(Protocol::Tcp, &server(8004)),
    ];
    eventually("the server answers", SETTLED, async || {
        let outcomes = scene.call(NAME, &calls).await;
        outcomes.iter().all(e2e::echo::Outcome::is_served)
    })
    .await
    .unwrap();
    let line = scene.hold(NAME, &calls[1]).await;
    let (start, mut used) = (Instant::now(), BTreeSet::new());
    while start.elapsed() < LIFE * 2 + LIFE / 3 {
        let outcomes = scene.call(NAME, &calls).await;
        let is_served = outcomes.iter().all(e2e::echo::Outcome::is_served);
        assert!(is_served, "after {:?}: {outcomes:?}", start.elapsed());
        used.insert(in_use(stage).await);
    }
    assert!(used.len() > 2, "{used:?}");
    line.was_held().await;
}

/// The serial number of the client's certificate.
async fn in_use(stage: &Stage) -> String {
    let request = ["pilot-agent", "request", "GET", "/certs"];
    let shown: Value = serde_json::from_str(&stage.scene.in_proxy(NAME, &request).await).unwrap();
    let entries = shown["certificates"].as_array().into_iter().flatten();
    let mut serials = entries.filter_map(|entry| entry["cert_chain"][0]["serial_number"].as_str());
    serials.next().unwrap().to_owned()
}
