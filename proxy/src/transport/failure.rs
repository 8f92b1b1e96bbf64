//! Why a downstream handshake failed, as access logs tell it: in the words of Envoy's TLS library, where it has some for it.

use super::tls_context::TlsError;
use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};
use std::{fmt, io};

/// Where the TLS library's own reasons begin; below are those of alerts, from 1000 on.
const LIBRARY: u32 = 16 << 24;
/// Where the operating system's begin.
const SYSTEM: i32 = 2 << 24;

/// Why the transport of a connection failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The TLS inspector found no ClientHello; whether one was needed is another matter.
    NotTls(Reason),
    /// The handshake.
    Handshake(Reason),
    /// The socket, by the system's number.
    System(i32),
    /// What Envoy's library has no word for.
    Other(String),
}

/// A reason of the TLS library's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reason {
    code: u32,
    name: &'static str,
    /// More words, of Envoy's.
    details: Option<&'static str>,
}

impl Reason {
    const fn new(code: u32, name: &'static str) -> Self {
        Self {
            code,
            name,
            details: None,
        }
    }

    const fn verification(details: &'static str) -> Self {
        Self {
            code: 125,
            name: "CERTIFICATE_VERIFY_FAILED",
            details: Some(details),
        }
    }

    /// What is wrong with bytes that are not the beginning of a ClientHello.
    pub(crate) fn not_tls(first: &[u8]) -> Self {
        let begins = |word: &str| first.starts_with(word.as_bytes());
        if ["GET ", "POST ", "HEAD ", "PUT "].into_iter().any(begins) {
            return Self::new(156, "HTTP_REQUEST");
        }
        match first {
            _ if begins("CONNE") => Self::new(155, "HTTPS_PROXY_REQUEST"),
            [21, 3, _, _, _, _, alert, ..] => Self::alert(AlertDescription::from(*alert)),
            [22, 3, ..] => Self::new(223, "UNEXPECTED_MESSAGE"),
            [_, 3, ..] => Self::new(225, "UNEXPECTED_RECORD"),
            _ => Self::new(247, "WRONG_VERSION_NUMBER"),
        }
    }

    fn alert(alert: AlertDescription) -> Self {
        use AlertDescription as Alert;
        let name = match alert {
            Alert::CloseNotify => "SSLV3_ALERT_CLOSE_NOTIFY",
            Alert::UnexpectedMessage => "SSLV3_ALERT_UNEXPECTED_MESSAGE",
            Alert::BadRecordMac => "SSLV3_ALERT_BAD_RECORD_MAC",
            Alert::DecryptionFailed => "TLSV1_ALERT_DECRYPTION_FAILED",
            Alert::RecordOverflow => "TLSV1_ALERT_RECORD_OVERFLOW",
            Alert::DecompressionFailure => "SSLV3_ALERT_DECOMPRESSION_FAILURE",
            Alert::HandshakeFailure => "SSLV3_ALERT_HANDSHAKE_FAILURE",
            Alert::NoCertificate => "SSLV3_ALERT_NO_CERTIFICATE",
            Alert::BadCertificate => "SSLV3_ALERT_BAD_CERTIFICATE",
            Alert::UnsupportedCertificate => "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
            Alert::CertificateRevoked => "SSLV3_ALERT_CERTIFICATE_REVOKED",
            Alert::CertificateExpired => "SSLV3_ALERT_CERTIFICATE_EXPIRED",
            Alert::CertificateUnknown => "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
            Alert::IllegalParameter => "SSLV3_ALERT_ILLEGAL_PARAMETER",
            Alert::UnknownCA => "TLSV1_ALERT_UNKNOWN_CA",
            Alert::AccessDenied => "TLSV1_ALERT_ACCESS_DENIED",
            Alert::DecodeError => "TLSV1_ALERT_DECODE_ERROR",
            Alert::DecryptError => "TLSV1_ALERT_DECRYPT_ERROR",
            Alert::ExportRestriction => "TLSV1_ALERT_EXPORT_RESTRICTION",
            Alert::ProtocolVersion => "TLSV1_ALERT_PROTOCOL_VERSION",
            Alert::InsufficientSecurity => "TLSV1_ALERT_INSUFFICIENT_SECURITY",
            Alert::InternalError => "TLSV1_ALERT_INTERNAL_ERROR",
            Alert::InappropriateFallback => "TLSV1_ALERT_INAPPROPRIATE_FALLBACK",
            Alert::UserCanceled => "TLSV1_ALERT_USER_CANCELLED",
            Alert::NoRenegotiation => "TLSV1_ALERT_NO_RENEGOTIATION",
            Alert::UnsupportedExtension => "TLSV1_ALERT_UNSUPPORTED_EXTENSION",
            Alert::CertificateUnobtainable => "TLSV1_ALERT_CERTIFICATE_UNOBTAINABLE",
            Alert::UnrecognisedName => "TLSV1_ALERT_UNRECOGNIZED_NAME",
            Alert::BadCertificateStatusResponse => "TLSV1_ALERT_BAD_CERTIFICATE_STATUS_RESPONSE",
            Alert::BadCertificateHashValue => "TLSV1_ALERT_BAD_CERTIFICATE_HASH_VALUE",
            Alert::UnknownPSKIdentity => "TLSV1_ALERT_UNKNOWN_PSK_IDENTITY",
            Alert::CertificateRequired => "TLSV1_ALERT_CERTIFICATE_REQUIRED",
            Alert::NoApplicationProtocol => "TLSV1_ALERT_NO_APPLICATION_PROTOCOL",
            // As the library prints reasons that it has no name for.
            _ => "unknown_error",
        };
        Self::new(1000 + u32::from(u8::from(alert)), name)
    }

    /// The TLS library does not tell which certificate of a chain it refuses: it is said to be the leaf.
    fn of_certificate(error: &CertificateError) -> Option<Self> {
        use CertificateError as Of;
        Some(Self::verification(match error {
            Of::UnknownIssuer => {
                "verify cert failed: X509_verify_cert: certificate verification error at depth 0: \
                 unable to get local issuer certificate"
            }
            Of::Expired | Of::ExpiredContext { .. } => {
                "verify cert failed: X509_verify_cert: certificate verification error at depth 0: \
                 certificate has expired"
            }
            Of::NotValidYet | Of::NotValidYetContext { .. } => {
                "verify cert failed: X509_verify_cert: certificate verification error at depth 0: \
                 certificate is not yet valid"
            }
            Of::Revoked => {
                "verify cert failed: X509_verify_cert: certificate verification error at depth 0: \
                 certificate revoked"
            }
            Of::NotValidForName => "verify cert failed: verify SAN list",
            Of::ApplicationVerificationFailure => "verify cert failed: cert hash and spki",
            _ => return None,
        }))
    }

    fn of_error(error: &Error) -> Option<Self> {
        Some(match error {
            Error::NoCertificatesPresented => Self {
                code: 192,
                name: "PEER_DID_NOT_RETURN_A_CERTIFICATE",
                details: Some("peer did not provide required client certificate"),
            },
            Error::InvalidCertificate(error) => Self::of_certificate(error)?,
            Error::AlertReceived(alert) => Self::alert(*alert),
            Error::PeerIncompatible(
                PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
            ) => Self::new(240, "UNSUPPORTED_PROTOCOL"),
            Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon) => {
                Self::new(184, "NO_SHARED_CIPHER")
            }
            Error::PeerIncompatible(PeerIncompatible::NoKxGroupsInCommon) => {
                Self::new(243, "WRONG_CURVE")
            }
            Error::InvalidMessage(_) => Self::new(131, "CLIENTHELLO_PARSE_FAILED"),
            _ => return None,
        })
    }
}

impl Failure {
    /// The peer has reset the connection.
    pub(crate) const RESET: Self = Self::System(nix::libc::ECONNRESET);

    /// Why there was nothing to begin a handshake with.
    pub(super) fn of_context(error: &TlsError) -> Self {
        Self::Other(match error {
            TlsError::SecretMissing(_) => "TLS error: Secret is not supplied by SDS".to_owned(),
            TlsError::Context(_) => format!("TLS_error: {error}"),
        })
    }

    /// Why a handshake came to nothing; a client that just leaves is no failure of the transport's.
    pub(super) fn of_handshake(error: &io::Error) -> Option<Self> {
        let cause = error.get_ref().and_then(|inner| inner.downcast_ref());
        match (cause, error.raw_os_error()) {
            (Some(cause), _) => Some(Reason::of_error(cause).map_or_else(
                || Self::Other(format!("TLS_error: {cause}")),
                Self::Handshake,
            )),
            (None, Some(number)) => Some(Self::System(number)),
            (None, None) => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotTls(Reason { code, name, .. }) => write!(
                out,
                "TLS_error|error:{:08x}:SSL routines:OPENSSL_internal:{name}:TLS_error_end",
                LIBRARY + code
            ),
            Self::Handshake(Reason {
                code,
                name,
                details,
            }) => {
                let code = LIBRARY + code;
                write!(
                    out,
                    "TLS_error:|{code}:SSL routines:OPENSSL_internal:{name}"
                )?;
                if let Some(details) = details {
                    write!(out, ":{details}")?;
                }
                out.write_str(":TLS_error_end")
            }
            Self::System(number) => {
                let text = io::Error::from_raw_os_error(*number).to_string();
                let text = text.split(" (os error").next().unwrap_or_default();
                let code = SYSTEM + number;
                write!(
                    out,
                    "TLS_error:|{code}:system library:OPENSSL_internal:{text}:TLS_error_end"
                )
            }
            Self::Other(text) => out.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_in_envoys_words() {
        let handshake = |error: Error| {
            let error = io::Error::new(io::ErrorKind::InvalidData, error);
            Failure::of_handshake(&error).map(|failure| failure.to_string())
        };
        assert_eq!(
            handshake(Error::NoCertificatesPresented).as_deref(),
            Some(
                "TLS_error:|268435648:SSL routines:OPENSSL_internal:PEER_DID_NOT_RETURN_A_CERTIFICATE:peer did not provide \
                 required client certificate:TLS_error_end"
            )
        );
        assert_eq!(
            handshake(Error::AlertReceived(AlertDescription::UnknownCA)).as_deref(),
            Some(
                "TLS_error:|268436504:SSL routines:OPENSSL_internal:TLSV1_ALERT_UNKNOWN_CA:TLS_error_end"
            )
        );
        assert_eq!(
            handshake(Error::General("odd".to_owned())).as_deref(),
            Some("TLS_error: unexpected error: odd")
        );
        let gone = Failure::of_handshake(&io::Error::from_raw_os_error(104));
        assert_eq!(
            gone.map(|failure| failure.to_string()).as_deref(),
            Some(
                "TLS_error:|33554536:system library:OPENSSL_internal:Connection reset by peer:TLS_error_end"
            )
        );
        assert_eq!(
            Failure::of_handshake(&io::ErrorKind::UnexpectedEof.into()),
            None
        );
    }

    #[test]
    fn what_is_not_tls_is_told_apart() {
        for (first, name) in [
            (
                &b"GET / HTTP/1.1"[..],
                "1000009c:SSL routines:OPENSSL_internal:HTTP_REQUEST",
            ),
            (
                b"CONNECT a:1",
                "1000009b:SSL routines:OPENSSL_internal:HTTPS_PROXY_REQUEST",
            ),
            (
                b"PATCH /",
                "100000f7:SSL routines:OPENSSL_internal:WRONG_VERSION_NUMBER",
            ),
            (
                b"\x15\x03\x01\x00\x02\x02\x28",
                "10000410:SSL routines:OPENSSL_internal:SSLV3_ALERT_HANDSHAKE_FAILURE",
            ),
            (
                b"\x17\x03\x01\x00\x02\x02\x28",
                "100000e1:SSL routines:OPENSSL_internal:UNEXPECTED_RECORD",
            ),
            (
                b"\x16\x03\x01\x00\x04\x02\0\0\0",
                "100000df:SSL routines:OPENSSL_internal:UNEXPECTED_MESSAGE",
            ),
        ] {
            let text = Failure::NotTls(Reason::not_tls(first)).to_string();
            assert_eq!(text, format!("TLS_error|error:{name}:TLS_error_end"));
        }
    }
}
