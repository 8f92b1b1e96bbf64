//! A share of the requests is mirrored: about as many as the route says.

use std::ops::RangeInclusive;

use e2e::echo::Call;
use e2e::mesh::eventually;

use super::CLIENTS;
use super::row::{Row, is_by};
use super::rows::of;
use crate::SETTLED;
use crate::scene::Scene;

pub(super) const CONFIGURATION: &str = include_str!("../../routing/mirrors.yaml");
/// Requests of which a half is mirrored.
const CALLS: usize = 200;
/// More than six standard deviations around the half: by chance it is left once in a thousand million times.
const HALF: RangeInclusive<usize> = 55..=145;
/// Requests of which all are mirrored, or none.
const SOME: usize = 50;

fn get(target: &str) -> Call {
    of("app").host("mirrored.test").target(target)
}

/// The routes and where they lead are known before anything is counted.
pub(super) fn rows() -> Vec<Row> {
    let calls = vec![get("/half"), of("mirror")];
    vec![Row::about("mirrorPercentage", calls, |seen| {
        is_by("v1", &seen[0])
            && seen[0].text.contains("\"x-mirrored\": \"half\"")
            && is_by("mirror", &seen[1])
    })]
}

/// What is mirrored without a condition comes last: by then the share has been mirrored, too.
pub(super) async fn are_a_share(scene: &Scene) {
    for client in CLIENTS {
        let [none, half, all] = ["none", "half", "all"].map(|part| format!("/{part}-of-{client}"));
        for (target, calls) in [(&none, SOME), (&half, CALLS), (&all, SOME)] {
            let outcomes = scene.call(client, &vec![get(target); calls]).await;
            assert!(
                outcomes.iter().all(|outcome| is_by("v1", outcome)),
                "{outcomes:?}"
            );
        }
        let mut counts = [0; 3];
        let seen = eventually("every mirrored request is seen", SETTLED, async || {
            let seen = [of("mirror").target("/seen")];
            let text = scene.call("outside", &seen).await.remove(0).text;
            let count = |target| text.matches(&format!("seen {target} ")).count();
            counts = [&none, &half, &all].map(count);
            counts[1] >= *HALF.start() && counts[2] == SOME
        });
        assert!(seen.await.is_ok(), "{client}: {counts:?}");
        assert!(
            counts[0] == 0 && HALF.contains(&counts[1]),
            "{client}: {counts:?}"
        );
    }
}
