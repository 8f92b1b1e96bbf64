//! Rotation against a pretended Citadel: waits for files and for Citadel, renews before the end, follows a changed root.

use std::sync::atomic::Ordering;
use std::time::Duration;

use pilot_agent::citadel_client::CitadelClient;
use pilot_agent::rotation::{Grace, Metrics, Rotation};
use pilot_agent::secret_cache::SecretCache;
use pilot_agent::trust;
use proto_component::drain;
use proto_component::task;

use crate::citadel::Citadel;

const PATIENCE: Duration = Duration::from_secs(60);
const GRACE: Grace = Grace {
    ratio: 0.5,
    jitter: 0.05,
};

pub(crate) fn client(citadel: &Citadel) -> CitadelClient {
    CitadelClient {
        address: citadel.address.clone(),
        server_name: String::new(),
        root_certificate: citadel.root_file.clone(),
        token: citadel.token_file.clone(),
        identity: Some("spiffe://cluster.local/ns/a/sa/b".to_owned()),
        ttl: Duration::from_secs(3600),
    }
}

pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(
        tokio::time::timeout(PATIENCE, waiting).await.is_ok(),
        "{what}"
    );
}

pub(crate) fn serial(cache: &SecretCache) -> Option<String> {
    (*cache.workload())
        .as_ref()
        .map(|workload| workload.serial.clone())
}

#[tokio::test]
async fn it_waits_for_its_files_then_renews_before_the_end() {
    let folder = tempfile::tempdir().unwrap();
    // After a fiftieth of its life, the next one is there.
    let citadel = Citadel::start(folder.path(), Duration::from_secs(60)).await;
    let early = Grace {
        ratio: 0.98,
        jitter: 0.0,
    };
    let away = folder.path().join("later");
    std::fs::rename(&citadel.token_file, &away).unwrap();
    let cache = SecretCache::new(folder.path().to_owned());
    let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
    let (trigger, drain) = drain::channel();
    let rotation = Rotation::new(client(&citadel), cache.clone(), early, metrics);
    let running = task::spawn("rotation", rotation.run(drain));
    assert_eq!(
        citadel.asked.load(Ordering::SeqCst),
        0,
        "nothing is asked without a token"
    );
    std::fs::rename(&away, &citadel.token_file).unwrap();
    eventually("a first certificate", || serial(&cache).is_some()).await;
    let first = (*cache.workload()).clone().unwrap();
    eventually("a second certificate", || {
        serial(&cache).as_ref() != Some(&first.serial)
    })
    .await;
    assert!(!first.remaining().is_zero(), "the first one still holds");
    trigger.drain(Duration::ZERO);
    running.await.unwrap();
}

#[tokio::test]
async fn a_changed_root_file_brings_a_new_certificate_at_once_and_refusals_are_survived() {
    let folder = tempfile::tempdir().unwrap();
    let citadel = Citadel::start(folder.path(), Duration::from_secs(3600)).await;
    std::fs::write(&citadel.token_file, "wrong").unwrap();
    let cache = SecretCache::new(folder.path().to_owned());
    let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
    let (trigger, drain) = drain::channel();
    let rotation = Rotation::new(client(&citadel), cache.clone(), GRACE, metrics);
    let running = task::spawn("rotation", rotation.run(drain));
    eventually("refusals", || citadel.asked.load(Ordering::SeqCst) >= 2).await;
    assert!(serial(&cache).is_none());
    std::fs::write(&citadel.token_file, crate::citadel::TOKEN).unwrap();
    eventually("a certificate", || serial(&cache).is_some()).await;
    let first = serial(&cache);
    let mut root = std::fs::read_to_string(&citadel.root_file).unwrap();
    root.push('\n');
    std::fs::write(&citadel.root_file, root).unwrap();
    eventually("another certificate", || serial(&cache) != first).await;
    trigger.drain(Duration::ZERO);
    running.await.unwrap();
}

#[tokio::test]
async fn without_a_good_token_the_certificate_in_use_renews_itself() {
    let folder = tempfile::tempdir().unwrap();
    let citadel = Citadel::start(folder.path(), Duration::from_secs(3600)).await;
    let client = client(&citadel);
    let first = client.fetch(None).await.unwrap();
    std::fs::write(&citadel.token_file, "expired").unwrap();
    assert!(client.fetch(None).await.is_err());
    let second = client.fetch(Some(&first)).await.unwrap();
    std::fs::remove_file(&citadel.token_file).unwrap();
    assert!(client.fetch(None).await.is_err());
    let third = client.fetch(Some(&second)).await.unwrap();
    assert!(first.serial != second.serial && second.serial != third.serial);
}

#[tokio::test]
async fn a_key_is_new_for_each_certificate_and_never_sent() {
    let folder = tempfile::tempdir().unwrap();
    let citadel = Citadel::start(folder.path(), Duration::from_secs(3600)).await;
    let client = client(&citadel);
    let first = client.fetch(None).await.unwrap();
    let second = client.fetch(Some(&first)).await.unwrap();
    let keys = [&first, &second].map(|workload| workload.pem().1.to_owned());
    assert_ne!(keys[0], keys[1]);
    let requests = citadel.requests.lock().clone();
    assert_eq!(requests.len(), 2);
    for request in requests {
        assert!(request.contains("CERTIFICATE REQUEST"), "{request}");
        assert!(!request.contains("PRIVATE KEY"), "{request}");
        for key in &keys {
            let part = key.lines().nth(1).unwrap();
            assert!(!request.contains(part), "{request}");
        }
    }
}

#[tokio::test]
async fn what_is_to_be_trusted_is_asked_for_by_token_or_else_by_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let citadel = Citadel::start(folder.path(), Duration::from_secs(3600)).await;
    let workload = client(&citadel).fetch(None).await.unwrap();
    for is_by_certificate in [false, true] {
        let cache = SecretCache::new(folder.path().to_owned());
        if is_by_certificate {
            std::fs::write(&citadel.token_file, "another").unwrap();
            cache.set_workload(workload.clone());
        }
        let mut changes = cache.subscribe();
        changes.mark_unchanged();
        let (trigger, drain) = drain::channel();
        let following = trust::follow(client(&citadel), cache.clone(), drain);
        let following = task::spawn("trust", following);
        tokio::time::timeout(PATIENCE, changes.changed())
            .await
            .unwrap()
            .unwrap();
        assert!(cache.get("ROOTCA").is_some());
        assert_eq!(*citadel.heard.lock(), [is_by_certificate]);
        citadel.heard.lock().clear();
        trigger.drain(Duration::ZERO);
        following.await.unwrap();
    }
}
