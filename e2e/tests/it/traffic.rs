//! Where requests go: weights, matches, faults.

use e2e::mesh::Mesh;

use crate::{has_details, pages_settle, send_everybody_to_red_stars, settles};

#[tokio::test]
#[ignore = "needs root and iptables"]
async fn requests_follow_subsets_weights_headers_and_faults() {
    let mut mesh = Mesh::up("e2e-traffic", &[]).await.unwrap();
    settles(&mesh, "the page", 3, has_details).await;
    weights_headers_and_faults_count(&mesh).await;
    assert_eq!(mesh.end().await, "");
}

/// The case itself, whichever proxies `mesh` has.
pub(crate) async fn weights_headers_and_faults_count(mesh: &Mesh) {
    send_everybody_to_red_stars(mesh).await;

    mesh.apply("networking/virtual-service-reviews-50-v3.yaml")
        .await
        .unwrap();
    settles(mesh, "pages without stars", 1, |page| {
        page.status == 200 && !page.body.contains("stars red")
    })
    .await;
    let mut red = 0;
    for _ in 0..60 {
        red += usize::from(
            mesh.get("/productpage")
                .await
                .unwrap()
                .body
                .contains("stars red"),
        );
    }
    assert!(
        (15..=45).contains(&red),
        "{red} of 60 pages have red stars, half were wanted"
    );

    mesh.apply("networking/virtual-service-reviews-test-v2.yaml")
        .await
        .unwrap();
    // Only the new route shows Jason black stars; strangers may have seen none by luck before it came.
    pages_settle(
        "black stars for Jason",
        3,
        async || mesh.product_page_as("jason").await,
        |page| page.body.contains("stars black"),
    )
    .await;
    settles(mesh, "no stars for strangers", 6, |page| {
        page.status == 200 && !page.body.contains("class=\"stars")
    })
    .await;

    mesh.apply("networking/virtual-service-details-abort.yaml")
        .await
        .unwrap();
    settles(mesh, "details abort", 3, |page| {
        page.body.contains("Error fetching product details!")
    })
    .await;
    mesh.delete("networking/virtual-service-details-abort.yaml")
        .await
        .unwrap();
    settles(mesh, "details are back", 5, has_details).await;
}
