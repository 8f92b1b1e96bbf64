//! An authority that the user brings: `ca-cert.pem`, `ca-key.pem`, `root-cert.pem`, `cert-chain.pem`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use time::OffsetDateTime;

use super::signer::{InvalidSigner, Signer};
use super::{CertificateAuthority, SignError, SignRequest};
use crate::pki::{
    Bundle, Certificate, InvalidBundle, InvalidKey, PrivateKey, certificates_from_pem,
};

/// Where the four files are.
#[derive(Debug, Clone)]
pub struct PluggedInFiles {
    /// `--signing-cert`: the CA's certificate.
    pub signing_certificate: PathBuf,
    /// `--signing-key`: its private key.
    pub signing_key: PathBuf,
    /// `--root-cert`: what peers trust.
    pub root_certificate: PathBuf,
    /// `--cert-chain`: from the CA's certificate towards the root; may be left out when the root signed the CA itself.
    pub certificate_chain: Option<PathBuf>,
}

/// The plugged-in authority.
pub struct PluggedIn(Signer);

/// Which file is wrong, and why.
#[derive(Debug, thiserror::Error)]
pub enum InvalidPluggedIn {
    /// Cannot be read.
    #[error("read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Holds no usable certificates.
    #[error("{}: {error}", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: InvalidBundle,
    },
    /// Holds no usable key.
    #[error("{}: {error}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: InvalidKey,
    },
    /// The files do not fit together.
    #[error("the plugged-in CA ({}): {error}", path.display())]
    Mismatch {
        /// The signing certificate.
        path: PathBuf,
        /// What does not fit.
        error: InvalidSigner,
    },
}

impl PluggedIn {
    /// Reads the files and checks that they belong together.
    pub fn load(
        files: &PluggedInFiles,
        provider: &Arc<CryptoProvider>,
        now: OffsetDateTime,
    ) -> Result<Self, InvalidPluggedIn> {
        let signing = read_certificates(&files.signing_certificate)?;
        let roots = read_certificates(&files.root_certificate)?;
        let mut chain = signing[1..].to_vec();
        if let Some(path) = &files.certificate_chain {
            chain.extend(read_certificates(path)?);
        }
        let key = PrivateKey::from_pem(&read(&files.signing_key)?).map_err(|error| {
            InvalidPluggedIn::Key {
                path: files.signing_key.clone(),
                error,
            }
        })?;
        let mismatch = |error| InvalidPluggedIn::Mismatch {
            path: files.signing_certificate.clone(),
            error,
        };
        let bundle =
            Bundle::assemble(&signing[0], &chain, roots).map_err(|error| mismatch(error.into()))?;
        Signer::new(&signing[0], &key, bundle, provider, now)
            .map(Self)
            .map_err(mismatch)
    }
}

impl CertificateAuthority for PluggedIn {
    fn sign(
        &self,
        request: &SignRequest<'_>,
        now: OffsetDateTime,
    ) -> Result<Certificate, SignError> {
        self.0.sign(request, now)
    }

    fn bundle(&self) -> Arc<Bundle> {
        self.0.bundle().clone()
    }
}

fn read(path: &Path) -> Result<String, InvalidPluggedIn> {
    fs::read_to_string(path).map_err(|error| InvalidPluggedIn::Read {
        path: path.to_owned(),
        error,
    })
}

fn read_certificates(
    path: &Path,
) -> Result<Vec<rustls_pki_types::CertificateDer<'static>>, InvalidPluggedIn> {
    certificates_from_pem(&read(path)?).map_err(|error| InvalidPluggedIn::Certificates {
        path: path.to_owned(),
        error,
    })
}
