//! Commands that need no mesh.

use std::process::{Command, Output};

fn biremectl(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_biremectl"))
        .args(args)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn without_a_mesh_a_command_says_how_to_get_one() {
    let output = biremectl(&["local", "status", "--name", "there-is-none"]);
    assert!(!output.status.success());
    let error = text(&output.stderr);
    assert!(error.contains("no mesh runs here"), "{error}");
    assert!(error.contains("biremectl local up"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn a_wrong_value_ends_with_code_2_and_a_suggestion() {
    let output = biremectl(&[
        "local",
        "up",
        "--name",
        "wrong-value",
        "--set",
        "mixer.polcy.enabled=false",
    ]);
    assert_eq!(output.status.code(), Some(2));
    assert!(!std::fs::exists("/run/bireme/local/wrong-value").unwrap());
    let error = text(&output.stderr);
    assert!(error.contains("did you mean policy?"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn a_missing_file_ends_with_code_2() {
    for args in [
        ["local", "apply", "-f", "/nowhere/x.yaml"],
        ["kube-inject", "-f", "/nowhere/x.yaml", "-o=/tmp/never"],
    ] {
        let output = biremectl(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).contains("/nowhere/x.yaml"), "{args:?}");
    }
}

#[test]
fn completion_and_version_need_nothing() {
    let completion = biremectl(&["completion", "bash"]);
    assert!(text(&completion.stdout).contains("proxy-status"));
    let version = biremectl(&["version", "--client", "-o", "json"]);
    let version: serde_json::Value = serde_json::from_slice(&version.stdout).unwrap();
    assert_eq!(version["clientVersion"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn files_are_analyzed_without_a_mesh() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("x.yaml");
    let manifest = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\n\
        spec:\n  hosts: [a]\n  gateways: [missing]\n  http:\n  - route:\n    - destination: {host: a}\n";
    std::fs::write(&file, manifest).unwrap();
    let output = biremectl(&["analyze", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("[IST0101]"), "{output:?}");
}

#[test]
fn kube_inject_adds_the_proxy() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("x.yaml");
    let manifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: default}\n\
        spec:\n  containers:\n  - {name: a, image: a}\n";
    std::fs::write(&file, manifest).unwrap();
    let output = biremectl(&["kube-inject", "-f", file.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output.stdout).contains("istio-proxy"));
}
