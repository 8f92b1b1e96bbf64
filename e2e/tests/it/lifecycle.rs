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
    assert_ne!(processes("e2e-lifecycle"), Vec::<String>::new());
    let pid = mesh.pid().unwrap().to_string();
    assert!(
        Command::new("kill")
            .args(["-9", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(mesh.end().await, "");
    eventually("no process is left", SETTLED, async || {
        processes("e2e-lifecycle").is_empty()
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

/// Processes whose command line names the mesh's state directory.
fn processes(name: &str) -> Vec<String> {
    let wanted = format!("/run/bireme/local/{name}/");
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let command_lines =
        entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let texts = command_lines.map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "));
    texts.filter(|text| text.contains(&wanted)).collect()
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
