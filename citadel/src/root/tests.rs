//! Rotation step by step, and by several replicas that share a Secret.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::Client;
use serde_json::json;

use super::*;
use crate::ca::{CertificateAuthority as _, Overlap};
use crate::kubernetes::testing::ApiServer;
use crate::pki::{Bundle, Certificate, verify_chain};
use crate::testing::{leaf_of, settings};

const DAY: Duration = Duration::from_secs(86400);

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

/// A replica with a folder of its own.
async fn replica(client: Client) -> (tempfile::TempDir, Arc<RootKeeper>) {
    let folder = tempfile::tempdir().unwrap();
    let store = crate::testing::open_store(folder.path());
    let secret = RootSecret::new(client, "istio-system");
    let keeper = RootKeeper::open(&store, settings(), Some(secret), now()).await;
    (folder, Arc::new(keeper.unwrap()))
}

fn has_same(one: &RootKeeper, other: &RootKeeper) -> bool {
    one.ca.files().unwrap() == other.ca.files().unwrap()
}

#[tokio::test]
async fn at_no_step_of_a_rotation_does_anybody_meet_a_root_that_it_does_not_know() {
    let folder = tempfile::tempdir().unwrap();
    let rotation = Rotation {
        check_interval: DAY,
        grace_percent: 20,
        jitter: false,
        overlap: Overlap {
            introduction: DAY,
            retirement: DAY * 90,
        },
    };
    let mut time = now();
    let mut known: Vec<(Arc<Bundle>, Certificate)> = Vec::new();
    let mut roots_seen = Vec::new();
    // Each step with a restart before it.
    for (days, changes, roots) in [
        (0, false, 1),
        (3000, true, 2),
        (0, false, 2),
        (1, true, 2),
        (89, false, 2),
        (1, true, 1),
        (1, false, 1),
    ] {
        time += DAY * days;
        let store = crate::testing::open_store(folder.path());
        let made = if known.is_empty() { now() } else { time };
        let keeper = RootKeeper::open(&store, settings(), None, made).await;
        let keeper = Arc::new(keeper.unwrap());
        let ca = keeper.ca().clone();
        let rotator = RootRotator::new(keeper, rotation);
        assert_eq!(rotator.check(time).await.unwrap(), changes, "day {days}");
        assert_eq!(ca.bundle().roots.len(), roots, "day {days}");
        let leaf = leaf_of(&*ca, time);
        // Who has not heard of this step yet knows the leaf's root all the same, and the other way round.
        if let Some((bundle, old)) = known.last() {
            verify_chain(&leaf.der, bundle, &tls::provider(), time).unwrap();
            if old.validity.contains(time) {
                verify_chain(&old.der, &ca.bundle(), &tls::provider(), time).unwrap();
            }
        }
        roots_seen.push(ca.bundle().roots[0].clone());
        known.push((ca.bundle(), leaf));
    }
    roots_seen.dedup();
    assert_eq!(roots_seen.len(), 2, "the first is the one that signs");
}

#[tokio::test]
async fn replicas_rotate_one_root() {
    let server = ApiServer::default();
    let (_first, one) = replica(server.client()).await;
    let (_second, other) = replica(server.client()).await;
    assert!(has_same(&one, &other));
    one.rotate(now()).await.unwrap();
    let refused = other.rotate(now()).await.unwrap_err();
    assert!(refused.to_string().contains("rotated already"), "{refused}");
    assert!(has_same(&one, &other));
    assert_eq!(other.ca.bundle().roots.len(), 2);
    // A pod with an empty folder goes on with it.
    let (_third, another) = replica(server.client()).await;
    assert!(has_same(&one, &another));
}

#[tokio::test]
async fn whoever_is_second_takes_over_what_the_first_has_done() {
    let server = ApiServer::default();
    let (_first, one) = replica(server.client()).await;
    let (_second, other) = replica(server.client()).await;
    let files = other.ca.rotated(now()).unwrap();
    // The other one is faster by a moment.
    let make = || {
        if !one.ca.is_rotating() {
            let texts = files.0.iter();
            let texts = texts.map(|(name, text)| (name.clone(), STANDARD.encode(text.as_bytes())));
            let data: BTreeMap<String, String> = texts.collect();
            server.merge(&json!({"data": data}));
        }
        one.ca.rotated(now()).map(Some)
    };
    let refused = one.change(now(), make).await.unwrap_err();
    assert!(refused.to_string().contains("rotated already"), "{refused}");
    assert!(one.ca.files().unwrap() == files);
}

#[tokio::test]
async fn nothing_is_in_force_that_could_not_be_kept() {
    let server = ApiServer::default();
    let (_folder, keeper) = replica(server.client()).await;
    server.set_away(true);
    keeper.rotate(now()).await.unwrap_err();
    assert!(!keeper.ca.is_rotating());
    server.set_away(false);
    keeper.rotate(now()).await.unwrap();
    assert!(keeper.ca.is_rotating());
}

#[tokio::test]
async fn replicas_follow_the_secret_and_make_it_anew() {
    let server = ApiServer::default();
    let (_first, one) = replica(server.client()).await;
    let (_second, other) = replica(server.client()).await;
    let (told, mut changes) = tokio::sync::mpsc::unbounded_channel();
    let follower = other.clone();
    proto_component::task::spawn("follower", async move {
        let changed = || {
            // The test may be over.
            let _ = told.send(());
        };
        follower.follow(changed, &Drain::never()).await;
    });
    one.rotate(now()).await.unwrap();
    let patience = Duration::from_secs(30);
    let followed = async {
        while !has_same(&one, &other) {
            changes.recv().await.unwrap();
        }
    };
    tokio::time::timeout(patience, followed).await.unwrap();
    let known = server.object().unwrap()["data"].clone();
    server.delete();
    let again = server.until(Option::is_some);
    let again = tokio::time::timeout(patience, again).await.unwrap();
    assert_eq!(again.unwrap()["data"], known);
}
