//! `biremectl manifest` and `profile` over the charts.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::{CHARTS, PROFILES, find};

/// Runs `biremectl` of this build over the charts: its exit code, and what it printed.
fn biremectl(arguments: &[&str]) -> (Option<i32>, String) {
    let manifests = CHARTS.display().to_string();
    run(&[arguments, &["--manifests", &manifests]].concat())
}

fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("biremectl");
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let problem = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), text + &problem)
}

#[test]
fn an_operator_is_rendered_by_biremectl() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("operator.yaml").display().to_string();
    let operator = "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec:\n  profile: minimal\n  tag: 1.9\n  \
        components:\n    base: {enabled: false}\n    pilot:\n      k8s:\n        hpaSpec: {minReplicas: 3}\n        \
        overlays:\n        - kind: Deployment\n          name: istio-pilot\n          patches:\n          \
        - {path: 'spec.template.spec.containers.[name:discovery].args.[-1]', value: --extra}\n";
    fs::write(&file, operator).unwrap();
    let (code, text) = biremectl(&[
        "manifest",
        "generate",
        "-f",
        &file,
        "--set",
        "values.security.enabled=true",
    ]);
    assert_eq!(code, Some(0), "{text}");
    let documents = proto::yaml::parse_documents(&text).into_iter();
    let objects: Vec<Value> = documents.map(|document| document.unwrap().value).collect();
    let container =
        &find(&objects, "Deployment istio-pilot")["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "docker.io/bireme/pilot:1.9");
    assert_eq!(
        container["args"].as_array().unwrap().last().unwrap(),
        "--extra"
    );
    let scaling = find(&objects, "HorizontalPodAutoscaler istio-pilot");
    assert_eq!(scaling["spec"]["minReplicas"], 3);
    find(&objects, "Deployment istio-citadel");
    let (code, text) = biremectl(&["manifest", "generate", "--set", "istio_cni.enabled=true"]);
    assert!(
        code == Some(0) && text.contains("name: istio-cni-node"),
        "{text}"
    );
}

#[test]
fn profiles_are_listed_and_compared() {
    let (code, text) = biremectl(&["profile", "list"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        PROFILES
            .iter()
            .all(|name| text.contains(&format!("    {name}\n"))),
        "{text}"
    );
    let (code, text) = biremectl(&["profile", "diff", "demo", "demo-auth"]);
    assert!(code == Some(1) && text.contains("+  mtls:"), "{text}");
    let (code, text) = biremectl(&["profile", "diff", "demo", "demo"]);
    assert_eq!((code, text.as_str()), (Some(0), "Profiles are identical\n"));
    let (code, text) = biremectl(&["profile", "dump", "none"]);
    assert!(
        code == Some(2) && text.contains("there are default, demo"),
        "{text}"
    );
}

#[test]
fn manifests_are_compared_by_what_they_say_and_the_version_is_the_charts() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name).display().to_string();
        fs::write(&path, text).unwrap();
        path
    };
    let map = |name: &str, value: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{key: {value}}}\n"
        )
    };
    let one = file(
        "one.yaml",
        &format!("{}---\n{}", map("a", "1"), map("b", "2")),
    );
    let turned = file(
        "turned.yaml",
        &format!("# Turned.\n{}---\n{}", map("b", "2"), map("a", "1")),
    );
    let other = file(
        "other.yaml",
        &format!("{}---\n{}", map("a", "1"), map("b", "3")),
    );
    let (code, text) = run(&["manifest", "diff", &one, &turned]);
    assert_eq!(
        (code, text.as_str()),
        (Some(0), "Manifests are identical\n")
    );
    let (code, text) = run(&["manifest", "diff", &one, &other]);
    assert!(
        code == Some(1) && text.contains("-  key: 2\n+  key: 3\n") && !text.contains("key: 1\n+"),
        "{text}"
    );
    let (code, text) = biremectl(&["manifest", "versions"]);
    let chart = fs::read_to_string(CHARTS.join("bireme/Chart.yaml")).unwrap();
    assert_eq!(code, Some(0), "{text}");
    assert!(
        chart.contains(&format!("\nversion: {}\n", text.trim())),
        "{text}"
    );
    let (code, text) = biremectl(&["profile", "dump", "demo"]);
    assert!(
        code == Some(0) && text.contains("istio-egressgateway"),
        "{text}"
    );
}
