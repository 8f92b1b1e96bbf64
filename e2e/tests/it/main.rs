//! End-to-end tests: the mesh as its users see it, through the real processes. Those that need network namespaces are
//! ignored by default and run by name in `e2e/test.sh`; so do those that need a whole Kubernetes node ([`node`]).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod authority;
mod dashboards;
mod dependencies;
mod discovery;
mod edge;
mod envoy;
mod failure;
mod families;
mod graph;
mod input;
mod inspection;
mod lifecycle;
mod mixer;
mod modes;
mod names;
mod node;
mod passthrough;
mod policy;
mod proof;
mod routing;
mod scene;
mod security;
mod switches;
mod tour;
mod traffic;

use std::time::Duration;

use e2e::load::{Answer, Report};
use e2e::mesh::{Mesh, eventually};

/// How long a change may take to reach every proxy, on a busy machine with debug programs.
const SETTLED: Duration = Duration::from_secs(120);

/// Waits until `times` product pages in a row are as wanted.
async fn settles(mesh: &Mesh, what: &str, times: usize, is_wanted: impl Fn(&Answer) -> bool) {
    pages_settle(
        what,
        times,
        async || mesh.get("/productpage").await,
        is_wanted,
    )
    .await;
}

/// Waits until `times` answers of `page` in a row are as wanted.
async fn pages_settle(
    what: &str,
    times: usize,
    page: impl AsyncFn() -> anyhow::Result<Answer>,
    is_wanted: impl Fn(&Answer) -> bool,
) {
    let seen = async || {
        for _ in 0..times {
            if !page().await.is_ok_and(|answer| is_wanted(&answer)) {
                return false;
            }
        }
        true
    };
    eventually(what, SETTLED, seen).await.unwrap();
}

/// There was traffic, at least `least` good answers, and nothing failed.
fn nothing_failed(what: &str, report: &Report, least: usize) {
    assert!(
        report.failed() == 0 && report.good >= least,
        "{what}: {} good, {:?}",
        report.good,
        report.failures
    );
}

fn has_details(answer: &Answer) -> bool {
    answer.status == 200 && answer.body.contains("ISBN-10")
}

/// Sends all of reviews' traffic to its third version and waits until every page shows it.
async fn send_everybody_to_red_stars(mesh: &Mesh) {
    for sample in [
        "networking/destination-rule-all.yaml",
        "networking/virtual-service-reviews-v3.yaml",
    ] {
        mesh.apply(sample).await.unwrap();
    }
    settles(mesh, "only red stars", 10, |page| {
        page.body.contains("stars red")
    })
    .await;
}
