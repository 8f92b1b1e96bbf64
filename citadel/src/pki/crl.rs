//! Certificate revocation lists.

use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber,
};
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
