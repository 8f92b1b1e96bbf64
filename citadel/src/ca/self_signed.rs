//! A root of our own: an ECDSA P-256 key made at the first start and kept in the store, so that the same root comes back
//! after any crash. Nothing is used before it is durable.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use time::OffsetDateTime;

use super::signer::{InvalidSigner, Signer};
use super::{CertificateAuthority, SignError, SignRequest};
use crate::pki::{
    Bundle, Certificate, InvalidBundle, InvalidKey, MintError, PrivateKey, Validity,
    certificates_from_pem, mint_root,
};

const TREE: &str = "ca";
const KEY: &str = "ca-key.pem";
const CERTIFICATE: &str = "ca-cert.pem";

/// How a new root is made.
#[derive(Debug, Clone)]
pub struct SelfSignedSettings {
    /// Organization in the root's subject: `--org`, else the trust domain.
    pub organization: String,
    /// How long a root lives.
    pub ttl: Duration,
}

/// A root's two halves as PEM, for another safe than the store.
#[derive(Clone)]
pub struct RootPair {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

/// The self-signed authority.
pub struct SelfSigned {
    key: PrivateKey,
    signer: ArcSwap<Signer>,
    store: sled::Tree,
    settings: SelfSignedSettings,
    provider: Arc<CryptoProvider>,
}

/// Why there is no self-signed root.
#[derive(Debug, thiserror::Error)]
pub enum SelfSignedError {
    /// The store failed.
    #[error("keep the root in the store: {0}")]
    Store(#[from] sled::Error),
    /// The store has a key without certificate, or the other way round, or not text.
    #[error("the stored root is damaged: {0}")]
    Damaged(&'static str),
    /// The stored key is unusable.
    #[error("the root's key: {0}")]
    Key(#[from] InvalidKey),
    /// The stored certificate is unusable.
    #[error("the root's certificate: {0}")]
    Certificate(#[from] InvalidBundle),
    /// Minting failed.
    #[error("mint the root: {0}")]
    Mint(#[from] MintError),
    /// The pair is unusable.
    #[error(transparent)]
    Signer(#[from] InvalidSigner),
}

impl SelfSigned {
    /// Takes the root from the store, or makes one and stores it.
    pub fn open(
        database: &sled::Db,
        settings: SelfSignedSettings,
        provider: Arc<CryptoProvider>,
        now: OffsetDateTime,
    ) -> Result<Self, SelfSignedError> {
        let store = database.open_tree(TREE)?;
        let (key, pem) = match (read(&store, KEY)?, read(&store, CERTIFICATE)?) {
            (Some(key), Some(pem)) => (PrivateKey::from_pem(&key)?, pem),
            (None, None) => {
                let key = PrivateKey::generate()?;
                let validity = Validity::starting(now, settings.ttl);
                let root = mint_root(&key, &settings.organization, validity)?;
                persist(&store, &key, &root.pem)?;
                tracing::info!(target: "ca", serial = root.serial, "made a new self-signed root");
                (key, root.pem)
            }
            _ => return Err(SelfSignedError::Damaged("key or certificate is missing")),
        };
        let signer = signer_of(&key, &pem, &provider, now)?;
        Ok(Self {
            key,
            signer: ArcSwap::from_pointee(signer),
            store,
            settings,
            provider,
        })
    }

    /// Puts the root of another safe into the store, in the place of what is there, before it is opened.
    ///
    /// # Errors
    /// When the pair is unusable or the store fails; the store then keeps what it has.
    pub fn adopt(
        database: &sled::Db,
        pair: &RootPair,
        provider: &Arc<CryptoProvider>,
        now: OffsetDateTime,
    ) -> Result<(), SelfSignedError> {
        let key = PrivateKey::from_pem(&pair.key)?;
        signer_of(&key, &pair.certificate, provider, now)?;
        persist(&database.open_tree(TREE)?, &key, &pair.certificate)
    }

    /// The root for another safe.
    ///
    /// # Errors
    /// When the store fails or has no certificate.
    pub fn pair(&self) -> Result<RootPair, SelfSignedError> {
        let certificate = read(&self.store, CERTIFICATE)?
            .ok_or(SelfSignedError::Damaged("the certificate is missing"))?;
        Ok(RootPair {
            certificate,
            key: self.key.to_pem(),
        })
    }

    /// The root's life.
    pub fn validity(&self) -> Validity {
        self.signer.load().validity()
    }

    /// Makes a new certificate for the same key, so that everything signed before stays good.
    pub fn renew(&self, now: OffsetDateTime) -> Result<(), SelfSignedError> {
        let validity = Validity::starting(now, self.settings.ttl);
        let root = mint_root(&self.key, &self.settings.organization, validity)?;
        let signer = signer_of(&self.key, &root.pem, &self.provider, now)?;
        persist(&self.store, &self.key, &root.pem)?;
        self.signer.store(Arc::new(signer));
        Ok(())
    }
}

impl CertificateAuthority for SelfSigned {
    fn sign(
        &self,
        request: &SignRequest<'_>,
        now: OffsetDateTime,
    ) -> Result<Certificate, SignError> {
        self.signer.load().sign(request, now)
    }

    fn bundle(&self) -> Arc<Bundle> {
        self.signer.load().bundle().clone()
    }
}

fn signer_of(
    key: &PrivateKey,
    pem: &str,
    provider: &Arc<CryptoProvider>,
    now: OffsetDateTime,
) -> Result<Signer, SelfSignedError> {
    let roots = certificates_from_pem(pem)?;
    let root = roots[0].clone();
    let bundle = Bundle::assemble(&root, &[], roots)?;
    Ok(Signer::new(&root, key, bundle, provider, now)?)
}

fn read(store: &sled::Tree, name: &str) -> Result<Option<String>, SelfSignedError> {
    let Some(value) = store.get(name)? else {
        return Ok(None);
    };
    String::from_utf8(value.to_vec())
        .map(Some)
        .map_err(|_| SelfSignedError::Damaged("not text"))
}

/// Both halves in one write, on disk when this returns.
fn persist(store: &sled::Tree, key: &PrivateKey, pem: &str) -> Result<(), SelfSignedError> {
    let mut batch = sled::Batch::default();
    batch.insert(KEY, key.to_pem().into_bytes());
    batch.insert(CERTIFICATE, pem.as_bytes());
    store.apply_batch(batch)?;
    store.flush()?;
    Ok(())
}
