//! Who may talk to whom: mutual TLS and authorization.

use e2e::mesh::{Mesh, eventually};

use crate::{SETTLED, has_details, pages_settle, settles};

/// A pod outside the mesh: no sidecar, so it speaks plain text.
const STRANGER: &str = "e2e/tests/stranger.yaml";

#[tokio::test]
#[ignore = "needs root and iptables"]
async fn strict_mutual_tls_and_policies_decide_who_gets_through() {
    let mut mesh = Mesh::up("e2e-security", &[]).await.unwrap();
    settles(&mesh, "the page", 3, has_details).await;
    policies_decide_who_gets_through(&mesh).await;
    assert_eq!(mesh.end().await, "");
}

/// The case itself, whichever proxies `mesh` has.
pub(crate) async fn policies_decide_who_gets_through(mesh: &Mesh) {
    mesh.ctl_ok(&["local", "apply", "-f", STRANGER])
        .await
        .unwrap();
    let stranger_gets_details = async || {
        let curl = [
            "local",
            "exec",
            "deploy/stranger",
            "--",
            "curl",
            "-s",
            "--max-time",
            "3",
            "http://details:9080/details/0",
        ];
        mesh.ctl(&curl)
            .await
            .is_ok_and(|output| output.stdout.contains("ISBN-10"))
    };
    eventually(
        "plain text is taken while PERMISSIVE",
        SETTLED,
        stranger_gets_details,
    )
    .await
    .unwrap();

    mesh.apply("policy/peer-authentication-strict.yaml")
        .await
        .unwrap();
    eventually("plain text is refused when STRICT", SETTLED, async || {
        !stranger_gets_details().await
    })
    .await
    .unwrap();
    settles(mesh, "the page works under STRICT", 5, has_details).await;

    mesh.apply("policy/authorization-policy-deny-details.yaml")
        .await
        .unwrap();
    settles(mesh, "details are denied", 3, |page| {
        page.body.contains("Error fetching product details!")
    })
    .await;
    // A connection of the time before may have carried none of those pages.
    pages_settle(
        "details say why",
        1,
        async || mesh.get("/api/v1/products/0").await,
        |answer| answer.body.contains("403 Forbidden: RBAC: access denied"),
    )
    .await;
    mesh.delete("policy/authorization-policy-deny-details.yaml")
        .await
        .unwrap();
    settles(mesh, "details are back", 3, has_details).await;

    only_the_product_page_may_read_reviews(mesh).await;
}

async fn only_the_product_page_may_read_reviews(mesh: &Mesh) {
    mesh.apply("policy/authorization-policy-allow-productpage.yaml")
        .await
        .unwrap();
    let ratings_asks = [
        "local",
        "exec",
        "deploy/ratings-v1",
        "-c",
        "ratings",
        "--",
        "curl",
        "-s",
        "--max-time",
        "3",
        "http://reviews:9080/reviews/0",
    ];
    eventually(
        "only the product page may ask for reviews",
        SETTLED,
        async || {
            mesh.ctl(&ratings_asks)
                .await
                .is_ok_and(|output| output.stdout.contains("RBAC: access denied"))
        },
    )
    .await
    .unwrap();
    settles(mesh, "the product page may", 3, |page| {
        page.body.contains("Reviews served by")
    })
    .await;
}
