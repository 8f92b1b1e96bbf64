//! A server that is new gets little at first, where a rule says so.

use e2e::echo::{Call, Outcome};
use e2e::mesh::eventually;

use super::CLIENTS;
use super::row::is_by;
use super::rows::of;
use crate::SETTLED;
use crate::scene::Scene;

/// A name whose servers have to warm up, and one whose do not.
const NAMES: [&str; 2] = ["warming.test", "ready.test"];
const CALLS: usize = 100;

/// Two names with the first server, or with both.
pub(super) fn manifest(endpoints: &[&str]) -> String {
    let endpoints: Vec<String> = endpoints
        .iter()
        .map(|ip| format!("{{address: {ip}}}"))
        .collect();
    include_str!("../../routing/warm.yaml").replace("{{endpoints}}", &endpoints.join(", "))
}

/// The second server is added while the first has been there for a while.
pub(super) async fn warms_up(scene: &Scene, servers: &[&str]) {
    let calls: Vec<Call> = NAMES
        .iter()
        .flat_map(|name| vec![of("app").host(name); CALLS])
        .collect();
    scene.apply(&manifest(servers)).await;
    let is_warming = |outcomes: &[Outcome]| {
        let new = |outcomes: &[Outcome]| {
            let by_new = outcomes.iter().filter(|outcome| is_by("v2", outcome));
            by_new.count()
        };
        let (warming, ready) = outcomes.split_at(CALLS);
        // Half of them but for chance, as the other name's server gets.
        (1..=CALLS / 4).contains(&new(warming)) && new(ready) > CALLS / 3
    };
    let seen = CLIENTS.map(|client| {
        eventually("the new server warms up", SETTLED, async || {
            is_warming(&scene.call(client, &calls).await)
        })
    });
    for outcome in futures::future::join_all(seen).await {
        outcome.unwrap();
    }
}
