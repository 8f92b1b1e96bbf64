use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::routing::get;
use proto_component::drain;

use super::*;

const REFRESH: Duration = Duration::from_secs(20 * 60);

fn counters() -> Counters {
    let counter = |name: &str| prometheus::IntCounter::new(name, "test").unwrap();
    Counters {
        success: counter("success"),
        failure: counter("failure"),
    }
}

/// Who fetches keys, from a server that answers as `router` says of its URL.
struct Fetching {
    base: String,
    counters: Counters,
    wanted: watch::Sender<Wanted>,
    fetched: mpsc::Receiver<Fetched>,
    _trigger: drain::Trigger,
}

async fn fetching(router: impl FnOnce(&str) -> Router) -> Fetching {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let router = router(&base);
    task::spawn(
        "test-server",
        async move { axum::serve(listener, router).await },
    );
    let (trigger, drain) = drain::channel();
    let counters = counters();
    let (wanted, fetched) = start(REFRESH, counters.clone(), drain);
    Fetching {
        base,
        counters,
        wanted,
        fetched,
        _trigger: trigger,
    }
}

#[tokio::test]
async fn keys_are_fetched_through_discovery_after_failures() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let keys = async move || {
        // The first answer is no key set.
        if count.fetch_add(1, Ordering::Relaxed) == 0 {
            "{}"
        } else {
            "{\"keys\": []}"
        }
    };
    let mut at = fetching(|base| {
        let document = format!("{{\"jwks_uri\": \"{base}/keys\"}}");
        Router::new()
            .route(
                "/.well-known/openid-configuration",
                get(async move || document),
            )
            .route("/keys", get(keys))
    })
    .await;
    let source = KeySource::Issuer(at.base);
    at.wanted
        .send_replace(Wanted::from([(source.clone(), Duration::from_secs(5))]));
    let found = tokio::time::timeout(Duration::from_secs(20), at.fetched.recv());
    let found = found.await.unwrap().unwrap();
    assert_eq!(
        (found.source, found.keys.as_str()),
        (source, "{\"keys\": []}")
    );
    assert!(asked.load(Ordering::Relaxed) >= 2);
    assert_eq!(at.counters.failure.get(), 1);
}

#[tokio::test]
async fn an_issuer_is_waited_for_as_long_as_a_rule_says() {
    let slow = async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        "{\"keys\": []}"
    };
    let mut at = fetching(|_| Router::new().route("/keys", get(slow))).await;
    let source = KeySource::Uri(format!("{}/keys", at.base));
    let short = Duration::from_millis(20);
    at.wanted
        .send_replace(Wanted::from([(source.clone(), short)]));
    let failed = async {
        while at.counters.failure.get() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let patience = Duration::from_secs(20);
    tokio::time::timeout(patience, failed).await.unwrap();
    at.wanted.send_replace(Wanted::from([(source, patience)]));
    let found = tokio::time::timeout(patience, at.fetched.recv()).await;
    assert_eq!(found.unwrap().unwrap().keys, "{\"keys\": []}");
}

/// An issuer changes its keys behind their URI: nobody has to say so.
#[tokio::test]
async fn keys_that_change_are_fetched_when_it_is_time() {
    let asked = Arc::new(AtomicUsize::new(0));
    let keys = async move || match asked.fetch_add(1, Ordering::Relaxed) {
        0 => "{\"keys\": []}",
        _ => "{\"keys\": [], \"of\": \"tomorrow\"}",
    };
    let mut at = fetching(|_| Router::new().route("/keys", get(keys))).await;
    let source = KeySource::Uri(format!("{}/keys", at.base));
    let patience = Duration::from_secs(30);
    at.wanted.send_replace(Wanted::from([(source, patience)]));
    let found = tokio::time::timeout(patience, at.fetched.recv()).await;
    assert_eq!(found.unwrap().unwrap().keys, "{\"keys\": []}");
    tokio::time::pause();
    tokio::time::advance(REFRESH + TICK).await;
    tokio::time::resume();
    let found = tokio::time::timeout(patience, at.fetched.recv()).await;
    assert!(found.unwrap().unwrap().keys.contains("tomorrow"));
}
