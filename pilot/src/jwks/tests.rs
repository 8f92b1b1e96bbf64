use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::routing::get;
use proto_component::drain;

use super::*;

fn counters() -> Counters {
    let counter = |name: &str| prometheus::IntCounter::new(name, "test").unwrap();
    Counters {
        success: counter("success"),
        failure: counter("failure"),
    }
}

#[tokio::test]
async fn keys_are_fetched_through_discovery_after_failures() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let document = format!("{{\"jwks_uri\": \"{base}/keys\"}}");
    let count = Arc::clone(&asked);
    let router = Router::new()
        .route(
            "/.well-known/openid-configuration",
            get(move || async move { document }),
        )
        .route(
            "/keys",
            get(move || async move {
                // The first answer is no key set.
                if count.fetch_add(1, Ordering::Relaxed) == 0 {
                    "{}"
                } else {
                    "{\"keys\": []}"
                }
            }),
        );
    task::spawn(
        "test-server",
        async move { axum::serve(listener, router).await },
    );
    let (_trigger, drain) = drain::channel();
    let counters = counters();
    let (wanted, mut fetched) = start(counters.clone(), drain);
    let source = KeySource::Issuer(base);
    wanted.send_replace(Wanted::from([source.clone()]));
    let found = tokio::time::timeout(Duration::from_secs(20), fetched.recv());
    let found = found.await.unwrap().unwrap();
    assert_eq!(
        (found.source, found.keys.as_str()),
        (source, "{\"keys\": []}")
    );
    assert!(asked.load(Ordering::Relaxed) >= 2);
    assert_eq!(counters.failure.get(), 1);
}
