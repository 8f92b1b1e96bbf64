//! The book of everything issued, kept in sled: what was acknowledged is durable.
//!
//! One task owns the writing. It takes what is waiting as one batch, flushes once, then acknowledges each: a burst of
//! requests costs one sync of the disk. Keys are (time of issue, serial), so that listing and pruning go in order.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};

use proto_component::drain::Drain;

const TREE: &str = "issued";
/// Requests that may wait to be written.
const QUEUE: usize = 1024;
/// Requests written at once.
const BATCH: usize = 256;
const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);
const SERIAL_END: u8 = 0xff;

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
}

/// The ledger; cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    tree: sled::Tree,
    queue: mpsc::Sender<Write>,
}

/// The writing half, to be run as a task.
pub struct Writer {
    tree: sled::Tree,
    queue: mpsc::Receiver<Write>,
    retention: Duration,
}

struct Write {
    key: Vec<u8>,
    value: Vec<u8>,
    done: oneshot::Sender<Result<(), sled::Error>>,
}

impl Ledger {
    /// Opens the ledger. Entries are forgotten `retention` after their certificate has expired.
    pub fn open(database: &sled::Db, retention: Duration) -> Result<(Self, Writer), LedgerError> {
        let tree = database.open_tree(TREE)?;
        let (queue, receiver) = mpsc::channel(QUEUE);
        let writer = Writer {
            tree: tree.clone(),
            queue: receiver,
            retention,
        };
        Ok((Self { tree, queue }, writer))
    }

    /// Records `issued`; durable when this returns.
    pub async fn record(&self, issued: &Issued) -> Result<(), LedgerError> {
        let (done, outcome) = oneshot::channel();
        let write = Write {
            key: key(issued.issued_at, &issued.serial),
            value: serde_json::to_vec(issued)?,
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
        let mut found = Vec::new();
        for entry in self.tree.iter().rev() {
            if found.len() == limit {
                break;
            }
            let issued: Issued = serde_json::from_slice(&entry?.1)?;
            if identity.is_none_or(|wanted| issued.identity == wanted) {
                found.push(issued);
            }
        }
        Ok(found)
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

    async fn write(&self, waiting: &mut Vec<Write>) {
        let mut batch = sled::Batch::default();
        for write in waiting.iter_mut() {
            batch.insert(
                std::mem::take(&mut write.key),
                std::mem::take(&mut write.value),
            );
        }
        let outcome = match self.tree.apply_batch(batch) {
            Ok(()) => self.tree.flush_async().await.map(drop),
            Err(error) => Err(error),
        };
        for write in waiting.drain(..) {
            // A caller that has gone away does not want to know.
            let _ = write.done.send(outcome.clone());
        }
    }

    /// Forgets certificates that have been expired for the retention time. The scan ends at the first entry too young to
    /// be forgotten: nothing expires before it is issued.
    fn prune(&self, now: OffsetDateTime) -> Result<usize, LedgerError> {
        let horizon = now - self.retention;
        let mut forgotten = 0;
        for entry in self.tree.range(..end_key(horizon)) {
            let (key, value) = entry?;
            // An unreadable entry is older than this program's format; it goes with its age.
            let expired = serde_json::from_slice::<Issued>(&value)
                .map_or(true, |issued| issued.not_after < horizon);
            if expired {
                self.tree.remove(key)?;
                forgotten += 1;
            }
        }
        Ok(forgotten)
    }
}

/// Milliseconds since the epoch (big-endian), then the serial.
fn key(issued_at: OffsetDateTime, serial: &str) -> Vec<u8> {
    let mut key = millis(issued_at).to_vec();
    key.extend_from_slice(serial.as_bytes());
    key
}

fn end_key(moment: OffsetDateTime) -> Vec<u8> {
    let mut key = millis(moment).to_vec();
    key.push(SERIAL_END);
    key
}

fn millis(moment: OffsetDateTime) -> [u8; 8] {
    let millis = moment.unix_timestamp_nanos() / 1_000_000;
    u64::try_from(millis).unwrap_or_default().to_be_bytes()
}

/// Moments as text that people can read.
mod rfc3339 {
    use serde::{Deserialize as _, Deserializer, Serializer, de, ser};
    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;

    pub(super) fn serialize<S: Serializer>(
        moment: &OffsetDateTime,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let text = moment.format(&Rfc3339).map_err(ser::Error::custom)?;
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<OffsetDateTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        OffsetDateTime::parse(&text, &Rfc3339).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issued(serial: &str, at: OffsetDateTime, life: Duration) -> Issued {
        Issued {
            serial: serial.to_owned(),
            identity: format!("spiffe://td/ns/a/sa/{serial}"),
            issued_at: at,
            not_before: at,
            not_after: at + life,
            authenticator: "test".to_owned(),
            peer: None,
            key_fingerprint: "00".to_owned(),
        }
    }

    #[tokio::test]
    async fn recorded_entries_survive_reopening_newest_first() {
        let folder = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let day = Duration::from_secs(86400);
        {
            let database = crate::testing::open_store(folder.path());
            let (ledger, writer) = Ledger::open(&database, day).unwrap();
            let task = proto_component::task::spawn("ledger", writer.run(Drain::never()));
            for (serial, at) in [("01", now), ("02", now + day), ("03", now + day * 2)] {
                ledger.record(&issued(serial, at, day)).await.unwrap();
            }
            drop(ledger);
            task.await.unwrap();
        }
        let database = crate::testing::open_store(folder.path());
        let (ledger, writer) = Ledger::open(&database, day).unwrap();
        let serials = |list: Vec<Issued>| -> Vec<String> {
            list.into_iter().map(|entry| entry.serial).collect()
        };
        assert_eq!(
            serials(ledger.newest(10, None).unwrap()),
            ["03", "02", "01"]
        );
        assert_eq!(serials(ledger.newest(2, None).unwrap()), ["03", "02"]);
        let one = ledger.newest(10, Some("spiffe://td/ns/a/sa/01")).unwrap();
        assert_eq!(serials(one), ["01"]);
        assert_eq!(writer.prune(now + day * 3).unwrap(), 1);
        assert_eq!(ledger.len(), 2);
    }
}
