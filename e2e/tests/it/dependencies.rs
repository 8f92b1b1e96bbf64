//! What the project is built of: licences that it may use, from the registry only, one version of what secures it, and no
//! `unsafe` of our own.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

/// Licences that everybody may use, alone or together.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];
/// Two versions of one of these would mean two opinions about the same bytes.
const SINGLE: &[&str] = &[
    "h2",
    "http",
    "httparse",
    "hyper",
    "jsonwebtoken",
    "prost",
    "rcgen",
    "ring",
    "rustls",
    "rustls-webpki",
    "sled",
    "tokio",
    "tokio-rustls",
    "tonic",
    "x509-parser",
];

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--offline", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text<'a>(package: &'a Value, field: &str) -> &'a str {
    package[field].as_str().unwrap_or_default()
}

/// Whether an SPDX expression (of the old form with slashes, too) leaves a way to use only what is on the list.
fn is_free(expression: &str) -> bool {
    let plain = expression.replace('/', " OR ");
    // `(A OR B) AND C`: the parentheses bind closer than anything that stands here.
    plain.split(" AND ").all(|part| {
        let part = part.trim().trim_matches(['(', ')']);
        part.split(" OR ")
            .any(|licence| LICENCES.contains(&licence.trim()))
    })
}

#[test]
fn licences_are_free_sources_are_the_registry_and_versions_are_single() {
    let metadata = metadata();
    let mut wrong = Vec::new();
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let (name, version) = (text(package, "name"), text(package, "version"));
        versions.entry(name).or_default().push(version);
        let licence = text(package, "license");
        if !is_free(licence) {
            wrong.push(format!("{name} {version}: licence {licence:?}"));
        }
        let source = text(package, "source");
        if !source.is_empty() && source != "registry+https://github.com/rust-lang/crates.io-index" {
            wrong.push(format!("{name} {version}: source {source}"));
        }
    }
    for name in SINGLE {
        let found = versions.get(name).map_or(0, Vec::len);
        if found != 1 {
            wrong.push(format!("{name}: {found} versions"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(is_free("(MIT OR Apache-2.0) AND Unicode-3.0") && is_free("MIT/GPL-3.0"));
    assert!(!is_free("GPL-3.0") && !is_free("MIT AND AGPL-3.0") && !is_free(""));
}

#[test]
fn no_package_of_ours_may_be_unsafe() {
    let root = e2e::mesh::project();
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    assert!(manifest.contains("unsafe_code = \"forbid\""));
    for package in metadata()["packages"].as_array().unwrap() {
        if package["source"].is_null() {
            let manifest = std::fs::read_to_string(text(package, "manifest_path")).unwrap();
            assert!(
                manifest.contains("[lints]\nworkspace = true"),
                "{} has lints of its own",
                text(package, "name")
            );
        }
    }
}
