//! A real Envoy in the place of our proxy, in every sidecar and gateway, under our Pilot and with our certificates.

use std::path::Path;

use e2e::mesh::Mesh;

use crate::security::policies_decide_who_gets_through;
use crate::traffic::weights_headers_and_faults_count;
use crate::{has_details, settles};

#[tokio::test]
#[expect(
    clippy::disallowed_methods,
    reason = "a test has no command line of its own"
)]
#[ignore = "needs root, iptables and Envoy: set ENVOY to its path"]
async fn envoys_carry_bookinfo_and_pass_the_same_cases() {
    let envoy = std::env::var("ENVOY").expect("ENVOY is the path of an Envoy, see e2e/envoy.sh");
    assert!(Path::new(&envoy).is_absolute(), "{envoy} is absolute");
    let replace = format!("proxy={envoy}");
    let mut mesh = Mesh::up("e2e-envoy", &["--replace", &replace])
        .await
        .unwrap();
    settles(&mesh, "the page", 5, has_details).await;
    // The very cases that our proxy is tested with.
    weights_headers_and_faults_count(&mesh).await;
    policies_decide_who_gets_through(&mesh).await;
    let server_info = [
        "local",
        "exec",
        "deploy/productpage-v1",
        "-c",
        "istio-proxy",
        "--",
        "pilot-agent",
        "request",
        "GET",
        "/server_info",
    ];
    let version = mesh.ctl_ok(&server_info).await.unwrap();
    assert!(
        version.contains("RELEASE/BoringSSL"),
        "an Envoy runs there: {version}"
    );
    assert_eq!(mesh.end().await, "");
}
