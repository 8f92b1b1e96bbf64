//! Certificates followed through replacement, and a small authority for other tests.

use super::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer,
    KeyIdMethod, KeyPair, RevokedCertParams, SanType, SerialNumber, string::Ia5String,
};

/// A certificate authority made for one test.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

pub(crate) fn authority() -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    Authority {
        issuer: Issuer::new(params, key),
        pem,
    }
}

impl Authority {
    pub(crate) fn issue(&self, spiffe_id: &str, dns: &str) -> Pem {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        let uri = Ia5String::try_from(spiffe_id).unwrap();
        params.subject_alt_names.push(SanType::URI(uri));
        if !dns.is_empty() {
            let dns = Ia5String::try_from(dns).unwrap();
            params.subject_alt_names.push(SanType::DnsName(dns));
        }
        Pem {
            chain: params
                .signed_by(&key, &self.issuer)
                .unwrap()
                .pem()
                .into_bytes(),
            key: key.serialize_pem().into_bytes(),
            roots: self.pem.clone().into_bytes(),
            crls: Vec::new(),
        }
    }

    /// A list that revokes what was issued.
    pub(crate) fn revoke(&self, issued: &[&Pem]) -> String {
        let now = time::OffsetDateTime::now_utc();
        let entry = |pem: &&Pem| {
            let chain = certificates(&pem.chain, "memory").unwrap();
            let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
            RevokedCertParams {
                serial_number: SerialNumber::from_slice(leaf.raw_serial()),
                revocation_time: now,
                reason_code: None,
                invalidity_date: None,
            }
        };
        let list = CertificateRevocationListParams {
            this_update: now - time::Duration::days(2),
            // Long ago: an old list is better than none, here as in sidecars.
            next_update: now - time::Duration::days(1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: issued.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

#[test]
fn the_spiffe_id_is_read_from_the_certificate() {
    let id = "spiffe://cluster.local/ns/default/sa/reviews";
    let pem = authority().issue(id, "reviews");
    let chain = certificates(&pem.chain, "memory").unwrap();
    assert_eq!(spiffe_id(chain[0].as_ref()).as_deref(), Some(id));
    assert_eq!(spiffe_id(b"not a certificate"), None);
}

#[test]
fn what_is_wrong_with_the_pem_is_said() {
    let good = authority().issue("spiffe://a/b", "x");
    let server = |pem: &Pem| ServerTls::from_pem(pem, ClientAuth::Required, &["h2"]).err();
    assert!(server(&good).is_none());
    let no_key = Pem {
        key: Vec::new(),
        ..good.clone()
    };
    assert!(matches!(server(&no_key), Some(TlsError::Key { .. })));
    let other_key = Pem {
        key: authority().issue("spiffe://a/b", "x").key,
        ..good.clone()
    };
    assert!(matches!(server(&other_key), Some(TlsError::Mismatch(_))));
    let no_roots = Pem {
        roots: Vec::new(),
        ..good
    };
    assert!(matches!(
        server(&no_roots),
        Some(TlsError::Certificate { .. })
    ));
}

#[tokio::test]
async fn replaced_files_count_and_broken_ones_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let write = |pem: &Pem| {
        std::fs::write(at("key.pem"), &pem.key).unwrap();
        std::fs::write(at("cert.pem"), &pem.chain).unwrap();
    };
    let ca = authority();
    write(&ca.issue("spiffe://a/one", "x"));
    let files = PemFiles::new(at("cert.pem"), at("key.pem"), None);
    let tls = ServerTls::from_files(files, ClientAuth::None, &["h2"]).unwrap();
    let config = |tls: &ServerTls| Arc::as_ptr(tls.acceptor().config());
    let first = config(&tls);
    std::fs::write(at("cert.pem"), "rubbish").unwrap();
    // Of another length: within one tick of the clock files of the same look the same.
    write(&ca.issue("spiffe://a/two-and-more-than-the-first-one", "x"));
    let changed = async {
        while config(&tls) == first {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), changed)
        .await
        .unwrap();
}
