//! What formats tell of a TLS session, downstream or upstream.

use std::time::{Duration, UNIX_EPOCH};

use crate::listener::TlsInfo;

use super::TimeFormat;
use super::operator::put;

/// Whose TLS session.
#[derive(Debug, Clone, Copy)]
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
    PeerSerial,
    PeerIssuer,
    PeerStart(TimeFormat),
    PeerEnd(TimeFormat),
    LocalUriSan,
    LocalDnsSan,
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
            TlsField::PeerSerial => put(peer.map(|peer| peer.serial.as_str()), out),
            TlsField::PeerIssuer => put(peer.map(|peer| peer.issuer.as_str()), out),
            TlsField::PeerStart(format) => {
                peer.is_some_and(|peer| write_time(format, peer.not_before, out))
            }
            TlsField::PeerEnd(format) => {
                peer.is_some_and(|peer| write_time(format, peer.not_after, out))
            }
            TlsField::LocalDnsSan => join(&tls.local_dns_sans, out),
            TlsField::LocalSubject => put(
                Some(tls.local_subject.as_ref()).filter(|text| !text.is_empty()),
                out,
            ),
            TlsField::LocalUriSan => join(&tls.local_uri_sans, out),
            TlsField::Version => put(Some(tls.version), out),
            TlsField::Cipher => put(Some(tls.cipher.as_str()), out),
        }
    }
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
