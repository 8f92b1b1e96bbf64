//! TLS for every component: the one place where the crypto provider is chosen, and configurations that follow their
//! certificate files (replaced files count from the next connection on; a broken replacement is logged and the last good
//! one stays).

use rustls::{RootCertStore, crypto::CryptoProvider, sign::CertifiedKey};
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject as _,
};
use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
};

mod client;
pub mod revocation;
mod server;
#[cfg(test)]
pub(crate) mod tests;

pub use client::{ClientTls, ServerIdentity};
pub use server::{ClientAuth, ServerTls};

/// The file of revocation lists beside the trust anchors, in a folder or Secret.
pub const CRLS: &str = "ca-crl.pem";

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// PEM text that holds no (or no good) certificate.
    #[error("{place}: no certificate found: {reason}")]
    Certificate {
        /// File or `memory`.
        place: String,
        /// What the parser said.
        reason: String,
    },
    /// PEM text that holds no (or no good) private key.
    #[error("{place}: no private key found: {reason}")]
    Key {
        /// File or `memory`.
        place: String,
        /// What the parser said.
        reason: String,
    },
    /// Certificate and key do not belong together, or the key's type is unknown.
    #[error("certificate and key cannot be used together")]
    Mismatch(#[source] rustls::Error),
    /// A revocation list that cannot be read.
    #[error("{place}: not a list of revoked certificates: {reason}")]
    RevocationList {
        /// File or `memory`.
        place: String,
        /// What the parser said.
        reason: String,
    },
    /// The trust anchors cannot be used.
    #[error("trust anchors cannot be used: {0}")]
    Roots(String),
    /// No configuration could be built from the parts.
    #[error("TLS configuration")]
    Config(#[source] rustls::Error),
}

/// PEM text of a certificate chain, its key, and trust anchors; from files or made in memory.
#[derive(Clone, Default)]
pub struct Pem {
    /// Certificate chain, leaf first.
    pub chain: Vec<u8>,
    /// Private key (PKCS#8, PKCS#1 or SEC1).
    pub key: Vec<u8>,
    /// Certificates that the peer's chain must lead to.
    pub roots: Vec<u8>,
    /// Lists of revoked certificates, of which a server takes none; may be empty.
    pub crls: Vec<u8>,
}

impl std::fmt::Debug for Pem {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pem")
            .field("chain", &String::from_utf8_lossy(&self.chain))
            .field("roots", &String::from_utf8_lossy(&self.roots))
            .finish_non_exhaustive()
    }
}

/// Files that hold [`Pem`]; each may be absent, according to use.
#[derive(Clone, Debug, Default)]
pub struct PemFiles {
    /// Certificate chain.
    pub chain: Option<PathBuf>,
    /// Private key.
    pub key: Option<PathBuf>,
    /// Trust anchors.
    pub roots: Option<PathBuf>,
    /// Lists of revoked certificates; they come and go, so the file need not be there.
    pub crls: Option<PathBuf>,
}

impl PemFiles {
    /// Certificate, key and trust anchors, and beside those the lists ([`CRLS`]).
    pub fn new(chain: impl Into<PathBuf>, key: impl Into<PathBuf>, roots: Option<PathBuf>) -> Self {
        Self {
            chain: Some(chain.into()),
            key: Some(key.into()),
            crls: roots.as_deref().map(|roots| roots.with_file_name(CRLS)),
            roots,
        }
    }

    /// Reads the files.
    pub fn read(&self) -> Result<Pem, TlsError> {
        let read = |path: &Option<PathBuf>| match path {
            Some(path) => std::fs::read(path).map_err(|source| TlsError::Read {
                path: path.clone(),
                source,
            }),
            None => Ok(Vec::new()),
        };
        Ok(Pem {
            chain: read(&self.chain)?,
            key: read(&self.key)?,
            roots: read(&self.roots)?,
            crls: match read(&self.crls) {
                Err(TlsError::Read { source, .. }) if source.kind() == ErrorKind::NotFound => {
                    Vec::new()
                }
                lists => lists?,
            },
        })
    }

    fn paths(&self) -> Vec<PathBuf> {
        [&self.chain, &self.key, &self.roots, &self.crls]
            .into_iter()
            .filter_map(Clone::clone)
            .collect()
    }

    fn place(&self) -> String {
        self.chain
            .as_deref()
            .or(self.roots.as_deref())
            .unwrap_or(Path::new("memory"))
            .display()
            .to_string()
    }
}

/// Makes ring the process's provider; called by [`crate::process::run`], harmless when repeated.
pub fn install_provider() {
    // An error says that it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The provider in use.
pub fn provider() -> Arc<CryptoProvider> {
    install_provider();
    CryptoProvider::get_default()
        .cloned()
        .unwrap_or_else(|| Arc::new(rustls::crypto::ring::default_provider()))
}

/// The SPIFFE id in a DER certificate's subject alternative names.
pub fn spiffe_id(certificate: &[u8]) -> Option<String> {
    subject_uris(certificate)
        .into_iter()
        .find(|uri| uri.starts_with("spiffe://"))
}

/// All URI subject alternative names of a DER certificate.
pub fn subject_uris(certificate: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(certificate) else {
        return Vec::new();
    };
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let uris = names.value.general_names.iter().filter_map(|name| {
        if let x509_parser::extensions::GeneralName::URI(uri) = name {
            Some((*uri).to_owned())
        } else {
            None
        }
    });
    uris.collect()
}

/// Certificates in PEM text, in order.
pub fn certificates(pem: &[u8], place: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let refuse = |reason: String| TlsError::Certificate {
        place: place.to_owned(),
        reason,
    };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| refuse(error.to_string()))?;
    if chain.is_empty() {
        return Err(refuse("no CERTIFICATE block".to_owned()));
    }
    Ok(chain)
}

fn certified_key(pem: &Pem, place: &str) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(&pem.chain, place)?;
    let key = PrivateKeyDer::from_pem_slice(&pem.key).map_err(|error| TlsError::Key {
        place: place.to_owned(),
        reason: error.to_string(),
    })?;
    CertifiedKey::from_der(chain, key, &provider()).map_err(TlsError::Mismatch)
}

fn root_store(pem: &[u8], place: &str) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(pem, place)? {
        store
            .add(certificate)
            .map_err(|error| TlsError::Roots(error.to_string()))?;
    }
    Ok(store)
}

/// Revocation lists in PEM text; there may be none.
fn revocation_lists(
    pem: &[u8],
    place: &str,
) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    CertificateRevocationListDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::RevocationList {
            place: place.to_owned(),
            reason: error.to_string(),
        })
}

/// Follows the files: builds anew after each change, keeps the last good value.
fn follow<T: Send + Sync + 'static>(
    files: PemFiles,
    current: &Arc<arc_swap::ArcSwap<T>>,
    build: impl Fn(&Pem, &str) -> Result<T, TlsError> + Send + 'static,
) {
    let mut watcher = crate::file_watcher::FileWatcher::files(files.paths());
    let current = Arc::downgrade(current);
    crate::task::spawn("certificate-files", async move {
        loop {
            watcher.changed().await;
            // Nobody uses the configuration any more.
            let Some(current) = current.upgrade() else {
                return;
            };
            let place = files.place();
            match files.read().and_then(|pem| build(&pem, &place)) {
                Ok(value) => {
                    current.store(Arc::new(value));
                    tracing::info!(target: "tls", place, "certificate reloaded");
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(target: "tls", error, place, "new certificate refused; the last good one stays");
                }
            }
        }
    });
}
