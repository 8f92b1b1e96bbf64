//! The keys of a token issuer: read from a file or an address, kept fresh, looked up by key id.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use proto_component::backoff::Backoff;
use proto_component::drain::Drain;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::jwks_fetch::{self, FetchError};

/// How often keys are looked at again without being asked.
const FILE_REFRESH: Duration = Duration::from_secs(5);
const URL_REFRESH: Duration = Duration::from_secs(300);
/// Tokens with unknown key ids may ask for a refresh; not more often than this.
const MIN_REFRESH: Duration = Duration::from_secs(5);
/// Keys in one set.
const MAX_KEYS: usize = 64;

/// Where the keys come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JwksSource {
    /// A file.
    File(PathBuf),
    /// An `http` or `https` address, and the CA file for the latter.
    Url {
        /// The address.
        url: http::Uri,
        /// Who may vouch for an `https` server; the system's bundle if unset.
        ca_file: Option<PathBuf>,
    },
}

/// The keys at one moment.
#[derive(Default)]
pub struct KeySet(Vec<Key>);

struct Key {
    id: Option<String>,
    algorithm: Option<Algorithm>,
    decoding: DecodingKey,
}

/// Why a set of keys was refused.
#[derive(Debug, thiserror::Error)]
pub enum InvalidJwks {
    /// Not a JSON Web Key Set.
    #[error("not a JSON Web Key Set: {0}")]
    Json(#[from] serde_json::Error),
    /// Nothing in it can verify a token.
    #[error("no usable signing key (RSA, EC P-256 or P-384, Ed25519) in the set")]
    Empty,
}

/// Why no key is at hand.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoKey {
    /// Nothing has been read yet.
    #[error("the issuer's keys have not been loaded yet")]
    NotLoaded,
    /// No key has the id.
    #[error("no key {0:?} among the issuer's keys")]
    Unknown(String),
}

/// The keys of one issuer, kept fresh by [`KeyRing::run`].
pub struct KeyRing {
    source: JwksSource,
    keys: ArcSwapOption<KeySet>,
    wanted: Notify,
}

impl KeySet {
    /// Reads a JSON Web Key Set; keys that cannot verify signatures are left out.
    pub fn parse(text: &[u8]) -> Result<Self, InvalidJwks> {
        let raw: serde_json::Value = serde_json::from_slice(text)?;
        // Unknown kinds of keys must not spoil the others.
        let entries = raw.get("keys").and_then(serde_json::Value::as_array);
        let keys: Vec<Key> = entries
            .into_iter()
            .flatten()
            .take(MAX_KEYS)
            .filter_map(|entry| serde_json::from_value::<Jwk>(entry.clone()).ok())
            .filter_map(|jwk| Key::from_jwk(&jwk))
            .collect();
        if keys.is_empty() {
            // Says what is wrong if it is no key set at all.
            serde_json::from_value::<JwkSet>(raw)?;
            return Err(InvalidJwks::Empty);
        }
        Ok(Self(keys))
    }

    fn candidates(&self, id: Option<&str>, algorithm: Algorithm) -> Vec<DecodingKey> {
        let fits = |key: &&Key| {
            let id_fits = id.is_none() || key.id.is_none() || key.id.as_deref() == id;
            id_fits
                && key.algorithm.is_none_or(|own| own == algorithm)
                && key.decoding.family() == algorithm.family()
        };
        let fitting = self.0.iter().filter(fits);
        fitting.map(|key| key.decoding.clone()).collect()
    }
}

impl Key {
    fn from_jwk(jwk: &Jwk) -> Option<Self> {
        let common = &jwk.common;
        if !matches!(common.public_key_use, None | Some(PublicKeyUse::Signature)) {
            return None;
        }
        let decoding = DecodingKey::from_jwk(jwk).ok()?;
        let algorithm = common
            .key_algorithm
            .and_then(|name| name.to_string().parse().ok());
        // A symmetric key in a public set would let anybody sign.
        if decoding.family() == jsonwebtoken::AlgorithmFamily::Hmac {
            return None;
        }
        Some(Self {
            id: common.key_id.clone(),
            algorithm,
            decoding,
        })
    }
}

impl KeyRing {
    /// A ring that is empty until [`KeyRing::run`] has read `source`.
    pub fn new(source: JwksSource) -> Self {
        Self {
            source,
            keys: ArcSwapOption::empty(),
            wanted: Notify::new(),
        }
    }

    /// A ring of fixed keys.
    pub fn fixed(keys: KeySet) -> Self {
        let ring = Self::new(JwksSource::File(PathBuf::new()));
        ring.keys.store(Some(Arc::new(keys)));
        ring
    }

    /// Whether keys were read at least once.
    pub fn is_loaded(&self) -> bool {
        self.keys.load().is_some()
    }

    /// The keys that may have signed a token with this header. An unknown id asks for a refresh.
    pub(super) fn candidates(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Vec<DecodingKey>, NoKey> {
        let keys = self.keys.load();
        let Some(keys) = keys.as_ref() else {
            return Err(NoKey::NotLoaded);
        };
        let found = keys.candidates(id, algorithm);
        if found.is_empty() {
            self.wanted.notify_one();
            return Err(NoKey::Unknown(id.unwrap_or_default().to_owned()));
        }
        Ok(found)
    }

    /// Reads the source once.
    pub async fn refresh(&self) -> Result<(), FetchError> {
        let text = jwks_fetch::fetch(&self.source).await?;
        let keys = KeySet::parse(&text)?;
        self.keys.store(Some(Arc::new(keys)));
        Ok(())
    }

    /// Keeps the keys fresh until the drain. A source that fails keeps the last good keys; `loaded` is called once, after
    /// the first good read.
    pub async fn run(&self, drain: Drain, loaded: impl Fn()) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let interval = match self.source {
            JwksSource::File(_) => FILE_REFRESH,
            JwksSource::Url { .. } => URL_REFRESH,
        };
        let mut was_loaded = false;
        let mut complaint = String::new();
        loop {
            let started = Instant::now();
            let wait = match self.refresh().await {
                Ok(()) => {
                    if !std::mem::replace(&mut was_loaded, true) {
                        loaded();
                    }
                    if !complaint.is_empty() {
                        tracing::info!(target: "ca", "the token issuer's keys can be read again");
                        complaint.clear();
                    }
                    backoff.reset();
                    interval
                }
                Err(error) => {
                    // Once for each reason, not for each attempt.
                    let text = error.to_string();
                    if text != complaint {
                        tracing::warn!(target: "ca", error = text, "cannot read the token issuer's keys, will retry");
                        complaint = text;
                    }
                    backoff.next_delay()
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.wanted.notified() => tokio::time::sleep_until(started + MIN_REFRESH).await,
                () = drain.signaled() => return,
            }
        }
    }
}
