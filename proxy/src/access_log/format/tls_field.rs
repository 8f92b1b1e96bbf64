//! What formats tell of a TLS session, downstream or upstream.

use std::time::{Duration, UNIX_EPOCH};

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};

use crate::listener::TlsInfo;
use crate::transport::{certificate_details as details, hex, url_encoded_pem};

use super::TimeFormat;
use super::operator::put;

/// Whose TLS session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Downstream,
    Upstream,
}

/// What is told of a TLS session.
#[derive(Debug, Clone)]
pub(super) enum TlsField {
    PeerUriSan,
    PeerDnsSan,
    PeerSubject,
    PeerFingerprint,
    PeerFingerprint1,
    PeerIpSan,
    PeerEmailSan,
    PeerCertificate,
    ChainFingerprints,
    ChainFingerprints1,
    ChainSerials,
    IssuerFingerprint,
    IssuerSerial,
    PeerSerial,
    PeerIssuer,
    PeerStart(TimeFormat),
    PeerEnd(TimeFormat),
    LocalUriSan,
    LocalDnsSan,
    LocalIpSan,
    LocalEmailSan,
    LocalOtherNameSan,
    PeerOtherNameSan,
    Group,
    ServerName,
    LocalSubject,
    Version,
    Cipher,
}

impl TlsField {
    /// Appends the value; false when there is none.
    pub(super) fn write(&self, tls: &TlsInfo, out: &mut String) -> bool {
        let peer = tls.peer.as_ref();
        match self {
            TlsField::PeerUriSan => peer.is_some_and(|peer| join(&peer.uri_sans, out)),
            TlsField::PeerDnsSan => peer.is_some_and(|peer| join(&peer.dns_sans, out)),
            TlsField::PeerSubject => put(peer.map(|peer| peer.subject.as_str()), out),
            TlsField::PeerFingerprint => put(peer.map(|peer| peer.sha256.as_str()), out),
            TlsField::PeerFingerprint1
            | TlsField::PeerIpSan
            | TlsField::PeerEmailSan
            | TlsField::PeerOtherNameSan
            | TlsField::PeerCertificate
            | TlsField::ChainFingerprints
            | TlsField::ChainFingerprints1
            | TlsField::ChainSerials
            | TlsField::IssuerFingerprint
            | TlsField::IssuerSerial => peer.is_some_and(|peer| self.write_chain(&peer.chain, out)),
            TlsField::PeerSerial => put(peer.map(|peer| peer.serial.as_str()), out),
            TlsField::PeerIssuer => put(peer.map(|peer| peer.issuer.as_str()), out),
            TlsField::PeerStart(format) => {
                peer.is_some_and(|peer| write_time(format, peer.not_before, out))
            }
            TlsField::PeerEnd(format) => {
                peer.is_some_and(|peer| write_time(format, peer.not_after, out))
            }
            TlsField::LocalDnsSan => join(&tls.local.dns_sans, out),
            TlsField::LocalIpSan => join(&tls.local.ip_sans, out),
            TlsField::LocalEmailSan => join(&tls.local.email_sans, out),
            TlsField::LocalOtherNameSan => join(&tls.local.other_sans, out),
            TlsField::LocalSubject => put(
                Some(tls.local.subject.as_str()).filter(|text| !text.is_empty()),
                out,
            ),
            TlsField::LocalUriSan => join(&tls.local.uri_sans, out),
            TlsField::Group => put(tls.group, out),
            TlsField::ServerName => put(tls.server_name.as_deref(), out),
            TlsField::Version => put(Some(tls.version), out),
            TlsField::Cipher => put(Some(tls.cipher.as_str()), out),
        }
    }
}

impl TlsField {
    /// What is read from the certificates themselves, leaf first, as few ask for it.
    fn write_chain(&self, chain: &[Vec<u8>], out: &mut String) -> bool {
        let (leaf, issuer) = (chain.first(), chain.get(1));
        let serial = |der: &Vec<u8>| details(der).map(|details| details.serial);
        match self {
            TlsField::PeerCertificate => {
                put(leaf.map(|_| url_encoded_pem(&chain[..1])).as_deref(), out)
            }
            TlsField::PeerIpSan | TlsField::PeerEmailSan | TlsField::PeerOtherNameSan => {
                let details = leaf.and_then(|leaf| details(leaf)).unwrap_or_default();
                match self {
                    TlsField::PeerIpSan => join(&details.ip_sans, out),
                    TlsField::PeerOtherNameSan => join(&details.other_sans, out),
                    _ => join(&details.email_sans, out),
                }
            }
            TlsField::PeerFingerprint1 => put(leaf.map(|der| sha1(der)).as_deref(), out),
            TlsField::IssuerFingerprint => put(issuer.map(|der| sha256(der)).as_deref(), out),
            TlsField::IssuerSerial => put(issuer.and_then(serial).as_deref(), out),
            TlsField::ChainFingerprints => join(
                &chain.iter().map(|der| sha256(der)).collect::<Vec<_>>(),
                out,
            ),
            TlsField::ChainFingerprints1 => {
                join(&chain.iter().map(|der| sha1(der)).collect::<Vec<_>>(), out)
            }
            TlsField::ChainSerials => {
                join(&chain.iter().filter_map(serial).collect::<Vec<_>>(), out)
            }
            _ => false,
        }
    }
}

fn sha256(der: &[u8]) -> String {
    hex(digest(&SHA256, der).as_ref())
}

/// Not to be relied on: it names certificates to those who have always named them so.
fn sha1(der: &[u8]) -> String {
    hex(digest(&SHA1_FOR_LEGACY_USE_ONLY, der).as_ref())
}

/// A time in seconds since 1970; one before that is not told.
fn write_time(format: &TimeFormat, seconds: i64, out: &mut String) -> bool {
    let Ok(seconds) = u64::try_from(seconds) else {
        return false;
    };
    format.write(UNIX_EPOCH + Duration::from_secs(seconds), out);
    true
}

fn join(items: &[String], out: &mut String) -> bool {
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        out.push_str(item);
    }
    !items.is_empty()
}
