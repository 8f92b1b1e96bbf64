//! Mixer: policy decides over requests, telemetry counts them.

use std::time::Duration;

use e2e::load::HttpClient;
use e2e::mesh::{Mesh, eventually};

use crate::{SETTLED, has_details, send_everybody_to_red_stars, settles};

/// The longest that a verdict is kept, with room for a busy machine.
const VERDICT_KEPT: Duration = Duration::from_secs(100);
/// Mixer is asked about each request, and whoever cannot ask goes on.
pub(crate) const CHECKS: &str = "global.disablePolicyChecks=false,global.policyCheckFailOpen=true";

#[tokio::test]
#[ignore = "needs root and iptables"]
async fn mixer_denies_by_rule_and_counts_what_happened() {
    let mut mesh = Mesh::up("e2e-policy", &["--set", CHECKS]).await.unwrap();
    settles(&mesh, "the page", 1, has_details).await;
    assert!(crate::switches::has_mixer_filters(&mesh).await);
    requests_are_denied_and_counted(&mesh).await;
    assert_eq!(mesh.end().await, "");
}

/// The case itself, wherever `mesh` is.
pub(crate) async fn requests_are_denied_and_counted(mesh: &Mesh) {
    settles(mesh, "the page", 3, has_details).await;
    send_everybody_to_red_stars(mesh).await;
    mesh.apply("policy/mixer-denier.yaml").await.unwrap();
    // Proxies keep a verdict as long as Mixer said: a minute where no rule had a say.
    eventually("ratings are denied to reviews", VERDICT_KEPT, async || {
        mesh.get("/productpage").await.is_ok_and(|page| {
            page.body
                .contains("Ratings service is currently unavailable")
        })
    })
    .await
    .unwrap();

    let metrics = mesh.metrics_url();
    let client = HttpClient::default();
    eventually(
        "requests are counted, the denied ones too",
        SETTLED,
        async || {
            client.get(&metrics).await.is_ok_and(|answer| {
                let counted = |code: &str, service: &str| {
                    answer.body.lines().any(|line| {
                        line.starts_with("istio_requests_total{")
                            && line.contains(&format!("response_code=\"{code}\""))
                            && line.contains(&format!("destination_service_name=\"{service}\""))
                    })
                };
                counted("200", "productpage") && counted("403", "ratings")
            })
        },
    )
    .await
    .unwrap();
    let client = HttpClient::default();
    eventually("both ends of a request have names", SETTLED, async || {
        client.get(&metrics).await.is_ok_and(|answer| {
            ["source", "destination"].iter().all(|reporter| {
                let labels = [
                    format!("reporter=\"{reporter}\""),
                    "source_workload=\"productpage-v1\"".to_owned(),
                    "source_app=\"productpage\"".to_owned(),
                    "destination_workload=\"details-v1\"".to_owned(),
                    "destination_version=\"v1\"".to_owned(),
                ];
                let mut lines = answer.body.lines();
                lines.any(|line| {
                    line.starts_with("istio_requests_total{")
                        && labels.iter().all(|label| line.contains(label))
                })
            })
        })
    })
    .await
    .unwrap();
    mesh.delete("policy/mixer-denier.yaml").await.unwrap();
    settles(mesh, "ratings are back", 3, |page| {
        page.body.contains("stars red")
    })
    .await;
}
