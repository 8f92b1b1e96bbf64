//! The authorities: TTL rules, the same root after reopening, rotation, and what a plugged-in CA is refused for.

use std::path::{Path, PathBuf};

use proto_component::tls::provider;

use super::*;
use crate::pki::{PrivateKey, Validity, verify_chain};
use crate::testing::{leaf_of, settings};

const DAY: Duration = Duration::from_secs(86400);

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
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

fn rotate(ca: &SelfSigned) {
    let files = ca.rotated(now()).unwrap();
    assert!(ca.take(&files, now()).unwrap());
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
fn the_same_root_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let (first, leaf) = {
        let store = crate::testing::open_store(folder.path());
        let ca = SelfSigned::open(&store, settings(), provider(), now()).unwrap();
        (ca.bundle(), leaf_of(&ca, now()))
    };
    let store = crate::testing::open_store(folder.path());
    let ca = SelfSigned::open(&store, settings(), provider(), now()).unwrap();
    assert_eq!(ca.bundle(), first);
    verify_chain(&leaf.der, &ca.bundle(), &provider(), now()).unwrap();
}

#[test]
fn a_second_rotation_waits_for_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let store = crate::testing::open_store(folder.path());
    let p384 = SelfSignedSettings {
        curve: crate::pki::Curve::P384,
        ..settings()
    };
    let ca = SelfSigned::open(&store, p384, provider(), now()).unwrap();
    let overlap = Overlap {
        introduction: Duration::ZERO,
        retirement: Duration::ZERO,
    };
    let advance = || {
        let files = ca.advanced(&overlap, now()).unwrap();
        files.is_some_and(|files| ca.take(&files, now()).unwrap())
    };
    rotate(&ca);
    assert!(matches!(ca.rotated(now()), Err(SelfSignedError::Rotating)));
    assert!(advance());
    assert!(matches!(ca.rotated(now()), Err(SelfSignedError::Rotating)));
    assert!(advance() && !advance());
    rotate(&ca);
    verify_chain(&leaf_of(&ca, now()).der, &ca.bundle(), &provider(), now()).unwrap();
}

#[test]
fn a_revocation_list_names_serials_for_every_root_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let store = crate::testing::open_store(folder.path());
    let ca = SelfSigned::open(&store, settings(), provider(), now()).unwrap();
    let leaf = leaf_of(&ca, now());
    rotate(&ca);
    let revoked = crate::revocation::Revoked {
        serial: leaf.serial.clone(),
        identity: "spiffe://cluster.local/ns/a/sa/b".to_owned(),
        not_after: leaf.validity.not_after,
        revoked_at: now(),
    };
    let lists = ca.revocation_lists(&[revoked], 1, now()).unwrap();
    use rustls_pki_types::pem::PemObject as _;
    let lists: Vec<_> =
        rustls_pki_types::CertificateRevocationListDer::pem_slice_iter(lists.as_bytes())
            .collect::<Result<_, _>>()
            .unwrap();
    assert_eq!(lists.len(), 2);
    let mut issuers = Vec::new();
    for (list, root) in lists.iter().zip(&ca.bundle().roots) {
        use x509_parser::prelude::FromDer as _;
        let (_, list) =
            x509_parser::revocation_list::CertificateRevocationList::from_der(list).unwrap();
        let (_, root) = x509_parser::certificate::X509Certificate::from_der(root).unwrap();
        list.verify_signature(root.public_key()).unwrap();
        assert_eq!(list.issuer(), root.subject());
        let serials: Vec<String> = list
            .iter_revoked_certificates()
            .map(|entry| {
                entry
                    .raw_serial()
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect()
            })
            .collect();
        assert_eq!(serials, [leaf.serial.as_str()]);
        issuers.push(list.issuer().to_string());
    }
    assert_ne!(
        issuers[0], issuers[1],
        "lists are found by the issuer's name"
    );
}

#[test]
fn a_plugged_in_ca_follows_its_files_and_keeps_the_last_good_ones() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let write = |root: &str, curve| {
        let key = PrivateKey::generate_on(curve).unwrap();
        let root = crate::pki::mint_root(&key, root, Validity::starting(now(), DAY)).unwrap();
        std::fs::write(place("ca-cert.pem"), &root.pem).unwrap();
        std::fs::write(place("root-cert.pem"), &root.pem).unwrap();
        std::fs::write(place("ca-key.pem"), key.to_pem()).unwrap();
    };
    let files = PluggedInFiles {
        signing_certificate: place("ca-cert.pem"),
        signing_key: place("ca-key.pem"),
        root_certificate: place("root-cert.pem"),
        certificate_chain: None,
    };
    write("one", crate::pki::Curve::P256);
    let ca = PluggedIn::load(&files, &provider(), now()).unwrap();
    let before = ca.bundle();
    assert!(!ca.reload(now()).unwrap());
    std::fs::write(
        place("ca-key.pem"),
        PrivateKey::generate().unwrap().to_pem(),
    )
    .unwrap();
    assert!(ca.reload(now()).is_err());
    assert_eq!(ca.bundle(), before);
    write("two", crate::pki::Curve::P384);
    assert!(ca.reload(now()).unwrap());
    assert_ne!(ca.bundle(), before);
    verify_chain(&leaf_of(&ca, now()).der, &ca.bundle(), &provider(), now()).unwrap();
}

#[test]
fn a_leaf_does_not_outlive_its_ca_and_an_expired_ca_does_not_sign() {
    let folder = tempfile::tempdir().unwrap();
    let store = crate::testing::open_store(folder.path());
    let short = SelfSignedSettings {
        ttl: Duration::from_secs(3600),
        ..settings()
    };
    let ca = SelfSigned::open(&store, short, provider(), now()).unwrap();
    assert_eq!(
        leaf_of(&ca, now()).validity.not_after,
        ca.validity().not_after
    );
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
    verify_chain(&leaf_of(&ca, now()).der, &bundle, &provider(), now()).unwrap();
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
