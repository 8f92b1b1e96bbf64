//! An authority that the user brings: `ca-cert.pem`, `ca-key.pem`, `root-cert.pem`, `cert-chain.pem`. When the files change it
//! is read anew; files that do not fit together (yet) leave the last good one in force.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use proto_component::file_watcher::FileWatcher;
use rustls::crypto::CryptoProvider;
use time::OffsetDateTime;

use super::signer::{InvalidSigner, Signer};
use super::{CertificateAuthority, SignError, SignRequest};
use crate::pki::{
    Bundle, Certificate, InvalidBundle, InvalidKey, PrivateKey, certificates_from_pem,
};
use crate::revocation::Revoked;

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
pub struct PluggedIn {
    files: PluggedInFiles,
    provider: Arc<CryptoProvider>,
    signers: ArcSwap<Signers>,
}

/// Who signs, and who has signed what may still live.
struct Signers {
    active: Arc<Signer>,
    earlier: Option<Arc<Signer>>,
}

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

impl PluggedInFiles {
    fn paths(&self) -> Vec<PathBuf> {
        let always = [
            &self.signing_certificate,
            &self.signing_key,
            &self.root_certificate,
        ];
        always
            .into_iter()
            .chain(&self.certificate_chain)
            .cloned()
            .collect()
    }

    fn signer(
        &self,
        provider: &Arc<CryptoProvider>,
        now: OffsetDateTime,
    ) -> Result<Signer, InvalidPluggedIn> {
        let signing = read_certificates(&self.signing_certificate)?;
        let roots = read_certificates(&self.root_certificate)?;
        let mut chain = signing[1..].to_vec();
        if let Some(path) = &self.certificate_chain {
            chain.extend(read_certificates(path)?);
        }
        let text = zeroize::Zeroizing::new(read(&self.signing_key)?);
        let key = PrivateKey::from_pem(&text).map_err(|error| InvalidPluggedIn::Key {
            path: self.signing_key.clone(),
            error,
        })?;
        let mismatch = |error| InvalidPluggedIn::Mismatch {
            path: self.signing_certificate.clone(),
            error,
        };
        let bundle =
            Bundle::assemble(&signing[0], &chain, roots).map_err(|error| mismatch(error.into()))?;
        Signer::new(&signing[0], &key, bundle, provider, now).map_err(mismatch)
    }
}

impl PluggedIn {
    /// Reads the files and checks that they belong together.
    pub fn load(
        files: &PluggedInFiles,
        provider: &Arc<CryptoProvider>,
        now: OffsetDateTime,
    ) -> Result<Self, InvalidPluggedIn> {
        let active = Arc::new(files.signer(provider, now)?);
        Ok(Self {
            files: files.clone(),
            provider: provider.clone(),
            signers: ArcSwap::from_pointee(Signers {
                active,
                earlier: None,
            }),
        })
    }

    /// Reads the files again; says whether they hold another CA now.
    pub fn reload(&self, now: OffsetDateTime) -> Result<bool, InvalidPluggedIn> {
        let signer = self.files.signer(&self.provider, now)?;
        let before = self.signers.load();
        if before.active.is_like(&signer) {
            return Ok(false);
        }
        self.signers.store(Arc::new(Signers {
            active: Arc::new(signer),
            earlier: Some(before.active.clone()),
        }));
        Ok(true)
    }

    /// Follows the files, for ever; `changed` is told of each new CA.
    pub async fn follow(&self, changed: impl Fn()) {
        let mut watcher = FileWatcher::files(self.files.paths());
        loop {
            watcher.changed().await;
            match self.reload(OffsetDateTime::now_utc()) {
                Ok(true) => {
                    tracing::info!(target: "ca", "the plugged-in CA's files have changed, they are in force");
                    changed();
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(target: "ca", %error, "the plugged-in CA's files have changed, the last good ones stay in force");
                }
            }
        }
    }
}

impl CertificateAuthority for PluggedIn {
    fn sign(
        &self,
        request: &SignRequest<'_>,
        now: OffsetDateTime,
    ) -> Result<Certificate, SignError> {
        self.signers.load().active.sign(request, now)
    }

    fn bundle(&self) -> Arc<Bundle> {
        self.signers.load().active.bundle().clone()
    }

    fn revocation_lists(
        &self,
        revoked: &[Revoked],
        number: u64,
        now: OffsetDateTime,
    ) -> Result<String, SignError> {
        let signers = self.signers.load();
        let all = std::iter::once(&signers.active).chain(&signers.earlier);
        all.map(|signer| signer.revocation_list(revoked, number, now))
            .collect()
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
