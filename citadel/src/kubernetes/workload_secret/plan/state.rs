//! A Secret as it is, and as it should be.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use time::OffsetDateTime;

use super::super::{CHAIN, CRLS, ROOT};
use super::Account;
use crate::pki::{Validity, certificates_from_pem, revoked_by, serial_of};

/// What every Secret should hold, and which accounts get none.
#[derive(Debug, Default)]
pub(in super::super) struct Wanted {
    /// Changes with roots and lists.
    pub version: String,
    /// The roots, PEM.
    pub roots: String,
    /// What the revocation lists say ([`revoked_by`]).
    pub lists: Option<String>,
    /// Serial numbers of certificates that are to be replaced.
    pub revoked: BTreeSet<String>,
    /// Accounts whose identities have been revoked.
    pub barred: BTreeSet<Account>,
}

/// A Secret as it is.
#[derive(Debug)]
pub(super) struct State {
    /// None if it holds no certificate.
    not_after: Option<OffsetDateTime>,
    serial: String,
    roots: String,
    /// What its revocation lists say ([`revoked_by`]); none if they cannot be read.
    pub(super) lists: Option<String>,
}

impl Wanted {
    pub(super) fn bars(&self, account: &Account) -> bool {
        self.barred.contains(account)
    }
}

impl State {
    /// One just written.
    pub(super) fn new(wanted: &Wanted, not_after: OffsetDateTime) -> Self {
        Self {
            not_after: Some(not_after),
            serial: String::new(),
            roots: wanted.roots.clone(),
            lists: wanted.lists.clone(),
        }
    }

    pub(super) fn of(secret: &Secret) -> Self {
        let text = |name: &str| {
            let bytes = secret.data.as_ref()?.get(name)?;
            String::from_utf8(bytes.0.clone()).ok()
        };
        let chain = text(CHAIN).and_then(|chain| certificates_from_pem(&chain).ok());
        let leaf = chain.as_ref().and_then(|chain| chain.first());
        Self {
            not_after: leaf
                .and_then(|leaf| Validity::of(leaf).ok())
                .map(|life| life.not_after),
            serial: leaf
                .and_then(|leaf| serial_of(leaf).ok())
                .unwrap_or_default(),
            roots: text(ROOT).unwrap_or_default(),
            lists: revoked_by(&text(CRLS).unwrap_or_default()),
        }
    }

    pub(super) fn is_good(&self, wanted: &Wanted, now: OffsetDateTime, grace: Duration) -> bool {
        self.roots == wanted.roots
            && !wanted.revoked.contains(&self.serial)
            && self.not_after.is_some_and(|end| end - now > grace)
    }
}
