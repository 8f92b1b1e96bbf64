//! Mixer: policy decides over requests, telemetry counts them.

use std::time::Duration;

use e2e::load::HttpClient;
use e2e::mesh::{Mesh, eventually};
use serde_json::Value;

use crate::{SETTLED, has_details, send_everybody_to_red_stars, settles};

/// The longest that a verdict is kept, with room for a busy machine.
const VERDICT_KEPT: Duration = Duration::from_secs(100);
/// Mixer is asked about each request, and whoever cannot ask goes on.
pub(crate) const CHECKS: &str = "global.disablePolicyChecks=false,global.policyCheckFailOpen=true";
const ACCESS_LOGS: &str = "mixer.adapters.stdio.enabled=true";

#[tokio::test]
#[ignore = "needs root and iptables"]
async fn mixer_denies_by_rule_and_counts_what_happened() {
    let settings = format!("{CHECKS},{ACCESS_LOGS}");
    let mut mesh = Mesh::up("e2e-policy", &["--set", &settings]).await.unwrap();
    settles(&mesh, "the page", 1, has_details).await;
    assert!(crate::switches::has_mixer_filters(&mesh).await);
    ratings_are_denied(&mesh).await;
    a_denial_does_not_bite_where_checks_are_disabled(&mesh).await;
    what_happened_is_counted(&mesh).await;
    ratings_are_back(&mesh).await;
    a_bound_quota_is_kept(&mesh).await;
    requests_are_logged(&mesh).await;
    assert_eq!(mesh.end().await, "");
}

/// The case itself, wherever `mesh` is.
pub(crate) async fn requests_are_denied_and_counted(mesh: &Mesh) {
    ratings_are_denied(mesh).await;
    what_happened_is_counted(mesh).await;
    ratings_are_back(mesh).await;
    a_bound_quota_is_kept(mesh).await;
}

async fn ratings_are_denied(mesh: &Mesh) {
    settles(mesh, "the page", 3, has_details).await;
    send_everybody_to_red_stars(mesh).await;
    mesh.apply("policy/mixer-denier.yaml").await.unwrap();
    // Proxies keep a verdict as long as Mixer said: a minute where no rule had a say.
    no_ratings_are_shown(mesh, VERDICT_KEPT).await;
}

async fn no_ratings_are_shown(mesh: &Mesh, patience: Duration) {
    eventually("ratings are denied to reviews", patience, async || {
        mesh.get("/productpage").await.is_ok_and(|page| {
            page.body
                .contains("Ratings service is currently unavailable")
        })
    })
    .await
    .unwrap();
}

async fn ratings_are_back(mesh: &Mesh) {
    mesh.delete("policy/mixer-denier.yaml").await.unwrap();
    settles(mesh, "ratings are back", 3, |page| {
        page.body.contains("stars red")
    })
    .await;
}

/// The sum of the requests in series with all of `labels`.
fn sum(metrics: &str, labels: &[(&str, &str)]) -> f64 {
    let series = metrics.lines().filter(|line| {
        let of = |(name, value): &(&str, &str)| line.contains(&format!("{name}=\"{value}\""));
        line.starts_with("istio_requests_total{") && labels.iter().all(of)
    });
    series
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// Waits until Mixer has counted requests in series with all of these labels, for each set of them.
async fn counted(mesh: &Mesh, what: &str, wanted: &[Vec<(&str, &str)>]) {
    let (client, metrics) = (HttpClient::default(), mesh.metrics_url());
    let outcome = eventually(what, SETTLED, async || {
        let page = client.get(&metrics).await;
        page.is_ok_and(|page| wanted.iter().all(|labels| sum(&page.body, labels) > 0.0))
    });
    outcome.await.unwrap();
}

async fn what_happened_is_counted(mesh: &Mesh) {
    let of = |code, service| {
        let service = ("destination_service_name", service);
        vec![("response_code", code), service]
    };
    let what = "requests are counted, the denied ones too";
    counted(
        mesh,
        what,
        &[of("200", "productpage"), of("403", "ratings")],
    )
    .await;
    let ends = ["source", "destination"].map(|reporter| {
        vec![
            ("reporter", reporter),
            ("source_workload", "productpage-v1"),
            ("source_app", "productpage"),
            ("destination_workload", "details-v1"),
            ("destination_version", "v1"),
        ]
    });
    counted(mesh, "both ends of a request have names", &ends).await;
    let account = |name| format!("cluster.local/ns/default/sa/bookinfo-{name}");
    let (source, destination) = (account("productpage"), account("details"));
    let certified = vec![
        ("reporter", "destination"),
        ("destination_workload", "details-v1"),
        ("connection_security_policy", "mutual_tls"),
        ("source_principal", source.as_str()),
        ("destination_principal", destination.as_str()),
    ];
    counted(
        mesh,
        "both ends are who their certificates say",
        &[certified],
    )
    .await;
}

/// Switches the checks of the whole mesh, as a person does while it runs.
async fn disable_checks(mesh: &Mesh, is_disabled: bool) {
    let name = ["local", "get", "configmap", "istio"];
    let get = [&name[..], &["-n", "istio-system", "-o", "json"]].concat();
    let mut settings: Value = serde_json::from_str(&mesh.ctl_ok(&get).await.unwrap()).unwrap();
    let text = settings["data"]["mesh"].as_str().unwrap();
    let field = |value: bool| format!("disablePolicyChecks: {value}");
    assert!(text.contains(&field(!is_disabled)), "{text}");
    settings["data"]["mesh"] = text
        .replace(&field(!is_disabled), &field(is_disabled))
        .into();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), settings.to_string()).unwrap();
    let apply = ["local", "apply", "-f", file.path().to_str().unwrap()];
    mesh.ctl_ok(&apply).await.unwrap();
}

/// While ratings are denied: whoever does not ask is not refused, and what happens is counted all the same.
async fn a_denial_does_not_bite_where_checks_are_disabled(mesh: &Mesh) {
    let of_ratings = |code| {
        vec![
            ("response_code", code),
            ("destination_service_name", "ratings"),
            ("reporter", "destination"),
        ]
    };
    // What was given before has been reported when the denial has.
    counted(mesh, "the denial is counted", &[of_ratings("403")]).await;
    let given = async || {
        let page = HttpClient::default().get(&mesh.metrics_url()).await;
        page.map_or(0.0, |page| sum(&page.body, &of_ratings("200")))
    };
    let before = given().await;
    disable_checks(mesh, true).await;
    settles(mesh, "ratings without a check", 3, |page| {
        page.body.contains("stars red")
    })
    .await;
    let outcome = eventually("what was given is counted", SETTLED, async || {
        given().await >= before + 3.0
    });
    outcome.await.unwrap();
    disable_checks(mesh, false).await;
    no_ratings_are_shown(mesh, VERDICT_KEPT).await;
}

/// A QuotaSpec that is bound to a service is charged to the handler that counts it.
async fn a_bound_quota_is_kept(mesh: &Mesh) {
    mesh.apply("policy/mixer-quota.yaml").await.unwrap();
    settles(mesh, "the quota is used up", 5, |page| {
        page.status == 429
            && page
                .body
                .contains("Quota is exhausted for: requestcountquota")
    })
    .await;
    let refused = vec![
        ("response_code", "429"),
        ("destination_service_name", "productpage"),
        ("reporter", "destination"),
    ];
    counted(mesh, "what a quota refuses is counted", &[refused]).await;
    mesh.delete("policy/mixer-quota.yaml").await.unwrap();
    settles(mesh, "pages without a quota", 5, has_details).await;
}

/// Telemetry writes a line for each request.
async fn requests_are_logged(mesh: &Mesh) {
    let name = ["local", "logs", "deploy/istio-telemetry"];
    let logs = [&name[..], &["-n", "istio-system"]].concat();
    let is_of_page = |line: &str| {
        let Ok(line) = serde_json::from_str::<Value>(line) else {
            return false;
        };
        let has = |name: &str, value: &str| line[name] == value;
        has("instance", "accesslog.instance.istio-system")
            && has("reporter", "destination")
            && has("method", "GET")
            && has("url", "/productpage")
            && has("destinationApp", "productpage")
            && has("connection_security_policy", "mutual_tls")
            && line["responseCode"] == 200
    };
    let is_logged = eventually("a line for a page", SETTLED, async || {
        mesh.ctl_ok(&logs).await.unwrap().lines().any(is_of_page)
    });
    is_logged.await.unwrap();
}
