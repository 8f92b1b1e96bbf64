//! What is no longer to be believed: revoked certificates, and identities that get no new ones; kept in sled beside the ledger.
//!
//! Revoking an identity revokes all its certificates that are still good and bars it from new ones until it is restored;
//! revoking a serial number takes one certificate only, and its owner may have another. [`crate::trust`] makes the revocation
//! list of it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::ledger::{Issued, Ledger, LedgerError, rfc3339};
use crate::store::{Store, Tree};

const REVOKED: &str = "revoked";
const BARRED: &str = "barred";
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
}

impl Revocations {
    /// Those in the store.
    pub fn open(store: &Store) -> Result<Self, sled::Error> {
        Ok(Self {
            revoked: store.tree(REVOKED)?,
            barred: store.tree(BARRED)?,
        })
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
                vec![found.ok_or(RevokeError::UnknownSerial(serial))?]
            }
            Target::Identity(identity) => {
                check_identity(identity)?;
                // Barred first: nothing may be issued between the look into the ledger and the end of this.
                self.barred
                    .insert(identity, now.unix_timestamp().to_be_bytes().as_slice())?;
                ledger.alive(identity, now)?
            }
        };
        if self.revoked.len() + certificates.len() > MAX_REVOKED {
            return Err(RevokeError::TooMany);
        }
        let revoked: Vec<Revoked> = certificates
            .into_iter()
            .map(|issued| Revoked::new(issued, now))
            .collect();
        let mut batch = sled::Batch::default();
        for entry in &revoked {
            batch.insert(entry.serial.as_bytes(), serde_json::to_vec(entry)?);
        }
        self.revoked.apply_batch(batch)?;
        self.revoked.persist()?;
        Ok(revoked)
    }

    /// Lets an identity have certificates again; those that were revoked stay so. Says whether it was barred.
    pub fn restore(&self, identity: &str) -> Result<bool, RevokeError> {
        check_identity(identity)?;
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

    /// Takes over what is known elsewhere: those of `barred` are barred and nobody else, what is in `revoked` is added. Says
    /// whether something has changed.
    pub fn adopt(
        &self,
        barred: &BTreeSet<String>,
        revoked: &[Revoked],
        ledger: &Ledger,
        now: OffsetDateTime,
    ) -> Result<bool, RevokeError> {
        let known = self.barred()?;
        let is_identity = |identity: &&String| check_identity(identity).is_ok();
        let barred: BTreeSet<String> = barred.iter().filter(is_identity).cloned().collect();
        for identity in known.difference(&barred) {
            self.restore(identity)?;
        }
        for identity in barred.difference(&known) {
            self.revoke(&Target::Identity(identity.clone()), ledger, now)?;
        }
        let mut is_changed = known != barred;
        let mut batch = sled::Batch::default();
        for entry in revoked.iter().filter(|entry| entry.not_after > now) {
            if !self.is_revoked(&entry.serial)? {
                batch.insert(entry.serial.as_bytes(), serde_json::to_vec(entry)?);
                is_changed = true;
            }
        }
        self.revoked.apply_batch(batch)?;
        self.revoked.persist()?;
        Ok(is_changed)
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

    #[tokio::test]
    async fn an_identity_loses_all_it_has_and_a_serial_only_itself() {
        let folder = tempfile::tempdir().unwrap();
        let store = crate::testing::open_store(folder.path());
        let (ledger, writer) = Ledger::open(&store, Duration::from_secs(3600)).unwrap();
        proto_component::task::spawn("ledger", writer.run(Drain::never()));
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
        let revocations = Revocations::open(&store).unwrap();
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
