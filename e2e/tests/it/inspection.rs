//! Looking into a running mesh: `proxy-status POD`, `proxy-config all|log`, saved dumps.

use e2e::mesh::{Mesh, eventually};

use crate::{SETTLED, has_details, settles};

#[tokio::test]
#[ignore = "needs root and iptables"]
async fn a_proxy_is_compared_with_pilot_and_its_log_made_louder() {
    let mut mesh = Mesh::up("e2e-inspect", &[]).await.unwrap();
    settles(&mesh, "the page", 1, has_details).await;
    let mut last = String::new();
    let matches = eventually("the proxy has what Pilot sends", SETTLED, async || {
        let output = mesh.ctl(&["proxy-status", "deploy/productpage-v1"]).await;
        let output = output.unwrap();
        last = format!("{}{}", output.stdout, output.stderr);
        output.code == 0
    })
    .await;
    assert!(matches.is_ok(), "{last}");
    assert!(
        last.contains("Clusters Match") && last.contains("Routes Match"),
        "{last}"
    );

    let all = mesh
        .ctl_ok(&["proxy-config", "all", "deploy/productpage-v1"])
        .await
        .unwrap();
    for title in ["SERVICE FQDN", "ADDRESS", "OUTLIER CHECK"] {
        assert!(all.contains(title), "{title} is missing:\n{all}");
    }
    let dump = mesh
        .ctl_ok(&["proxy-config", "all", "deploy/productpage-v1", "-o", "json"])
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dump.json");
    std::fs::write(&file, dump).unwrap();
    let file = file.to_str().unwrap();
    let clusters = mesh
        .ctl_ok(&["proxy-config", "cluster", "--file", file, "--port", "9080"])
        .await
        .unwrap();
    assert!(
        clusters.contains("reviews.default.svc.cluster.local"),
        "{clusters}"
    );

    let levels = [
        "proxy-config",
        "log",
        "deploy/productpage-v1",
        "--level",
        "debug",
    ];
    let levels = mesh.ctl_ok(&levels).await.unwrap();
    assert!(levels.contains("debug"), "{levels}");
    let wrong = [
        "proxy-config",
        "log",
        "deploy/productpage-v1",
        "--level",
        "loud",
    ];
    assert_eq!(mesh.ctl(&wrong).await.unwrap().code, 2);
    assert_eq!(mesh.end().await, "");
}
