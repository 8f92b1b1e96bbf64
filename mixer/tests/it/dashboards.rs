//! The dashboards against what is really exported: no panel may be empty.

use std::path::Path;

use proto::istio::mixer::v1::ReportRequest;
use proto_mesh::attribute::{Attributes, Value};
use regex::Regex;
use serde_json::Value as Json;

use crate::server::{TestServer, attributes, default_config, request};

/// One sample: its name, its labels.
type Sample = (String, Vec<(String, String)>);

/// An exposition, line by line.
fn samples(text: &str) -> Vec<Sample> {
    let label = Regex::new(r#"([a-zA-Z_]+)="((?:[^"\\]|\\.)*)""#).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let end = line.find(['{', ' ']).unwrap_or(line.len());
            let labels = label.captures_iter(line);
            let labels = labels.map(|found| (found[1].to_owned(), found[2].to_owned()));
            (line[..end].to_owned(), labels.collect())
        })
        .collect()
}

/// Whether a sample is one of a selector's. Variables match everything; `job` is the scraper's own label.
fn matches(sample: &Sample, name: &str, matchers: &str) -> bool {
    let matcher = Regex::new(r#"([a-z_]+)(=~|!~|!=|=)"([^"]*)""#).unwrap();
    sample.0 == name
        && matcher.captures_iter(matchers).all(|found| {
            let (label, operator, want) = (&found[1], &found[2], &found[3]);
            if label == "job" || want.starts_with('$') {
                return true;
            }
            let known = sample.1.iter().find(|(known, _)| known == label);
            let value = known.map_or("", |(_, value)| value);
            let is_match = || {
                Regex::new(&format!("^(?:{want})$"))
                    .unwrap()
                    .is_match(value)
            };
            match operator {
                "=" => value == want,
                "!=" => value != want,
                "=~" => is_match(),
                _ => !is_match(),
            }
        })
}

fn check(dashboard: &str, samples: &[Sample]) -> usize {
    let selector = Regex::new(r"\b((?:istio|mixer|grpc|process)_[a-z_]+)(\{[^}]*\})?").unwrap();
    let grouping = Regex::new(r"by \(([^)]*)\)").unwrap();
    let dashboard: Json = serde_json::from_str(dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    for panel in panels {
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            let bare = grouping.replace_all(expression, "");
            let mut selectors = 0;
            for found in selector.captures_iter(&bare) {
                selectors += 1;
                let matchers = found.get(2).map_or("", |found| found.as_str());
                let sample = samples
                    .iter()
                    .find(|sample| matches(sample, &found[1], matchers));
                let sample =
                    sample.unwrap_or_else(|| panic!("{expression}: nothing of {}", &found[0]));
                for by in grouping.captures_iter(expression) {
                    for label in by[1].split(',').map(str::trim) {
                        let is_there = sample.1.iter().any(|(known, _)| known == label);
                        assert!(is_there, "{expression}: no label {label}");
                    }
                }
            }
            assert!(selectors > 0, "{expression}: no metric");
        }
    }
    panels.len()
}

fn traffic(reporter: &'static str, protocol: &'static str, event: &'static str) -> Attributes {
    attributes([
        ("context.protocol", protocol.into()),
        ("context.reporter.kind", reporter.into()),
        ("connection.event", event.into()),
        ("connection.sent.bytes", Value::Int64(10)),
        ("connection.received.bytes", Value::Int64(1)),
        ("response.code", Value::Int64(200)),
        ("source.workload.name", "productpage-v1".into()),
        ("destination.workload.name", "reviews-v1".into()),
    ])
}

#[tokio::test]
async fn no_panel_is_empty() {
    let mut server = TestServer::start(&default_config()).await;
    for reporter in ["inbound", "outbound"] {
        for (protocol, event) in [("http", "na"), ("tcp", "open"), ("tcp", "close")] {
            let message = request(&traffic(reporter, protocol, event));
            let report = ReportRequest {
                attributes: message.attributes.into_iter().collect(),
                global_word_count: message.global_word_count,
                ..ReportRequest::default()
            };
            server.client.report(report).await.unwrap();
        }
    }
    // A call is counted when it is over, which may be after its answer has come.
    crate::server::eventually("calls are counted", || {
        let page = server.page("/metrics");
        async move { page.await.contains("grpc_server_handled_total") }
    })
    .await;
    let mut exported = samples(&server.scrape().await);
    exported.extend(samples(&server.page("/metrics").await));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("default/dashboards");
    let mut panels = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        panels += check(&text, &exported);
    }
    assert!(panels > 30, "{panels}");
}

#[tokio::test]
async fn access_logs_can_be_switched_on() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("default/accesslog.yaml");
    let accesslog = std::fs::read_to_string(path).unwrap();
    let server = TestServer::start(&format!("{}\n{accesslog}", default_config())).await;
    let page: Json = serde_json::from_str(&server.page("/debug/config").await).unwrap();
    assert_eq!(page["errors"], serde_json::json!([]));
    let handlers = server.page("/debug/handlers").await;
    assert!(handlers.contains("stdio.istio-system"), "{handlers}");
}
