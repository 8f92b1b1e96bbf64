//! The book of everything issued, kept in sled: what was acknowledged is durable.
//!
//! One task owns the writing. It takes what is waiting as one batch, flushes once, then acknowledges each: a burst of
//! requests costs one sync of the disk. Entries are only ever appended: keys count up, and each value begins with a checksum
//! over the entry and the checksum before it, so that a changed, lost or inserted entry shows ([`Ledger::verify`]). Old
//! entries are forgotten from the front.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};

use proto_component::drain::Drain;

use crate::store::{Store, Tree};

const TREE: &str = "certificates";
/// Requests that may wait to be written.
const QUEUE: usize = 1024;
/// Requests written at once.
const BATCH: usize = 256;
const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);
/// Bytes of a checksum, which is what the first entry builds on, too.
const CHECKSUM: usize = 32;
const BEGINNING: Checksum = [0; CHECKSUM];

type Checksum = [u8; CHECKSUM];

/// One certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Issued {
    /// Serial number, lower-case hexadecimal.
    pub serial: String,
    /// The identity certified.
    pub identity: String,
    /// When it was signed.
    #[serde(with = "rfc3339")]
    pub issued_at: OffsetDateTime,
    /// Start of its life.
    #[serde(with = "rfc3339")]
    pub not_before: OffsetDateTime,
    /// End of its life.
    #[serde(with = "rfc3339")]
    pub not_after: OffsetDateTime,
    /// Which authenticator recognised the caller.
    pub authenticator: String,
    /// The caller's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// SHA-256 of the certified key's `SubjectPublicKeyInfo`, hexadecimal.
    pub key_fingerprint: String,
}

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The store failed.
    #[error("keep the ledger: {0}")]
    Store(#[from] sled::Error),
    /// An entry cannot be encoded or decoded.
    #[error("ledger entry: {0}")]
    Entry(#[from] serde_json::Error),
    /// More is being issued than the disk takes.
    #[error("the ledger is overloaded")]
    Overloaded,
    /// The process is ending.
    #[error("the ledger is closed")]
    Closed,
    /// An entry is not what was written.
    #[error(
        "entry {0} of the ledger is damaged: its checksum is not that of what it says and what stands before it"
    )]
    Damaged(u64),
}

/// The ledger; cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    tree: Tree,
    queue: mpsc::Sender<Write>,
}

/// The writing half, to be run as a task.
pub struct Writer {
    tree: Tree,
    queue: mpsc::Receiver<Write>,
    retention: Duration,
    next: u64,
    last: Checksum,
}

struct Write {
    entry: Vec<u8>,
    done: oneshot::Sender<Result<(), sled::Error>>,
}

impl Ledger {
    /// Opens the ledger. Entries are forgotten `retention` after their certificate has expired.
    pub fn open(store: &Store, retention: Duration) -> Result<(Self, Writer), LedgerError> {
        let tree = store.tree(TREE)?;
        let (next, last) = match tree.last()? {
            Some((key, value)) => (
                number(&key) + 1,
                parts(number(&key), &value).map_or(BEGINNING, |(checksum, _)| checksum),
            ),
            None => (0, BEGINNING),
        };
        let (queue, receiver) = mpsc::channel(QUEUE);
        let writer = Writer {
            tree: tree.clone(),
            queue: receiver,
            retention,
            next,
            last,
        };
        Ok((Self { tree, queue }, writer))
    }

    /// Checks that every entry is what was written, in its place; the number of entries.
    pub fn verify(&self) -> Result<usize, LedgerError> {
        let mut before = None;
        let mut count = 0;
        for entry in self.tree.iter() {
            let (key, value) = entry?;
            let index = number(&key);
            let (checksum, text) = parts(index, &value)?;
            // What stood before the first one may have been forgotten.
            if let Some((previous, last)) = before
                && (previous + 1 != index || checksum_of(&last, text) != checksum)
            {
                return Err(LedgerError::Damaged(index));
            }
            before = Some((index, checksum));
            count += 1;
        }
        Ok(count)
    }

    /// Records `issued`; durable when this returns.
    pub async fn record(&self, issued: &Issued) -> Result<(), LedgerError> {
        let (done, outcome) = oneshot::channel();
        let write = Write {
            entry: serde_json::to_vec(issued)?,
            done,
        };
        self.queue.try_send(write).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => LedgerError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => LedgerError::Closed,
        })?;
        outcome.await.map_err(|_| LedgerError::Closed)??;
        Ok(())
    }

    /// The newest `limit` entries of `identity` (of all, if none is named), newest first.
    pub fn newest(&self, limit: usize, identity: Option<&str>) -> Result<Vec<Issued>, LedgerError> {
        let is_wanted = |issued: &Issued| identity.is_none_or(|wanted| issued.identity == wanted);
        let entries = self.backwards();
        entries
            .filter(|entry| entry.as_ref().map_or(true, is_wanted))
            .take(limit)
            .collect()
    }

    /// The certificate with this serial number.
    pub fn find(&self, serial: &str) -> Result<Option<Issued>, LedgerError> {
        self.backwards()
            .find(|entry| {
                entry
                    .as_ref()
                    .map_or(true, |issued| issued.serial == serial)
            })
            .transpose()
    }

    /// All certificates that are still good at `now`, of those identities that are `wanted`.
    pub fn alive(
        &self,
        wanted: impl Fn(&str) -> bool,
        now: OffsetDateTime,
    ) -> Result<Vec<Issued>, LedgerError> {
        let is_wanted = |issued: &Issued| issued.not_after > now && wanted(&issued.identity);
        let entries = self.backwards();
        entries
            .filter(|entry| entry.as_ref().map_or(true, is_wanted))
            .collect()
    }

    /// Entries from the newest on; one that cannot be read is passed over, [`Ledger::verify`] names it.
    fn backwards(&self) -> impl Iterator<Item = Result<Issued, LedgerError>> {
        let entries = self.tree.iter().rev();
        entries.filter_map(|entry| match entry {
            Ok((key, value)) => {
                let (_, text) = parts(number(&key), &value).ok()?;
                serde_json::from_slice(text).ok().map(Ok)
            }
            Err(error) => Some(Err(error.into())),
        })
    }

    /// How many certificates are in the ledger.
    pub fn len(&self) -> usize {
        self.tree.len()
    }

    /// Whether nothing was ever issued.
    pub fn is_empty(&self) -> bool {
        self.tree.is_empty()
    }
}

impl Writer {
    /// Writes until every [`Ledger`] is gone; forgets old entries once an hour.
    pub async fn run(mut self, drain: Drain) {
        let mut prune = tokio::time::interval(PRUNE_INTERVAL);
        let mut waiting = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                received = self.queue.recv_many(&mut waiting, BATCH) => {
                    if received == 0 {
                        return;
                    }
                    self.write(&mut waiting).await;
                }
                _ = prune.tick(), if !drain.is_draining() => {
                    if let Err(error) = self.prune(OffsetDateTime::now_utc()) {
                        tracing::warn!(target: "ca", %error, "cannot prune the ledger");
                    }
                }
            }
        }
    }

    async fn write(&mut self, waiting: &mut Vec<Write>) {
        let mut batch = sled::Batch::default();
        let (mut next, mut last) = (self.next, self.last);
        for write in waiting.iter_mut() {
            last = checksum_of(&last, &write.entry);
            let mut value = last.to_vec();
            value.append(&mut write.entry);
            batch.insert(next.to_be_bytes().to_vec(), value);
            next += 1;
        }
        let outcome = match self.tree.apply_batch(batch) {
            Ok(()) => {
                // In the tree, even if not yet on disk: what follows builds on it.
                (self.next, self.last) = (next, last);
                self.persist().await
            }
            Err(error) => Err(error),
        };
        for write in waiting.drain(..) {
            // A caller that has gone away does not want to know.
            let _ = write.done.send(outcome.clone());
        }
    }

    async fn persist(&self) -> Result<(), sled::Error> {
        let tree = self.tree.clone();
        match tokio::task::spawn_blocking(move || tree.persist()).await {
            Ok(outcome) => outcome,
            Err(error) => Err(std::io::Error::other(error).into()),
        }
    }

    /// Forgets certificates that have been expired for the retention time, up to the first that has not: what is left has no
    /// gaps.
    fn prune(&self, now: OffsetDateTime) -> Result<usize, LedgerError> {
        let horizon = now - self.retention;
        let mut forgotten = 0;
        for entry in self.tree.iter() {
            let (key, value) = entry?;
            let (_, text) = parts(number(&key), &value)?;
            let issued: Issued = serde_json::from_slice(text)?;
            if issued.not_after >= horizon {
                break;
            }
            self.tree.remove(key)?;
            forgotten += 1;
        }
        Ok(forgotten)
    }
}

/// An entry's number.
fn number(key: &[u8]) -> u64 {
    key.try_into().map_or(0, u64::from_be_bytes)
}

/// A value's checksum and entry.
fn parts(index: u64, value: &[u8]) -> Result<(Checksum, &[u8]), LedgerError> {
    value
        .split_first_chunk()
        .map(|(checksum, text)| (*checksum, text))
        .ok_or(LedgerError::Damaged(index))
}

fn checksum_of(before: &Checksum, entry: &[u8]) -> Checksum {
    Sha256::new()
        .chain_update(before)
        .chain_update(entry)
        .finalize()
        .into()
}

/// Moments as text that people can read.
pub(crate) mod rfc3339 {
    use serde::{Deserialize as _, Deserializer, Serializer, de, ser};
    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;

    pub(crate) fn serialize<S: Serializer>(
        moment: &OffsetDateTime,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let text = moment.format(&Rfc3339).map_err(ser::Error::custom)?;
        serializer.serialize_str(&text)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<OffsetDateTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        OffsetDateTime::parse(&text, &Rfc3339).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
