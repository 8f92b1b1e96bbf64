//! The charts' images: one built from a program of this build.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::{find, profile, render};

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn an_image_is_one_layer_that_runs_as_nobody_special() {
    let test = std::env::current_exe().unwrap();
    let binaries = test.ancestors().nth(2).unwrap();
    let out = tempfile::tempdir().unwrap();
    let project = e2e::mesh::project();
    let built = Command::new(project.join("helm/images/build"))
        .arg("--binaries")
        .arg(binaries)
        .arg("--out")
        .arg(out.path())
        // It is a debug program.
        .args(["--largest", "1000000000", "--tag", "test", "install-cni"])
        .output()
        .unwrap();
    let problem = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{problem}");

    let layout = out.path().join("install-cni");
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap();
        let path = layout.join("blobs").join(digest.replace(':', "/"));
        let length = fs::metadata(&path).unwrap().len();
        assert_eq!(descriptor["size"], length, "{digest}");
        path
    };
    let index = json(&layout.join("index.json"));
    let entry = &index["manifests"][0];
    let tag = &entry["annotations"]["org.opencontainers.image.ref.name"];
    assert_eq!(*tag, "test");
    let manifest = json(&blob(entry));
    let config = json(&blob(&manifest["config"]));
    assert_eq!(config["config"]["User"], "1337:1337");
    assert_eq!(
        config["config"]["Entrypoint"][0],
        "/usr/local/bin/istio-cni"
    );
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 1);

    let root = out.path().join("root");
    fs::create_dir(&root).unwrap();
    let unpacked = Command::new("tar")
        .arg("-xzf")
        .arg(blob(&manifest["layers"][0]))
        .arg("-C")
        .arg(&root)
        .status();
    assert!(unpacked.unwrap().success());
    // With its own loader and libraries, and nothing of this machine's.
    let folder = fs::read_dir(root.join("lib64")).unwrap();
    let loader = folder.map(|entry| entry.unwrap().path()).next().unwrap();
    let libraries = fs::read_dir(root.join("lib")).unwrap();
    let libraries = libraries.map(|entry| entry.unwrap().path()).next().unwrap();
    let ran = Command::new(loader)
        .arg("--library-path")
        .arg(&libraries)
        .arg(root.join("usr/local/bin/istio-cni"))
        .arg("--help")
        .output()
        .unwrap();
    assert!(ran.status.success(), "{ran:?}");

    let bill = json(&root.join("usr/share/sbom/install-cni.cdx.json"));
    assert_eq!(bill["bomFormat"], "CycloneDX");
    let components = bill["components"].as_array().unwrap();
    let names: BTreeSet<&str> = components
        .iter()
        .map(|component| component["name"].as_str().unwrap())
        .collect();
    assert!(names.contains("injector-capture") && names.contains("clap"));
    // What only tests use is not in it.
    assert!(!names.contains("tempfile"), "{names:?}");
}

#[test]
fn the_sample_is_not_taken_for_the_sidecar() {
    let test = std::env::current_exe().unwrap();
    let binaries = test.ancestors().nth(2).unwrap();
    let out = tempfile::tempdir().unwrap();
    let built = Command::new(e2e::mesh::project().join("helm/images/build"))
        .args([Path::new("--binaries"), binaries])
        .args([Path::new("--out"), out.path()])
        .args(["--largest", "1000000000", "bookinfo"])
        .output()
        .unwrap();
    let problem = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{problem}");
    let blobs = out.path().join("bookinfo/blobs/sha256");
    let texts = fs::read_dir(blobs).unwrap().filter_map(|entry| {
        let text = fs::read_to_string(entry.unwrap().path()).ok()?;
        serde_json::from_str(&text).ok()
    });
    let configs: Vec<Value> = texts
        .filter(|value: &Value| value["rootfs"].is_object())
        .collect();
    assert_eq!(configs[0]["config"]["User"], "1000:1000");
}

#[test]
fn every_image_of_the_charts_can_be_built() {
    let script = e2e::mesh::project().join("helm/images/build");
    let script = fs::read_to_string(script).unwrap();
    let values = "istio_cni: {enabled: true}";
    let objects = render("bireme", &profile("demo"), values);
    let of =
        |name: &str| &find(&objects, name)["spec"]["template"]["spec"]["containers"][0]["image"];
    for (name, image) in [
        ("Deployment istio-pilot", "pilot"),
        ("Deployment istio-galley", "galley"),
        ("Deployment istio-citadel", "citadel"),
        ("Deployment istio-policy", "mixer"),
        ("Deployment istio-sidecar-injector", "sidecar_injector"),
        ("Deployment istio-ingressgateway", "proxyv2"),
        ("DaemonSet istio-cni-node", "install-cni"),
    ] {
        assert_eq!(*of(name), format!("docker.io/bireme/{image}:0.1.0"));
        assert!(script.contains(&format!("    \"{image}\": (")), "{image}");
    }
}
