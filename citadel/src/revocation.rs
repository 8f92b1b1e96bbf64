//! What is no longer to be believed: revoked certificates, and identities that get no new ones; kept in sled beside the ledger.
//!
//! Revoking an identity revokes all its certificates that are still good and bars it from new ones until it is restored;
//! revoking a serial number takes one certificate only, and its owner may have another. [`crate::trust`] makes the revocation
//! list of it.
//!
//! What was done here and other replicas have not been told yet is kept as well: until they have been, it prevails over what
//! they say.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::ledger::{Issued, Ledger, LedgerError, rfc3339};
use crate::store::{Store, Tree};

const REVOKED: &str = "revoked";
const BARRED: &str = "barred";
const UNTOLD: &str = "untold";
/// In the tree of what is untold: the identity may have certificates again, or not.
const RESTORE: &[u8] = b"restore";
const BAR: &[u8] = b"bar";
/// A list must fit into one message of every proxy.
pub const MAX_REVOKED: usize = 10_000;

/// One revoked certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revoked {
    /// Serial number, lower-case hexadecimal.
    pub serial: String,
    /// Whose it was.
    pub identity: String,
    /// End of its life: after that the list need not name it.
    #[serde(with = "rfc3339")]
    pub not_after: OffsetDateTime,
    /// When it was revoked.
    #[serde(with = "rfc3339")]
    pub revoked_at: OffsetDateTime,
}

/// What is to be revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Target {
    /// One certificate, by its serial number.
    Serial(String),
    /// Everything that an identity has.
    Identity(String),
}

/// Why nothing was revoked.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// Not in the ledger.
    #[error("no certificate with serial number {0} was issued here")]
    UnknownSerial(String),
    /// No identity of ours.
    #[error("{0:?} is no identity (spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT)")]
    InvalidIdentity(String),
    /// More than a list can hold.
    #[error("{MAX_REVOKED} certificates are revoked already: rotate the root instead")]
    TooMany,
    /// The ledger cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The store failed.
    #[error("keep the revocation: {0}")]
    Store(#[from] sled::Error),
    /// An entry cannot be encoded or decoded.
    #[error("revocation entry: {0}")]
    Entry(#[from] serde_json::Error),
}

/// The revocations; cheap to clone.
#[derive(Clone)]
pub struct Revocations {
    revoked: Tree,
    barred: Tree,
    untold: Tree,
}

impl Revocations {
    /// Those in the store.
    pub fn open(store: &Store) -> Result<Self, sled::Error> {
        let has_told = store.has_tree(UNTOLD);
        let revocations = Self {
            revoked: store.tree(REVOKED)?,
            barred: store.tree(BARRED)?,
            untold: store.tree(UNTOLD)?,
        };
        if !has_told {
            // Of an older version's store nobody knows what others were told.
            for identity in revocations.barred()? {
                revocations.untold.insert(identity, BAR)?;
            }
            revocations.untold.persist()?;
        }
        Ok(revocations)
    }

    /// Revokes; durable when this returns. What was revoked by it is the answer.
    pub fn revoke(
        &self,
        target: &Target,
        ledger: &Ledger,
        now: OffsetDateTime,
    ) -> Result<Vec<Revoked>, RevokeError> {
        let certificates = match target {
            Target::Serial(serial) => {
                let serial = normalized(serial);
                let found = ledger.find(&serial)?;
                self.check_room(1)?;
                vec![found.ok_or(RevokeError::UnknownSerial(serial))?]
            }
            Target::Identity(identity) => {
                check_identity(identity)?;
                let alive = || ledger.alive(|owner| owner == identity, now);
                self.check_room(alive()?.len())?;
                // Should this end half-way, the rest is made up for as long as nobody else was told.
                self.untold.insert(identity, BAR)?;
                self.bar(identity, now)?;
                // Looked for again: from now on nothing more is issued.
                alive()?
            }
        };
        let revoked: Vec<Revoked> = certificates
            .into_iter()
            .map(|issued| Revoked::new(issued, now))
            .collect();
        self.add(&revoked)?;
        Ok(revoked)
    }

    /// Lets an identity have certificates again; those that were revoked stay so. Says whether it was barred.
    pub fn restore(&self, identity: &str) -> Result<bool, RevokeError> {
        check_identity(identity)?;
        self.untold.insert(identity, RESTORE)?;
        let was_barred = self.barred.remove(identity)?.is_some();
        self.barred.persist()?;
        Ok(was_barred)
    }

    /// Whether an identity gets no certificates.
    pub fn is_barred(&self, identity: &str) -> Result<bool, sled::Error> {
        self.barred.contains_key(identity)
    }

    /// Whether a certificate is revoked.
    pub fn is_revoked(&self, serial: &str) -> Result<bool, sled::Error> {
        self.revoked.contains_key(serial)
    }

    /// All that a list must name at `now`; forgets what has ended by itself.
    pub fn current(&self, now: OffsetDateTime) -> Result<Vec<Revoked>, RevokeError> {
        let mut current = Vec::new();
        for entry in self.revoked.iter() {
            let (key, value) = entry?;
            let revoked: Revoked = serde_json::from_slice(&value)?;
            if revoked.not_after > now {
                current.push(revoked);
            } else {
                self.revoked.remove(key)?;
            }
        }
        Ok(current)
    }

    /// What other replicas have not been told yet: by identity, whether it is barred.
    pub fn untold(&self) -> Result<BTreeMap<String, bool>, sled::Error> {
        let entries = self.untold.iter();
        let entries = entries.map(|entry| {
            let (identity, change) = entry?;
            let identity = String::from_utf8_lossy(&identity).into_owned();
            Ok((identity, change.as_ref() == BAR))
        });
        entries.collect()
    }

    /// They have been told that.
    pub fn told(&self, identities: impl IntoIterator<Item = String>) -> Result<(), sled::Error> {
        let mut batch = sled::Batch::default();
        for identity in identities {
            batch.remove(identity.as_str());
        }
        self.untold.apply_batch(batch)?;
        self.untold.persist()
    }

    /// Takes over what is known elsewhere: those of `barred` are barred and nobody else, but for what is untold; what is in
    /// `revoked` is added, and what those who are barred have from here. Says whether something has changed.
    ///
    /// Done again after a failure, it does what is left.
    pub fn adopt(
        &self,
        barred: &BTreeSet<String>,
        revoked: &[Revoked],
        ledger: &Ledger,
        now: OffsetDateTime,
    ) -> Result<bool, RevokeError> {
        let known = self.barred()?;
        let is_identity = |identity: &&String| check_identity(identity).is_ok();
        let mut barred: BTreeSet<String> = barred.iter().filter(is_identity).cloned().collect();
        for (identity, is_barred) in self.untold()? {
            if is_barred {
                barred.insert(identity);
            } else {
                barred.remove(&identity);
            }
        }
        for identity in known.difference(&barred) {
            self.barred.remove(identity)?;
        }
        for identity in barred.difference(&known) {
            self.bar(identity, now)?;
        }
        let own = ledger.alive(|owner| barred.contains(owner), now)?;
        let own = own.into_iter().map(|issued| Revoked::new(issued, now));
        let alive = revoked.iter().filter(|entry| entry.not_after > now);
        let mut new = BTreeMap::new();
        for entry in alive.cloned().chain(own) {
            if !self.is_revoked(&entry.serial)? {
                new.entry(entry.serial.clone()).or_insert(entry);
            }
        }
        let room = MAX_REVOKED.saturating_sub(self.revoked.len());
        if new.len() > room {
            let left_out = new.len() - room;
            tracing::error!(target: "ca", left_out, "more is revoked than a list can hold: rotate the root");
        }
        let new: Vec<Revoked> = new.into_values().take(room).collect();
        self.add(&new)?;
        Ok(known != barred || !new.is_empty())
    }

    fn check_room(&self, more: usize) -> Result<(), RevokeError> {
        if self.revoked.len() + more > MAX_REVOKED {
            return Err(RevokeError::TooMany);
        }
        Ok(())
    }

    fn bar(&self, identity: &str, now: OffsetDateTime) -> Result<(), sled::Error> {
        let since = now.unix_timestamp().to_be_bytes();
        self.barred.insert(identity, since.as_slice())?;
        Ok(())
    }

    /// Adds to the list; that, and what was written before, is durable when this returns.
    fn add(&self, revoked: &[Revoked]) -> Result<(), RevokeError> {
        let mut batch = sled::Batch::default();
        for entry in revoked {
            batch.insert(entry.serial.as_bytes(), serde_json::to_vec(entry)?);
        }
        self.revoked.apply_batch(batch)?;
        self.revoked.persist()?;
        Ok(())
    }

    /// The identities that get no certificates.
    pub fn barred(&self) -> Result<BTreeSet<String>, sled::Error> {
        let keys = self.barred.iter().keys();
        keys.map(|key| key.map(|key| String::from_utf8_lossy(&key).into_owned()))
            .collect()
    }
}

impl Revoked {
    fn new(issued: Issued, now: OffsetDateTime) -> Self {
        Self {
            serial: issued.serial,
            identity: issued.identity,
            not_after: issued.not_after,
            revoked_at: now,
        }
    }
}

fn check_identity(identity: &str) -> Result<(), RevokeError> {
    crate::authorize::from_uri(identity)
        .map(drop)
        .map_err(|_| RevokeError::InvalidIdentity(identity.to_owned()))
}

/// A serial number as other programs print it: with colons, capitals, or zeros before it.
pub fn normalized(serial: &str) -> String {
    let digits = serial.trim().trim_start_matches("0x").replace(':', "");
    let digits = digits.to_ascii_lowercase();
    digits.trim_start_matches('0').to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proto_component::drain::Drain;

    use super::*;

    const ALICE: &str = "spiffe://td/ns/a/sa/alice";
    const BOB: &str = "spiffe://td/ns/a/sa/bob";

    fn issued(serial: &str, identity: &str, at: OffsetDateTime, seconds: u64) -> Issued {
        Issued {
            serial: serial.to_owned(),
            identity: identity.to_owned(),
            issued_at: at,
            not_before: at,
            not_after: at + Duration::from_secs(seconds),
            authenticator: "test".to_owned(),
            peer: None,
            key_fingerprint: "00".to_owned(),
        }
    }

    fn open(folder: &std::path::Path) -> (Store, Ledger, Revocations) {
        let store = crate::testing::open_store(folder);
        let (ledger, writer) = Ledger::open(&store, Duration::from_secs(3600)).unwrap();
        proto_component::task::spawn("ledger", writer.run(Drain::never()));
        let revocations = Revocations::open(&store).unwrap();
        (store, ledger, revocations)
    }

    #[tokio::test]
    async fn what_was_begun_is_finished_by_whoever_takes_it_over() {
        let folder = tempfile::tempdir().unwrap();
        let (_store, ledger, revocations) = open(folder.path());
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        ledger.record(&issued("4a", ALICE, now, 60)).await.unwrap();
        // Barred, and then it ended.
        revocations.bar(ALICE, now).unwrap();
        let barred = BTreeSet::from([ALICE.to_owned()]);
        assert!(revocations.adopt(&barred, &[], &ledger, now).unwrap());
        assert!(revocations.is_revoked("4a").unwrap());
        assert!(!revocations.adopt(&barred, &[], &ledger, now).unwrap());
    }

    #[tokio::test]
    async fn a_full_list_bars_nobody_and_takes_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let (_store, ledger, revocations) = open(folder.path());
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        ledger.record(&issued("4a", ALICE, now, 60)).await.unwrap();
        let many = (0..=MAX_REVOKED).map(|n| issued(&format!("{n:x}"), BOB, now, 60));
        let many: Vec<_> = many.map(|issued| Revoked::new(issued, now)).collect();
        let barred = BTreeSet::new();
        assert!(revocations.adopt(&barred, &many, &ledger, now).unwrap());
        assert_eq!(revocations.current(now).unwrap().len(), MAX_REVOKED);
        let target = Target::Identity(ALICE.to_owned());
        let refused = revocations.revoke(&target, &ledger, now);
        assert!(matches!(refused, Err(RevokeError::TooMany)));
        assert!(!revocations.is_barred(ALICE).unwrap());
    }

    #[tokio::test]
    async fn others_are_told_what_an_older_version_has_kept() {
        let folder = tempfile::tempdir().unwrap();
        let store = crate::testing::open_store(folder.path());
        store.tree(BARRED).unwrap().insert(ALICE, "").unwrap();
        let untold = || Revocations::open(&store).unwrap().untold().unwrap();
        assert_eq!(untold(), BTreeMap::from([(ALICE.to_owned(), true)]));
        let revocations = Revocations::open(&store).unwrap();
        revocations.told([ALICE.to_owned()]).unwrap();
        assert!(untold().is_empty());
    }

    #[tokio::test]
    async fn an_identity_loses_all_it_has_and_a_serial_only_itself() {
        let folder = tempfile::tempdir().unwrap();
        let (_store, ledger, revocations) = open(folder.path());
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        for (serial, identity, seconds) in [
            ("4a", ALICE, 60),
            ("4b", ALICE, 600),
            ("4c", BOB, 600),
            ("4d", BOB, 600),
        ] {
            ledger
                .record(&issued(serial, identity, now, seconds))
                .await
                .unwrap();
        }
        let later = now + Duration::from_secs(120);
        let serials = |revoked: Vec<Revoked>| -> Vec<String> {
            revoked.into_iter().map(|entry| entry.serial).collect()
        };
        let target = Target::Identity(ALICE.to_owned());
        let revoked = revocations.revoke(&target, &ledger, later).unwrap();
        assert_eq!(
            serials(revoked),
            ["4b"],
            "the other one has ended by itself"
        );
        assert!(revocations.is_barred(ALICE).unwrap() && !revocations.is_barred(BOB).unwrap());
        let target = Target::Serial("00:4C".to_owned());
        assert_eq!(
            serials(revocations.revoke(&target, &ledger, later).unwrap()),
            ["4c"]
        );
        assert!(!revocations.is_barred(BOB).unwrap());
        assert_eq!(serials(revocations.current(later).unwrap()), ["4b", "4c"]);
        assert!(revocations.is_revoked("4c").unwrap() && !revocations.is_revoked("4d").unwrap());
        assert!(revocations.restore(ALICE).unwrap() && !revocations.is_barred(ALICE).unwrap());
        assert!(revocations.is_revoked("4b").unwrap());
        // What another replica knows: it bars Bob, no longer Alice, and has a certificate of its own.
        let elsewhere = Revoked::new(issued("5a", BOB, now, 600), now);
        let barred = BTreeSet::from([BOB.to_owned(), "no identity".to_owned()]);
        let adopt = || revocations.adopt(&barred, std::slice::from_ref(&elsewhere), &ledger, later);
        assert!(adopt().unwrap() && !adopt().unwrap());
        assert_eq!(
            revocations.barred().unwrap(),
            BTreeSet::from([BOB.to_owned()])
        );
        let all = revocations.current(later).unwrap();
        assert_eq!(serials(all), ["4b", "4c", "4d", "5a"]);
        let end = now + Duration::from_secs(601);
        assert!(revocations.current(end).unwrap().is_empty());
        for bad in [
            Target::Serial("77".to_owned()),
            Target::Identity("bob".to_owned()),
        ] {
            assert!(revocations.revoke(&bad, &ledger, later).is_err());
        }
    }
}
