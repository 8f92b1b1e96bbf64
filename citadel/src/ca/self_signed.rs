//! A root of our own: an ECDSA key made at the first start and kept in the store, so that the same root comes back after any
//! crash. Nothing is used before it is durable; a change is first what [`SelfSigned::rotated`] and [`SelfSigned::advanced`] make
//! of the files, for another safe to keep ([`crate::root`]), and in force once it was taken.
//!
//! A root is replaced by one with another key in two steps, with two roots in between, so that nobody ever meets a certificate
//! whose root it does not know: first the next root is only made known (*introduction*), then it signs while the previous one
//! is still trusted (*retirement*), until the last certificate of the previous root has been replaced.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::crypto::CryptoProvider;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::signer::{InvalidSigner, Signer};
use super::{CertificateAuthority, SignError, SignRequest};
use crate::pki::{
    Bundle, Certificate, Curve, InvalidBundle, InvalidKey, MintError, PrivateKey, Validity,
    certificates_from_pem, mint_root,
};
use crate::revocation::Revoked;
use crate::store::{Store, Tree};

const TREE: &str = "ca";
const KEY: &str = "key.pem";
const CERTIFICATE: &str = "cert.pem";
/// The root that signs, under Istio's names (`ca-key.pem`), the one to come, and the one that was.
const ACTIVE: &str = "ca-";
const NEXT: &str = "next-";
const PREVIOUS: &str = "previous-";
/// When the present step of a rotation began, Unix seconds.
const SINCE: &str = "rotation-step-since";

/// How a new root is made.
#[derive(Debug, Clone)]
pub struct SelfSignedSettings {
    /// Organization in the root's subject: `--org`, else the trust domain.
    pub organization: String,
    /// How long a root lives.
    pub ttl: Duration,
    /// The key's curve.
    pub curve: Curve,
}

/// How long the two steps of a rotation take.
#[derive(Debug, Clone, Copy)]
pub struct Overlap {
    /// Until everybody knows the next root.
    pub introduction: Duration,
    /// Until the last certificate of the previous root is gone.
    pub retirement: Duration,
}

/// Everything that the store has of a root, for another safe: texts by name, wiped when nobody needs them any more.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct RootFiles(pub BTreeMap<String, Zeroizing<String>>);

/// The self-signed authority.
pub struct SelfSigned {
    roots: ArcSwap<Roots>,
    /// Changes are made one at a time.
    changing: Mutex<()>,
    store: Tree,
    settings: SelfSignedSettings,
    provider: Arc<CryptoProvider>,
}

/// The roots of this moment.
struct Roots {
    active: Root,
    step: Step,
}

/// Where a rotation is.
enum Step {
    /// There is none.
    Idle,
    /// The next root is made known.
    Introduction { next: Root, since: OffsetDateTime },
    /// The previous one is still trusted.
    Retirement {
        previous: Root,
        since: OffsetDateTime,
    },
}

#[derive(Clone)]
struct Root {
    key: PrivateKey,
    pem: String,
    signer: Arc<Signer>,
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
    /// A second rotation before the first is over.
    #[error("the root is being rotated already")]
    Rotating,
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
        store: &Store,
        settings: SelfSignedSettings,
        provider: Arc<CryptoProvider>,
        now: OffsetDateTime,
    ) -> Result<Self, SelfSignedError> {
        let store = store.tree(TREE)?;
        let mut files = read(&store)?;
        if files.0.is_empty() {
            let (key, pem) = make(&settings, now)?;
            files.set(ACTIVE, &key, &pem);
            persist(&store, &files)?;
        }
        let roots = Roots::read(&files, &provider, now)?;
        Ok(Self {
            roots: ArcSwap::from_pointee(roots),
            changing: Mutex::new(()),
            store,
            settings,
            provider,
        })
    }

    /// Puts the root of another safe into the store, in the place of what is there, before it is opened.
    ///
    /// # Errors
    /// When it is unusable or the store fails; the store then keeps what it has.
    pub fn adopt(
        store: &Store,
        files: &RootFiles,
        provider: &Arc<CryptoProvider>,
        now: OffsetDateTime,
    ) -> Result<(), SelfSignedError> {
        Roots::read(files, provider, now)?;
        persist(&store.tree(TREE)?, files)
    }

    /// The root for another safe.
    ///
    /// # Errors
    /// When the store fails.
    pub fn files(&self) -> Result<RootFiles, SelfSignedError> {
        read(&self.store)
    }

    /// The life of the root that signs.
    pub fn validity(&self) -> Validity {
        self.roots.load().active.signer.validity()
    }

    /// Whether a rotation is on its way.
    pub fn is_rotating(&self) -> bool {
        !matches!(self.roots.load().step, Step::Idle)
    }

    /// What begins a rotation: with the next root, to be made known.
    ///
    /// # Errors
    /// When there is a rotation already, or the store fails.
    pub fn rotated(&self, now: OffsetDateTime) -> Result<RootFiles, SelfSignedError> {
        if self.is_rotating() {
            return Err(SelfSignedError::Rotating);
        }
        let (key, pem) = make(&self.settings, now)?;
        let mut files = read(&self.store)?;
        files.set(NEXT, &key, &pem);
        files.step_begins(now);
        Ok(files)
    }

    /// What goes on to the next step of a rotation, if it is time.
    ///
    /// # Errors
    /// When the store fails.
    pub fn advanced(
        &self,
        overlap: &Overlap,
        now: OffsetDateTime,
    ) -> Result<Option<RootFiles>, SelfSignedError> {
        let roots = self.roots.load_full();
        let mut files = read(&self.store)?;
        match &roots.step {
            Step::Introduction { next, since } if now - *since >= overlap.introduction => {
                files.remove(NEXT);
                files.set(PREVIOUS, &roots.active.key, &roots.active.pem);
                files.set(ACTIVE, &next.key, &next.pem);
            }
            Step::Retirement { since, .. } if now - *since >= overlap.retirement => {
                files.remove(PREVIOUS);
            }
            _ => return Ok(None),
        }
        files.step_begins(now);
        Ok(Some(files))
    }

    /// Puts other files in force, once they are durable; says whether they are others.
    ///
    /// # Errors
    /// When they are unusable or the store fails; what was in force then stays.
    pub fn take(&self, files: &RootFiles, now: OffsetDateTime) -> Result<bool, SelfSignedError> {
        let _one_at_a_time = self.changing.lock();
        if read(&self.store)? == *files {
            return Ok(false);
        }
        let roots = Roots::read(files, &self.provider, now)?;
        persist(&self.store, files)?;
        self.roots.store(Arc::new(roots));
        Ok(true)
    }
}

impl CertificateAuthority for SelfSigned {
    fn sign(
        &self,
        request: &SignRequest<'_>,
        now: OffsetDateTime,
    ) -> Result<Certificate, SignError> {
        self.roots.load().active.signer.sign(request, now)
    }

    fn bundle(&self) -> Arc<Bundle> {
        self.roots.load().active.signer.bundle().clone()
    }

    fn revocation_lists(
        &self,
        revoked: &[Revoked],
        number: u64,
        now: OffsetDateTime,
    ) -> Result<String, SignError> {
        let roots = self.roots.load();
        let other = match &roots.step {
            Step::Idle => None,
            Step::Introduction { next, .. } => Some(next),
            Step::Retirement { previous, .. } => Some(previous),
        };
        let lists = std::iter::once(&roots.active).chain(other);
        lists
            .map(|root| root.signer.revocation_list(revoked, number, now))
            .collect()
    }
}

impl Roots {
    /// Reads and checks all roots; each is trusted together with the others.
    fn read(
        files: &RootFiles,
        provider: &Arc<CryptoProvider>,
        now: OffsetDateTime,
    ) -> Result<Self, SelfSignedError> {
        let active = files
            .get(ACTIVE)?
            .ok_or(SelfSignedError::Damaged("key and certificate are missing"))?;
        let (next, previous) = (files.get(NEXT)?, files.get(PREVIOUS)?);
        // The one that signs comes first: by that others see that their own certificate is of the one before.
        let mut trusted = certificates_from_pem(active.1)?;
        for (_, pem) in next.iter().chain(&previous) {
            trusted.extend(certificates_from_pem(pem)?);
        }
        let root = |(key, pem): (PrivateKey, &str)| Root::new(key, pem, &trusted, provider, now);
        let since = files.since();
        let step = match (next, previous) {
            (None, None) => Step::Idle,
            (Some(next), None) => Step::Introduction {
                next: root(next)?,
                since,
            },
            (None, Some(previous)) => Step::Retirement {
                previous: root(previous)?,
                since,
            },
            (Some(_), Some(_)) => {
                return Err(SelfSignedError::Damaged(
                    "a next and a previous root at once",
                ));
            }
        };
        Ok(Self {
            active: root(active)?,
            step,
        })
    }
}

impl Root {
    fn new(
        key: PrivateKey,
        pem: &str,
        trusted: &[CertificateDer<'static>],
        provider: &Arc<CryptoProvider>,
        now: OffsetDateTime,
    ) -> Result<Self, SelfSignedError> {
        let certificate = certificates_from_pem(pem)?.remove(0);
        let bundle = Bundle::assemble(&certificate, &[], trusted.to_vec())?;
        let signer = Signer::new(&certificate, &key, bundle, provider, now)?;
        Ok(Self {
            key,
            pem: pem.to_owned(),
            signer: Arc::new(signer),
        })
    }
}

impl RootFiles {
    /// One root, if it is there.
    fn get(&self, prefix: &str) -> Result<Option<(PrivateKey, &str)>, SelfSignedError> {
        let text = |name: &str| self.0.get(&format!("{prefix}{name}"));
        match (text(KEY), text(CERTIFICATE)) {
            (Some(key), Some(pem)) => Ok(Some((PrivateKey::from_pem(key)?, pem.as_str()))),
            (None, None) => Ok(None),
            _ => Err(SelfSignedError::Damaged("key or certificate is missing")),
        }
    }

    fn set(&mut self, prefix: &str, key: &PrivateKey, pem: &str) {
        self.0.insert(format!("{prefix}{KEY}"), key.to_pem());
        self.0
            .insert(format!("{prefix}{CERTIFICATE}"), pem.to_owned().into());
    }

    fn remove(&mut self, prefix: &str) {
        self.0.retain(|name, _| !name.starts_with(prefix));
    }

    fn step_begins(&mut self, now: OffsetDateTime) {
        let since = now.unix_timestamp().to_string();
        self.0.insert(SINCE.to_owned(), since.into());
    }

    fn since(&self) -> OffsetDateTime {
        let seconds = self.0.get(SINCE).and_then(|text| text.parse().ok());
        OffsetDateTime::from_unix_timestamp(seconds.unwrap_or_default())
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

fn make(
    settings: &SelfSignedSettings,
    now: OffsetDateTime,
) -> Result<(PrivateKey, String), SelfSignedError> {
    let key = PrivateKey::generate_on(settings.curve)?;
    let validity = Validity::starting(now, settings.ttl);
    let root = mint_root(&key, &settings.organization, validity)?;
    tracing::info!(target: "ca", serial = root.serial, "made a new self-signed root");
    Ok((key, root.pem))
}

fn read(store: &Tree) -> Result<RootFiles, SelfSignedError> {
    let text = |bytes: &[u8]| {
        String::from_utf8(bytes.to_vec()).map_err(|_| SelfSignedError::Damaged("not text"))
    };
    let mut files = RootFiles::default();
    for entry in store.iter() {
        let (name, value) = entry?;
        files.0.insert(text(&name)?, text(&value)?.into());
    }
    Ok(files)
}

/// All in one write, on disk when this returns.
fn persist(store: &Tree, files: &RootFiles) -> Result<(), SelfSignedError> {
    let mut batch = sled::Batch::default();
    for name in store.iter().keys() {
        batch.remove(name?);
    }
    for (name, text) in &files.0 {
        batch.insert(name.as_bytes(), text.as_bytes());
    }
    store.apply_batch(batch)?;
    store.persist()?;
    Ok(())
}
