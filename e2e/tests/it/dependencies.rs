//! No `unsafe` of our own, in any package. (Licences, sources and versions of what the project is built of: `.deny.toml`.)

use std::process::Command;

use serde_json::Value;

/// What cargo says of the workspace's own packages.
pub(crate) fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version=1",
            "--no-deps",
            "--offline",
            "--locked",
        ])
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
