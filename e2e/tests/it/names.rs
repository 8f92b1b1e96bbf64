//! What names mean inside a pod whose agent answers DNS.

use e2e::mesh::{Mesh, eventually};

use crate::{SETTLED, has_details, proof, settles};

const ASKER: &str = "e2e/tests/names.yaml";

#[tokio::test]
#[ignore = "needs root and nft"]
async fn the_agent_knows_names_that_no_other_name_server_does() {
    // Where iptables is absent, interception is the same.
    let mut mesh = Mesh::up_without_iptables("e2e-names", &[]).await.unwrap();
    assert!(mesh.output().contains("nft redirects"), "{}", mesh.output());
    names_are_answered(&mesh).await;
    // One proxy, although its agent has a stream of its own.
    let status = mesh.ctl_ok(&["proxy-status"]).await.unwrap();
    let rows = status.lines().filter(|line| line.contains("asker"));
    assert_eq!(rows.count(), 1, "{status}");
    assert_eq!(mesh.end().await, "");
}

#[tokio::test]
#[ignore = "needs root, nft and Envoy: set ENVOY to its path"]
async fn the_agent_knows_names_beside_an_envoy() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let replace = format!("proxy={}", proof::envoy(folder.path()));
    let mesh = Mesh::up_without_iptables("e2e-names-envoy", &["--replace", &replace]).await;
    let mut mesh = mesh.unwrap();
    names_are_answered(&mesh).await;
    assert_eq!(mesh.end().await, "");
}

/// The case itself, wherever `mesh` is.
pub(crate) async fn names_are_answered(mesh: &Mesh) {
    settles(mesh, "the page", 1, has_details).await;
    mesh.ctl_ok(&["local", "apply", "-f", ASKER]).await.unwrap();
    // From a pod that asks its agent, and from one that does not.
    let gets_details = async |pod: &str, url: &str| {
        let command = [
            "local",
            "exec",
            pod,
            "--",
            "curl",
            "-s",
            "--max-time",
            "5",
            url,
        ];
        let output = mesh.ctl(&command).await;
        output.is_ok_and(|output| output.stdout.contains("ISBN-10"))
    };
    let shop = "http://shop.example.org:9080/details/0";
    for url in [
        shop,
        "http://north.branches.example.org:9080/details/0",
        "http://details:9080/details/0",
        "http://details.default.svc.cluster.local:9080/details/0",
        "http://parts:9080/details/0",
        "http://part-0.parts:9080/details/0",
        "http://part-0.parts.default:9080/details/0",
        "http://part-0.parts.default.svc.cluster.local:9080/details/0",
    ] {
        eventually(url, SETTLED, async || {
            gets_details("deploy/asker", url).await
        })
        .await
        .unwrap();
    }
    assert!(!gets_details("deploy/productpage-v1", shop).await);

    let page = ["local", "exec", "deploy/asker", "--", "curl", "-s"];
    let url = "http://127.0.0.1:15020/stats/prometheus";
    let stats = mesh.ctl_ok(&[page.as_slice(), &[url]].concat()).await;
    let stats = stats.unwrap();
    let count = |name: &str| -> u64 {
        let line = stats.lines().find(|line| line.starts_with(name));
        let number = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
        number.unwrap_or_else(|| panic!("{name}: {stats}"))
    };
    assert!(count("dns_requests_total ") > 0);

    // What the mesh does not know, the pod's own resolver says: there is no such name.
    for nowhere in [
        "http://nobody.example.org:9080/",
        "http://part-1.parts.default.svc.cluster.local:9080/",
    ] {
        let nowhere = [nowhere, "-o", "/dev/null"];
        let output = mesh.ctl(&[page.as_slice(), &nowhere].concat()).await;
        let output = output.unwrap();
        assert_eq!(output.code, 6, "{nowhere:?}: {}", output.stderr);
    }
}
