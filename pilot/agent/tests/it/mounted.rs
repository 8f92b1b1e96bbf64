//! A certificate from the files of a mounted Secret, replaced as the kubelet does it.

use std::path::Path;
use std::time::Duration;

use pilot_agent::mounted;
use pilot_agent::secret::{ROOT_CA, Workload};
use pilot_agent::secret_cache::SecretCache;
use proto_component::drain;
use proto_component::task;

use crate::citadel::Citadel;
use crate::rotation::{client, eventually, serial};

/// Makes `workload` the content of the volume, as its `version`.
fn mount(volume: &Path, version: &str, workload: &Workload, key: &str) {
    let folder = volume.join(version);
    std::fs::create_dir(&folder).unwrap();
    let (chain, _) = workload.pem();
    for (name, text) in [
        ("cert-chain.pem", chain),
        ("key.pem", key),
        ("root-cert.pem", workload.trusted()),
        ("ca-crl.pem", ""),
    ] {
        std::fs::write(folder.join(name), text).unwrap();
        let link = volume.join(name);
        if !link.is_symlink() {
            std::os::unix::fs::symlink(Path::new("..data").join(name), link).unwrap();
        }
    }
    let (new, data) = (volume.join("..data_tmp"), volume.join("..data"));
    std::os::unix::fs::symlink(version, &new).unwrap();
    std::fs::rename(new, data).unwrap();
}

#[tokio::test]
async fn the_certificate_is_what_the_volume_has_and_broken_ones_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let citadel = Citadel::start(folder.path(), Duration::from_secs(3600)).await;
    let mut issued = Vec::new();
    for _ in 0..2 {
        issued.push(client(&citadel).fetch(None).await.unwrap());
    }
    let [first, second] = issued.as_slice() else {
        panic!("two")
    };
    let volume = tempfile::tempdir().unwrap();
    let cache = SecretCache::new(folder.path().to_owned());
    let has = |workload: &Workload| serial(&cache).as_ref() == Some(&workload.serial);
    let key = |workload: &Workload| workload.pem().1.to_owned();
    // The key is another's.
    mount(volume.path(), "zero", second, &key(first));
    let (trigger, drain) = drain::channel();
    let running = mounted::follow(volume.path().to_owned(), cache.clone(), drain);
    let running = task::spawn("mounted", running);
    // It looks before it waits.
    tokio::task::yield_now().await;
    assert!(serial(&cache).is_none() && cache.get(ROOT_CA).is_none());
    mount(volume.path(), "one", first, &key(first));
    eventually("the first", || has(first)).await;
    assert!(cache.get(ROOT_CA).is_some());
    mount(volume.path(), "two", second, &key(second));
    eventually("the second", || has(second)).await;

    let asked = citadel.asked.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(asked, issued.len(), "nobody is asked");
    trigger.drain(Duration::ZERO);
    running.await.unwrap();
}
