//! What new anchors mean for a certificate, and what is no anchors.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};

use super::*;

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn root(name: &str) -> Issuer {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn workload(root: &Issuer, serial: u64) -> Workload {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from(serial));
    let leaf = params.signed_by(&key, root).unwrap();
    Workload::new(key.serialize_pem(), &[leaf.pem(), root.pem()]).unwrap()
}

fn revoked(root: &Issuer, serial: u64) -> String {
    let now = OffsetDateTime::now_utc();
    let params = CertificateRevocationListParams {
        this_update: now,
        next_update: now + Duration::from_secs(60),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(root).unwrap().pem().unwrap()
}

fn anchors(roots: &str, crls: &str) -> Result<Anchors, InvalidSecret> {
    Anchors::new(&CertificateValidationContext {
        trusted_ca: Some(inline(roots)),
        crl: (!crls.is_empty()).then(|| inline(crls)),
        ..CertificateValidationContext::default()
    })
}

#[test]
fn anchors_say_whether_a_certificate_is_to_be_replaced() {
    let (old, new) = (root("old"), root("new"));
    let workload = workload(&old, 7);
    let both = |first: &Issuer, second: &Issuer| first.pem() + &second.pem();
    for (roots, crls, standing) in [
        (old.pem(), String::new(), Standing::Good),
        (both(&old, &new), String::new(), Standing::Good),
        (both(&new, &old), String::new(), Standing::Superseded),
        (old.pem(), revoked(&old, 8), Standing::Good),
        (old.pem(), revoked(&old, 7), Standing::Revoked),
        (
            both(&new, &old),
            revoked(&new, 1) + &revoked(&old, 7),
            Standing::Revoked,
        ),
    ] {
        let anchors = anchors(&roots, &crls).unwrap();
        assert_eq!(anchors.standing(&workload), standing);
        let secret = anchors.secret();
        let Some(Type::ValidationContext(context)) = secret.secret.r#type else {
            panic!("{:?}", secret.secret.name);
        };
        assert_eq!(text(context.trusted_ca.as_ref()).unwrap(), roots);
        assert_eq!(text(context.crl.as_ref()).unwrap(), crls);
    }
}

#[test]
fn what_is_no_anchors_is_refused() {
    let good = root("root").pem();
    for (roots, crls) in [
        ("", ""),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "",
        ),
        (
            good.as_str(),
            "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
        ),
    ] {
        assert!(anchors(roots, crls).is_err(), "{roots} {crls}");
    }
}
