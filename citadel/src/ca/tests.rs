//! The authorities: TTL rules, the same root after reopening, rotation, and what a plugged-in CA is refused for.

use std::path::{Path, PathBuf};

use proto_component::tls::provider;

use super::*;
use crate::pki::{PrivateKey, Validity, verify_chain};

const DAY: Duration = Duration::from_secs(86400);

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn settings() -> SelfSignedSettings {
    SelfSignedSettings {
        organization: "cluster.local".to_owned(),
        ttl: DAY * 3650,
    }
}

fn files() -> PluggedInFiles {
    let file = |name: &str| {
        PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("testdata/ca")
            .join(name)
    };
    PluggedInFiles {
        signing_certificate: file("ca-cert.pem"),
        signing_key: file("ca-key.pem"),
        root_certificate: file("root-cert.pem"),
        certificate_chain: Some(file("cert-chain.pem")),
    }
}

fn leaf_of(ca: &dyn CertificateAuthority) -> Certificate {
    let key = PrivateKey::generate().unwrap().public().unwrap();
    let request = SignRequest {
        public_key: &key,
        sans: &[San::Uri("spiffe://cluster.local/ns/a/sa/b".to_owned())],
        ttl: DAY,
        dual_use: false,
    };
    ca.sign(&request, now()).unwrap()
}

#[test]
fn lifetimes_follow_istios_rules() {
    let rules = TtlRules {
        default: DAY,
        max: DAY * 90,
    };
    for (seconds, want) in [
        (0, Some(DAY)),
        (-5, Some(DAY)),
        (1, Some(Duration::from_secs(1))),
        (3600, Some(Duration::from_secs(3600))),
        (90 * 86400, Some(DAY * 90)),
        (90 * 86400 + 1, None),
        (i64::MAX, None),
        (i64::MIN, Some(DAY)),
    ] {
        match (rules.resolve(seconds), want) {
            (Ok(got), Some(want)) => assert_eq!(got, want, "{seconds}"),
            (Err(error), None) => assert_eq!(error.label(), "TTL_ERROR"),
            (got, want) => panic!("{seconds}: {got:?}, not {want:?}"),
        }
    }
}

#[test]
fn the_same_root_comes_back_and_a_renewed_one_trusts_old_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let (first, leaf) = {
        let database = crate::testing::open_store(folder.path());
        let ca = SelfSigned::open(&database, settings(), provider(), now()).unwrap();
        (ca.bundle(), leaf_of(&ca))
    };
    let database = crate::testing::open_store(folder.path());
    let ca = Arc::new(SelfSigned::open(&database, settings(), provider(), now()).unwrap());
    assert_eq!(ca.bundle(), first);
    verify_chain(&leaf.der, &ca.bundle(), &provider(), now()).unwrap();

    let rotation = Rotation {
        check_interval: DAY,
        grace_percent: 20,
        jitter: false,
    };
    let rotator = RootRotator::new(ca.clone(), rotation);
    assert!(!rotator.check(now()).unwrap());
    let end = ca.validity().not_after;
    assert!(rotator.check(end - DAY * 700).unwrap());
    assert_ne!(ca.bundle(), first);
    assert!(ca.validity().not_after > end);
}

#[test]
fn leaves_of_a_renewed_root_verify_against_both_roots() {
    let folder = tempfile::tempdir().unwrap();
    let database = crate::testing::open_store(folder.path());
    let ca = SelfSigned::open(&database, settings(), provider(), now()).unwrap();
    let (before, old_leaf) = (ca.bundle(), leaf_of(&ca));
    ca.renew(now()).unwrap();
    let new_leaf = leaf_of(&ca);
    verify_chain(&new_leaf.der, &before, &provider(), now()).unwrap();
    verify_chain(&old_leaf.der, &ca.bundle(), &provider(), now()).unwrap();
}

#[test]
fn a_leaf_does_not_outlive_its_ca_and_an_expired_ca_does_not_sign() {
    let folder = tempfile::tempdir().unwrap();
    let database = crate::testing::open_store(folder.path());
    let short = SelfSignedSettings {
        ttl: Duration::from_secs(3600),
        ..settings()
    };
    let ca = SelfSigned::open(&database, short, provider(), now()).unwrap();
    assert_eq!(leaf_of(&ca).validity.not_after, ca.validity().not_after);
    let key = PrivateKey::generate().unwrap().public().unwrap();
    let request = SignRequest {
        public_key: &key,
        sans: &[],
        ttl: DAY,
        dual_use: false,
    };
    let error = ca.sign(&request, now() + DAY).unwrap_err();
    assert_eq!(error.label(), "CA_NOT_READY");
}

#[test]
fn a_plugged_in_ca_signs_with_its_whole_chain() {
    let ca = PluggedIn::load(&files(), &provider(), now()).unwrap();
    let bundle = ca.bundle();
    assert_eq!((bundle.intermediates.len(), bundle.roots.len()), (2, 1));
    verify_chain(&leaf_of(&ca).der, &bundle, &provider(), now()).unwrap();
    assert!(Validity::of(&bundle.roots[0]).unwrap().contains(now()));
}

#[test]
fn a_plugged_in_ca_that_does_not_fit_is_refused_with_the_file() {
    let refused = |files: &PluggedInFiles| match PluggedIn::load(files, &provider(), now()) {
        Ok(_) => panic!("{files:?} was accepted"),
        Err(error) => error.to_string(),
    };
    let sibling = |name: &str| files().signing_key.with_file_name(name);
    let with = |change: &dyn Fn(&mut PluggedInFiles)| {
        let mut files = files();
        change(&mut files);
        refused(&files)
    };
    let text = with(&|files| files.signing_key = sibling("other-key.pem"));
    assert!(
        text.contains("does not belong to the CA certificate"),
        "{text}"
    );
    let text = with(&|files| files.certificate_chain = None);
    assert!(text.contains("the chain breaks"), "{text}");
    let text = with(&|files| files.signing_key = "/nowhere/ca-key.pem".into());
    assert!(text.starts_with("read /nowhere/ca-key.pem"), "{text}");
    let text = with(&|files| files.signing_key = files.signing_certificate.clone());
    assert!(text.contains("no private key in PEM"), "{text}");
    let text = with(&|files| files.root_certificate = sibling("ca-key.pem"));
    assert!(text.contains("no certificate in PEM"), "{text}");
    let folder = tempfile::tempdir().unwrap();
    let other = write_other_root(folder.path());
    let text = with(&|files| files.root_certificate.clone_from(&other));
    assert!(text.contains("the chain breaks"), "{text}");
}

fn write_other_root(folder: &Path) -> PathBuf {
    let key = PrivateKey::generate().unwrap();
    let root = crate::pki::mint_root(&key, "Other", Validity::starting(now(), DAY)).unwrap();
    let path = folder.join("root-cert.pem");
    std::fs::write(&path, root.pem).unwrap();
    path
}
