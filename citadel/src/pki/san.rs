//! Subject alternative names: SPIFFE URIs, DNS names and addresses.

use std::fmt;
use std::net::IpAddr;

use rcgen::SanType;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// One subject alternative name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum San {
    /// A URI, in this mesh a SPIFFE identity.
    Uri(String),
    /// A DNS name.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

/// A name that cannot stand in a certificate, or a certificate that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSan {
    /// Not ASCII.
    #[error("subject alternative name {0:?} is not ASCII")]
    NotAscii(String),
    /// The certificate itself is broken.
    #[error("unreadable certificate")]
    Certificate,
}

impl San {
    /// Reads a host identity as Istio's flags give it: a SPIFFE URI, an address, or else a DNS name.
    pub fn from_host(host: &str) -> Self {
        if host.contains("://") {
            Self::Uri(host.to_owned())
        } else if let Ok(address) = host.parse() {
            Self::Ip(address)
        } else {
            Self::Dns(host.to_owned())
        }
    }

    pub(super) fn to_rcgen(&self) -> Result<SanType, InvalidSan> {
        let not_ascii = |_| InvalidSan::NotAscii(self.to_string());
        Ok(match self {
            Self::Uri(uri) => SanType::URI(uri.as_str().try_into().map_err(not_ascii)?),
            Self::Dns(name) => SanType::DnsName(name.as_str().try_into().map_err(not_ascii)?),
            Self::Ip(address) => SanType::IpAddress(*address),
        })
    }
}

impl fmt::Display for San {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uri(name) | Self::Dns(name) => f.write_str(name),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

/// The serial number of a certificate in DER, as the ledger writes it.
pub fn serial_of(certificate: &[u8]) -> Result<String, InvalidSan> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|_| InvalidSan::Certificate)?;
    let bytes = parsed.raw_serial().iter();
    Ok(bytes.map(|byte| format!("{byte:02x}")).collect())
}

/// The URI names of a certificate in DER.
pub fn uri_sans(certificate: &[u8]) -> Result<Vec<String>, InvalidSan> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|_| InvalidSan::Certificate)?;
    let mut uris = Vec::new();
    for extension in parsed.extensions() {
        if let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() {
            uris.extend(names.general_names.iter().filter_map(|name| match name {
                GeneralName::URI(uri) => Some((*uri).to_owned()),
                _ => None,
            }));
        }
    }
    Ok(uris)
}
