//! Certificate revocation lists.

use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber,
};
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use super::certificate::{IssuerKey, MintError};

/// A list of `revoked` (serial number in hexadecimal, since when), signed by `issuer`, in PEM. It is good until `end`: a newer one comes by itself, long before.
pub fn mint_crl<'a>(
    issuer: &IssuerKey,
    revoked: impl Iterator<Item = (&'a str, OffsetDateTime)>,
    number: u64,
    now: OffsetDateTime,
    end: OffsetDateTime,
) -> Result<String, MintError> {
    let now = now.replace_nanosecond(0).unwrap_or(now);
    let entries = revoked.filter_map(|(serial, since)| {
        Some(RevokedCertParams {
            serial_number: SerialNumber::from_slice(&bytes_of(serial)?),
            revocation_time: since.replace_nanosecond(0).unwrap_or(now),
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        })
    });
    let params = CertificateRevocationListParams {
        this_update: now,
        next_update: end,
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: entries.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Ok(params.signed_by(issuer)?.pem()?)
}

/// The bytes of a hexadecimal number.
fn bytes_of(hexadecimal: &str) -> Option<Vec<u8>> {
    let padded = if hexadecimal.len() % 2 == 1 {
        format!("0{hexadecimal}")
    } else {
        hexadecimal.to_owned()
    };
    (0..padded.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(padded.get(at..at + 2)?, 16).ok())
        .collect()
}

/// What lists in PEM say, whenever they were signed: a digest of issuers and serial numbers, nothing for no list. None if they
/// cannot be read.
pub fn revoked_by(pem: &str) -> Option<String> {
    let mut said = Vec::new();
    for der in CertificateRevocationListDer::pem_slice_iter(pem.as_bytes()) {
        let der = der.ok()?;
        let (_, list) = x509_parser::parse_x509_crl(&der).ok()?;
        let mut serials: Vec<&[u8]> = list
            .iter_revoked_certificates()
            .map(x509_parser::revocation_list::RevokedCertificate::raw_serial)
            .collect();
        serials.sort_unstable();
        let mut digest = Sha256::new().chain_update(list.issuer().as_raw());
        for serial in serials {
            digest.update([u8::try_from(serial.len()).ok()?]);
            digest.update(serial);
        }
        said.push(format!("{:x}", digest.finalize()));
    }
    said.sort_unstable();
    Some(said.concat())
}
