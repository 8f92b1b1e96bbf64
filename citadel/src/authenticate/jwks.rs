//! The keys of a token issuer: read from a file or an address, and kept fresh.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use proto_component::backoff::Backoff;
use proto_component::drain::Drain;
use proto_mesh::jwt::{Failure, KeySet, Token};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::jwks_fetch::{self, FetchError};

/// How often keys are looked at again without being asked.
const FILE_REFRESH: Duration = Duration::from_secs(5);
const URL_REFRESH: Duration = Duration::from_secs(300);
/// Tokens with unknown key ids may ask for a refresh; not more often than this.
const MIN_REFRESH: Duration = Duration::from_secs(5);

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

/// Why a token's signature does not count.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unverified {
    /// Nothing has been read yet.
    #[error("the issuer's keys have not been loaded yet")]
    NotLoaded,
    /// Symmetric ones, `none` and unknown ones.
    #[error("algorithm {0:?} is not accepted")]
    Algorithm(String),
    /// No key has the id.
    #[error("no key {0:?} for that algorithm among the issuer's keys")]
    UnknownKey(String),
    /// It is somebody else's.
    #[error("its signature does not verify")]
    Signature,
}

/// The keys of one issuer, kept fresh by [`KeyRing::run`].
pub struct KeyRing {
    source: JwksSource,
    keys: ArcSwapOption<KeySet>,
    wanted: Notify,
}

/// Reads a set of keys of which at least one can be used.
fn parse(text: &[u8]) -> Result<KeySet, InvalidJwks> {
    let keys = KeySet::parse(text)?;
    if keys.is_empty() {
        return Err(InvalidJwks::Empty);
    }
    Ok(keys)
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

    /// Verifies a token's signature. An unknown key's id asks for a refresh.
    pub(super) fn verify(&self, token: &Token<'_>) -> Result<(), Unverified> {
        let keys = self.keys.load();
        let keys = keys.as_ref().ok_or(Unverified::NotLoaded)?;
        keys.verify(token).map_err(|failure| match failure {
            Failure::BadAlgorithm => Unverified::Algorithm(token.algorithm.clone()),
            Failure::NoMatchingKey => {
                self.wanted.notify_one();
                Unverified::UnknownKey(token.key_id.clone().unwrap_or_default())
            }
            _ => Unverified::Signature,
        })
    }

    /// Reads the source once.
    pub async fn refresh(&self) -> Result<(), FetchError> {
        let text = jwks_fetch::fetch(&self.source).await?;
        let keys = parse(&text)?;
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
