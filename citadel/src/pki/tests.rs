//! Keys, requests, certificates and chains, against tables and against the library that peers verify with.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rcgen::{CertificateParams, SanType};
use rustls::crypto::CryptoProvider;
use time::OffsetDateTime;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::*;

const RSA_1024_CSR: &str = include_str!("../../testdata/csr/rsa-1024.pem");
const RSA_2048_CSR: &str = include_str!("../../testdata/csr/rsa-2048.pem");
const SHA1_CSR: &str = include_str!("../../testdata/csr/rsa-2048-sha1.pem");
const P521_CSR: &str = include_str!("../../testdata/csr/p521.pem");

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

fn csr(sans: &[&str]) -> (PrivateKey, String) {
    let key = PrivateKey::generate().unwrap();
    let mut params = CertificateParams::default();
    for san in sans {
        params
            .subject_alt_names
            .push(SanType::URI((*san).try_into().unwrap()));
    }
    let request = params.serialize_request(&key).unwrap();
    (key, request.pem().unwrap())
}

#[test]
fn private_keys_are_read_in_every_usual_form() {
    for (name, pem) in [
        (
            "pkcs8 rsa",
            include_str!("../../testdata/key/rsa-pkcs8.pem"),
        ),
        (
            "pkcs1 rsa",
            include_str!("../../testdata/key/rsa-pkcs1.pem"),
        ),
        (
            "pkcs8 p256",
            include_str!("../../testdata/key/p256-pkcs8.pem"),
        ),
        (
            "sec1 p256",
            include_str!("../../testdata/key/p256-sec1.pem"),
        ),
        (
            "sec1 p384",
            include_str!("../../testdata/key/p384-sec1.pem"),
        ),
        (
            "pkcs8 ed25519",
            include_str!("../../testdata/key/ed25519.pem"),
        ),
    ] {
        let key = PrivateKey::from_pem(pem).unwrap_or_else(|error| panic!("{name}: {error}"));
        let again = PrivateKey::from_pem(&key.to_pem()).unwrap();
        assert_eq!(key.spki(), again.spki(), "{name}");
        assert_eq!(format!("{key:?}"), "PrivateKey(redacted)");
    }
    assert!(matches!(PrivateKey::from_pem(""), Err(InvalidKey::NoKey)));
}

#[test]
fn weak_and_unknown_keys_are_refused() {
    let refused = |pem: &str| SigningRequest::from_pem(pem).unwrap_err();
    assert!(matches!(
        refused(RSA_1024_CSR),
        InvalidCsr::Key(InvalidKey::RsaSize(1024))
    ));
    assert!(matches!(
        refused(SHA1_CSR),
        InvalidCsr::SignatureAlgorithm(_)
    ));
    assert!(matches!(
        refused(P521_CSR),
        InvalidCsr::Key(InvalidKey::Unsupported)
    ));
    assert!(matches!(refused("hello"), InvalidCsr::Pem));
    SigningRequest::from_pem(RSA_2048_CSR).unwrap();
}

#[test]
fn a_request_signed_by_another_key_is_refused() {
    let (_, pem) = csr(&[]);
    let der = rustls_pki_types::CertificateSigningRequestDer::from(
        <rustls_pki_types::CertificateSigningRequestDer<'_> as rustls_pki_types::pem::PemObject>::from_pem_slice(pem.as_bytes()).unwrap().to_vec(),
    );
    SigningRequest::from_der(&der).unwrap();
    let mut broken = der.to_vec();
    // Inside the public key: the request stays well formed, its proof does not.
    let last = broken.len() - 1;
    broken[last] ^= 1;
    assert!(SigningRequest::from_der(&broken).is_err());
}

#[test]
fn a_leaf_has_istios_profile_and_only_the_names_given() {
    let root_key = PrivateKey::generate().unwrap();
    let root = mint_root(
        &root_key,
        "cluster.local",
        Validity::starting(now(), Duration::from_secs(86400)),
    )
    .unwrap();
    let issuer = issuer_of(&root.der, &root_key).unwrap();
    let (_, pem) = csr(&["spiffe://cluster.local/ns/kube-system/sa/admin"]);
    let request = SigningRequest::from_pem(&pem).unwrap();
    let sans = [San::Uri(
        "spiffe://cluster.local/ns/default/sa/bookinfo".into(),
    )];
    let leaf = mint_leaf(
        &issuer,
        &request.public_key,
        &LeafProfile {
            sans: &sans,
            validity: Validity::starting(now(), Duration::from_secs(3600)),
            dual_use: false,
        },
    )
    .unwrap();
    assert_eq!(
        uri_sans(&leaf.der).unwrap(),
        ["spiffe://cluster.local/ns/default/sa/bookinfo"]
    );
    let (_, parsed) = X509Certificate::from_der(&leaf.der).unwrap();
    assert_eq!(parsed.subject().iter().count(), 0);
    assert!(parsed.subject_alternative_name().unwrap().unwrap().critical);
    let usage = parsed.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
    let extended = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth);
    assert!(!parsed.is_ca());
    assert_eq!(parsed.raw_serial().len(), 16);
    assert_eq!(parsed.public_key().raw, request.public_key.der());
    let bundle = Bundle::assemble(&root.der, &[], vec![root.der.clone()]).unwrap();
    verify_chain(&leaf.der, &bundle, &provider(), now()).unwrap();
    let later = now() + Duration::from_secs(3601);
    verify_chain(&leaf.der, &bundle, &provider(), later).unwrap_err();
    // Peers whose clocks are behind take it, too, within limits.
    let behind = |seconds| now() - Duration::from_secs(seconds);
    verify_chain(&leaf.der, &bundle, &provider(), behind(110)).unwrap();
    verify_chain(&leaf.der, &bundle, &provider(), behind(130)).unwrap_err();
}

/// The kind that is plugged in most.
#[test]
fn an_rsa_ca_signs_certificates_and_lists_for_rsa_keys() {
    use rustls_pki_types::{CertificateRevocationListDer, pem::PemObject as _};
    let key = PrivateKey::from_pem(include_str!("../../testdata/key/rsa-pkcs8.pem")).unwrap();
    let day = Validity::starting(now(), Duration::from_secs(86400));
    let root = mint_root(&key, "cluster.local", day).unwrap();
    let issuer = issuer_of(&root.der, &key).unwrap();
    let request = SigningRequest::from_pem(RSA_2048_CSR).unwrap();
    let identity = "spiffe://cluster.local/ns/default/sa/bookinfo";
    let profile = LeafProfile {
        sans: &[San::Uri(identity.into())],
        validity: Validity::starting(now(), Duration::from_secs(3600)),
        dual_use: false,
    };
    let leaf = mint_leaf(&issuer, &request.public_key, &profile).unwrap();
    assert_eq!(uri_sans(&leaf.der).unwrap(), [identity]);
    let (_, parsed) = X509Certificate::from_der(&leaf.der).unwrap();
    assert_eq!(parsed.public_key().raw, request.public_key.der());
    let bundle = Bundle::assemble(&root.der, &[], vec![root.der.clone()]).unwrap();
    verify_chain(&leaf.der, &bundle, &provider(), now()).unwrap();
    let revoked = [(leaf.serial.as_str(), now())].into_iter();
    let list = mint_crl(&issuer, revoked, 1, now(), day.not_after).unwrap();
    let list = CertificateRevocationListDer::from_pem_slice(list.as_bytes()).unwrap();
    let (_, list) = x509_parser::parse_x509_crl(&list).unwrap();
    let (_, root) = X509Certificate::from_der(&root.der).unwrap();
    list.verify_signature(root.public_key()).unwrap();
    assert_eq!(list.iter_revoked_certificates().count(), 1);
}

#[test]
fn a_chain_is_put_in_order_and_a_gap_is_named() {
    let read = |text: &str| certificates_from_pem(text).unwrap();
    let root = read(include_str!("../../testdata/ca/root-cert.pem"));
    let ca = read(include_str!("../../testdata/ca/ca-cert.pem"))[0].clone();
    let chain = read(include_str!("../../testdata/ca/cert-chain.pem"));
    let mut shuffled = chain.clone();
    shuffled.reverse();
    let bundle = Bundle::assemble(&ca, &shuffled, root.clone()).unwrap();
    assert_eq!(bundle.intermediates.len(), 2);
    assert_eq!(bundle.intermediates[0], ca);
    let other = mint_root(
        &PrivateKey::generate().unwrap(),
        "x",
        Validity::starting(now(), Duration::from_secs(60)),
    )
    .unwrap();
    let error = Bundle::assemble(&ca, &[], vec![other.der]).unwrap_err();
    assert!(error.to_string().contains("the chain breaks"), "{error}");
}

proptest! {
    #[test]
    fn readers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), text in "\\PC{0,200}") {
        let _ = SigningRequest::from_der(&bytes);
        let _ = SigningRequest::from_pem(&text);
        let _ = PublicKey::from_der(&bytes);
        let _ = PrivateKey::from_pem(&text);
        let _ = certificates_from_pem(&text);
        let _ = uri_sans(&bytes);
    }

    #[test]
    fn a_request_damaged_in_its_signed_part_is_refused(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let (_, pem) = csr(&["spiffe://a/ns/b/sa/c"]);
        let der = <rustls_pki_types::CertificateSigningRequestDer<'_> as rustls_pki_types::pem::PemObject>::from_pem_slice(pem.as_bytes()).unwrap();
        let (_, parsed) = X509CertificationRequest::from_der(&der).unwrap();
        let signed = parsed.certification_request_info.raw;
        let start = signed.as_ptr() as usize - der.as_ptr() as usize;
        let mut bytes = der.to_vec();
        bytes[start + at.index(signed.len())] ^= 1 << bit;
        prop_assert!(SigningRequest::from_der(&bytes).is_err());
    }
}
