//! Grafana's dashboards against what the components of a running mesh really export: no panel may be empty.

use e2e::mesh::{Mesh, eventually};
use regex::Regex;
use serde_json::Value;

use crate::{SETTLED, has_details, settles};

/// One sample: its name, its labels.
type Sample = (String, Vec<(String, String)>);

/// Jobs as the chart of Prometheus calls them: where they are scraped.
const JOBS: &[(&str, &str, u16)] = &[
    ("istio-mesh", "deploy/istio-telemetry", 42422),
    ("istio-policy", "deploy/istio-policy", 15014),
    ("istio-telemetry", "deploy/istio-telemetry", 15014),
    ("pilot", "deploy/istio-pilot", 15014),
    ("galley", "deploy/istio-galley", 15014),
    ("citadel", "deploy/istio-citadel", 15014),
    ("sidecar-injector", "deploy/istio-sidecar-injector", 15014),
];

/// An exposition, line by line.
fn samples(job: &str, text: &str) -> Vec<Sample> {
    let label = Regex::new(r#"([a-zA-Z_]+)="((?:[^"\\]|\\.)*)""#).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let end = line.find(['{', ' ']).unwrap_or(line.len());
            let labels = label.captures_iter(line);
            let labels = labels.map(|found| (found[1].to_owned(), found[2].to_owned()));
            let job = ("job".to_owned(), job.to_owned());
            (line[..end].to_owned(), labels.chain([job]).collect())
        })
        .collect()
}

/// Whether a sample is one of a selector's. Variables match everything.
fn matches(sample: &Sample, name: &str, matchers: &str) -> bool {
    // Most are not, and patterns are slow to compile.
    if sample.0 != name {
        return false;
    }
    let matcher = Regex::new(r#"([a-z_]+)(=~|!~|!=|=)"([^"]*)""#).unwrap();
    matcher.captures_iter(matchers).all(|found| {
        let (label, operator, want) = (&found[1], &found[2], &found[3]);
        if want.starts_with('$') {
            return true;
        }
        let known = sample.1.iter().find(|(known, _)| known == label);
        let value = known.map_or("", |(_, value)| value);
        let is_match = || {
            let pattern = Regex::new(&format!("^(?:{want})$"));
            pattern.unwrap().is_match(value)
        };
        match operator {
            "=" => value == want,
            "!=" => value != want,
            "=~" => is_match(),
            _ => !is_match(),
        }
    })
}

/// What an expression asks for that nobody exports.
fn missing(expression: &str, samples: &[Sample]) -> Vec<String> {
    let selector = Regex::new(
        r"\b((?:istio|mixer|grpc|process|pilot|galley|citadel|sidecar)_[a-z0-9_]+)(\{[^}]*\})?",
    )
    .unwrap();
    let grouping = Regex::new(r"by \(([^)]*)\)").unwrap();
    let bare = grouping.replace_all(expression, "");
    let mut missing = Vec::new();
    let mut selectors = 0;
    for found in selector.captures_iter(&bare) {
        selectors += 1;
        let matchers = found.get(2).map_or("", |found| found.as_str());
        let sample = samples
            .iter()
            .find(|sample| matches(sample, &found[1], matchers));
        let Some(sample) = sample else {
            missing.push(format!("{expression}: nothing of {}", &found[0]));
            continue;
        };
        for by in grouping.captures_iter(expression) {
            for label in by[1].split(',').map(str::trim) {
                if !sample.1.iter().any(|(known, _)| known == label) {
                    missing.push(format!("{expression}: no label {label}"));
                }
            }
        }
    }
    if selectors == 0 {
        missing.push(format!("{expression}: no metric"));
    }
    missing
}

/// Every expression of every dashboard.
fn expressions() -> Vec<String> {
    let folder = e2e::mesh::project().join("helm/grafana/dashboards");
    let mut expressions = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let dashboard: Value = serde_json::from_str(&text).unwrap();
        for panel in dashboard["panels"].as_array().unwrap() {
            let targets = panel["targets"].as_array().unwrap();
            assert!(!targets.is_empty(), "{panel}");
            let texts = targets
                .iter()
                .map(|target| target["expr"].as_str().unwrap());
            expressions.extend(texts.map(str::to_owned));
        }
    }
    expressions
}

async fn scrape(mesh: &Mesh) -> Vec<Sample> {
    let mut all = Vec::new();
    for (job, deployment, port) in JOBS {
        let url = format!("http://127.0.0.1:{port}/metrics");
        let command = [
            "local",
            "exec",
            "-n",
            "istio-system",
            deployment,
            "--",
            "curl",
            "-s",
            &url,
        ];
        all.extend(samples(job, &mesh.ctl_ok(&command).await.unwrap()));
    }
    all
}

/// Reports what proxies report of connections: the sample speaks HTTP only.
async fn report_connections(mesh: &Mesh) {
    let mixs = e2e::mesh::programs().unwrap().join("mixs");
    for reporter in ["inbound", "outbound"] {
        for event in ["open", "close"] {
            let attributes = format!(
                "context.protocol=tcp,context.reporter.kind={reporter},connection.event={event},\
                 connection.sent.bytes=10,connection.received.bytes=1"
            );
            let report = [
                "local",
                "exec",
                "-n",
                "istio-system",
                "deploy/istio-telemetry",
                "--",
                mixs.to_str().unwrap(),
                "report",
                "-a",
                &attributes,
            ];
            // What is not taken yet is reported at the next look.
            let _ = mesh.ctl(&report).await;
        }
    }
}

#[tokio::test]
#[ignore = "needs root and iptables"]
async fn no_panel_is_empty() {
    let switches = "global.disablePolicyChecks=false,global.policyCheckFailOpen=true";
    let mut mesh = Mesh::up("e2e-dashboards", &["--set", switches])
        .await
        .unwrap();
    settles(&mesh, "the page", 3, has_details).await;
    mesh.apply("policy/mixer-denier.yaml").await.unwrap();
    // Galley refuses this one.
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("wrong.yaml");
    let text = "apiVersion: networking.istio.io/v1alpha3\nkind: VirtualService\n\
                metadata: {name: wrong}\nspec: {hosts: [details], http: [{wrong: 1}]}\n";
    std::fs::write(&wrong, text).unwrap();
    let apply = ["local", "apply", "-f", wrong.to_str().unwrap()];
    assert_eq!(mesh.ctl(&apply).await.unwrap().code, 1);
    let expressions = expressions();
    assert!(expressions.len() > 60, "{}", expressions.len());
    let mut gaps = Vec::new();
    let full = eventually("no panel is empty", SETTLED, async || {
        // A report that comes before the rules is counted nowhere, so each look has its own.
        report_connections(&mesh).await;
        mesh.get("/productpage").await.is_ok() && {
            let exported = scrape(&mesh).await;
            let missing = expressions.iter().map(|text| missing(text, &exported));
            gaps = missing.flatten().collect();
            gaps.is_empty()
        }
    });
    let full = full.await;
    assert!(full.is_ok(), "{gaps:#?}");
    assert_eq!(mesh.end().await, "");
}
