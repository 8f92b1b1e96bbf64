//! What a mesh leaves behind: nothing, however it ended.

use std::process::Command;

use e2e::mesh::{Mesh, eventually};

use crate::{SETTLED, has_details, settles};

#[tokio::test]
#[ignore = "needs root and iptables"]
async fn down_finds_and_removes_everything_after_a_kill() {
    let before = traces();
    let mut mesh = Mesh::up("e2e-lifecycle", &[]).await.unwrap();
    settles(&mesh, "the page", 1, has_details).await;
    let daemon = std::fs::read_to_string("/run/bireme/local/e2e-lifecycle/daemon.json").unwrap();
    let daemon: serde_json::Value = serde_json::from_str(&daemon).unwrap();
    let mesh_id = daemon["mesh_id"].as_str().unwrap();
    assert!(processes(mesh_id) > 10);
    mesh.kill().unwrap();
    assert_eq!(mesh.end().await, "");
    eventually("no process is left", SETTLED, async || {
        processes(mesh_id) == 0
    })
    .await
    .unwrap();
    assert!(!std::path::Path::new("/run/bireme/local/e2e-lifecycle").exists());
    assert_eq!(
        traces(),
        before,
        "rules, links and named namespaces of the host are as before"
    );
}

/// How many processes carry the mesh's mark in their environment.
fn processes(mesh_id: &str) -> usize {
    let wanted = format!("BIREME_MESH={mesh_id}");
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let environments = entries.filter_map(|entry| std::fs::read(entry.path().join("environ")).ok());
    environments
        .filter(|bytes| {
            bytes
                .split(|byte| *byte == 0)
                .any(|variable| variable == wanted.as_bytes())
        })
        .count()
}

/// What a mesh must not change in the host's own network namespace.
fn traces() -> Vec<String> {
    let commands: [&[&str]; 3] = [
        &["iptables-save", "-t", "nat"],
        &["ip", "-o", "link"],
        &["ip", "netns", "list"],
    ];
    let shown = |command: &[&str]| {
        let output = Command::new(command[0])
            .args(&command[1..])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // Comments hold the time, the policies' counters grow.
        text.lines()
            .filter(|line| !line.starts_with(['#', ':']))
            .collect::<Vec<_>>()
            .join("\n")
    };
    commands.iter().map(|command| shown(command)).collect()
}
