//! Bad input: one clear line, and everything else goes on.

use std::fs;
use std::process::{Command, Stdio};

use e2e::mesh::{Mesh, programs};

use crate::{has_details, settles};

#[tokio::test]
#[ignore = "needs root and iptables"]
async fn a_wrong_resource_is_refused_with_what_and_where() {
    let mut mesh = Mesh::up("e2e-input", &[]).await.unwrap();
    settles(&mesh, "the page", 1, has_details).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wrong.yaml");
    for (spec, what) in [
        (
            "hosts: [reviews]\n  http:\n  - route:\n    - destination: {host: reviews, subst: v1}\n",
            "http[0].route[0].destination.subst",
        ),
        (
            "hosts: [reviews]\n  http:\n  - timeout: 5 lightyears\n    route:\n    - destination: {host: reviews}\n",
            "http[0].timeout",
        ),
        ("hosts: [reviews]\n", "there are no routes"),
    ] {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: wrong\nspec:\n  {spec}"
        );
        fs::write(&file, text).unwrap();
        let output = mesh
            .ctl(&["local", "apply", "-f", file.to_str().unwrap()])
            .await
            .unwrap();
        assert_eq!(output.code, 1, "{output:?}");
        assert!(
            output.stderr.contains(what),
            "{what} is not named: {}",
            output.stderr
        );
    }
    settles(&mesh, "the page goes on", 3, has_details).await;
    assert_eq!(mesh.end().await, "");
}

#[test]
fn wrong_flags_and_missing_files_end_with_one_line_and_exit_code_2() {
    let folder = programs().unwrap();
    for (program, arguments) in [
        (
            "biremectl",
            &["local", "up", "--set", "pilott.enabled=false"][..],
        ),
        ("biremectl", &["local", "apply", "-f", "/nowhere.yaml"][..]),
        (
            "galley",
            &["server", "--configPath", "/nowhere", "--no-such-flag"][..],
        ),
        (
            "pilot-discovery",
            &["discovery", "--registries", "Nonsense"][..],
        ),
        ("istio_ca", &["--grpc-port", "many"][..]),
        ("mixs", &["server", "--configStoreURL", "gopher://x"][..]),
        ("sidecar-injector", &["--injectConfig", "/nowhere"][..]),
        ("bireme-proxy", &["-c", "/nowhere.yaml"][..]),
    ] {
        let output = Command::new(folder.join(program))
            .args(arguments)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{program} {arguments:?}: {stderr}"
        );
        assert!(
            !stderr.contains("panicked") && !stderr.is_empty(),
            "{program}: {stderr}"
        );
    }
}

#[test]
fn a_reader_that_has_seen_enough_ends_a_command_without_a_word() {
    let mut child = Command::new(programs().unwrap().join("biremectl"))
        .args(["completion", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stderr, b"", "{output:?}");
}
