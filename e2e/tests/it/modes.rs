//! How pods are kept apart: as root, as an ordinary user in a user namespace, and without any namespaces.

use std::fs;

use e2e::mesh::{Mesh, Person, eventually};

use crate::{SETTLED, has_details, settles};

#[tokio::test]
#[ignore = "needs root to make a user"]
async fn an_ordinary_user_gets_the_page_on_loopback_addresses() {
    let person = Person::make("bireme-e2e").unwrap();
    let mut mesh = Mesh::up_as(&person, "e2e-none", &["--interception", "none"])
        .await
        .unwrap();
    assert!(
        mesh.output()
            .contains("nothing is redirected, sidecars are HTTP proxies (--interception none)"),
        "{}",
        mesh.output()
    );
    works_and_ends(&person, &mut mesh).await;
}

#[tokio::test]
#[ignore = "needs root to make a user, uidmap and iptables"]
async fn an_ordinary_user_gets_the_page_in_a_user_namespace() {
    let person = Person::make("bireme-e2e").unwrap();
    let mut mesh = Mesh::up_as(&person, "e2e-userns", &["--interception", "redirect"])
        .await
        .unwrap();
    assert!(
        mesh.output().contains("in a user namespace"),
        "{}",
        mesh.output()
    );
    let shown = mesh
        .ctl_ok(&["local", "exec", "deploy/details-v1", "--", "id", "-u"])
        .await
        .unwrap();
    assert_eq!(shown.trim(), "0");
    works_and_ends(&person, &mut mesh).await;
}

#[tokio::test]
#[ignore = "needs root to make a user"]
async fn a_user_without_a_range_of_users_is_told_why_nothing_is_redirected() {
    let person = Person::make("bireme-e2e-bare").unwrap();
    for file in ["/etc/subuid", "/etc/subgid"] {
        let text = fs::read_to_string(file).unwrap_or_default();
        let kept = text
            .lines()
            .filter(|line| !line.starts_with("bireme-e2e-bare:"));
        fs::write(
            file,
            kept.map(|line| format!("{line}\n")).collect::<String>(),
        )
        .unwrap();
    }
    let mut mesh = Mesh::up_as(&person, "e2e-bare", &["--app", "none"])
        .await
        .unwrap();
    assert!(
        mesh.output().contains("nothing is redirected") && mesh.output().contains("/etc/subuid"),
        "{}",
        mesh.output()
    );
    assert_eq!(mesh.end().await, "");
}

/// The page with everything on it, a policy of the server's side, and nothing left in the end, even after a kill.
async fn works_and_ends(person: &Person, mesh: &mut Mesh) {
    settles(mesh, "the page", 3, |page| {
        has_details(page) && page.body.contains("Reviewer1")
    })
    .await;
    let state = person
        .home
        .join(".local/state/bireme/local")
        .join(&mesh.name);
    assert!(state.exists(), "state is in the user's home");
    // The user cannot read the project's files.
    let policy = std::env::temp_dir().join(format!("{}-policy.yaml", mesh.name));
    let sample = "e2e/bookinfo/policy/authorization-policy-deny-details.yaml";
    fs::copy(e2e::mesh::project().join(sample), &policy).unwrap();
    let file = policy.to_str().unwrap();
    mesh.ctl_ok(&["local", "apply", "-f", file]).await.unwrap();
    settles(mesh, "details are denied by their own sidecar", 3, |page| {
        page.status == 200 && page.body.contains("Error fetching product details")
    })
    .await;
    fs::remove_file(&policy).unwrap();
    let mut status = String::new();
    let synced = eventually("no proxy is behind", SETTLED, async || {
        status = mesh.ctl_ok(&["proxy-status"]).await.unwrap();
        !status.contains("STALE")
    });
    let synced = synced.await;
    assert!(synced.is_ok(), "{status}");
    mesh.kill().unwrap();
    assert_eq!(mesh.end().await, "");
    eventually("no process is left", SETTLED, async || {
        person.processes().unwrap() == 0
    })
    .await
    .unwrap();
    assert!(!state.exists(), "no state is left");
}
