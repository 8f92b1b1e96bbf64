//! Components meet on the wire only: no component package depends on another one.

use serde_json::Value;

use crate::dependencies::metadata;

/// What several components share.
const SHARED: &[&str] = &["proto", "proto-mesh", "proto-mcp", "proto-component"];
/// The programs that put components together.
const MORE: &[(&str, &[&str])] = &[
    ("pilot-agent", &["proxy"]),
    ("pilot-ctl", &["galley", "injector"]),
];

#[test]
fn no_component_depends_on_another() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let ours: Vec<String> = packages.iter().map(name).collect();
    let mut offenders = Vec::new();
    for package in packages.iter().filter(|package| package["name"] != "e2e") {
        let package_name = name(package);
        let more = MORE
            .iter()
            .find(|(putting, _)| *putting == package_name)
            .map_or(&[][..], |(_, more)| more);
        for dependency in package["dependencies"].as_array().unwrap().iter().map(name) {
            if dependency != package_name
                && ours.contains(&dependency)
                && !SHARED.contains(&&*dependency)
                && !more.contains(&&*dependency)
            {
                offenders.push(format!("{package_name} depends on {dependency}"));
            }
        }
    }
    assert!(offenders.is_empty(), "{offenders:?}");
}
