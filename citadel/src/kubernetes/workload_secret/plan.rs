//! Which Secrets are to be written and which deleted: namespaces, accounts and Secrets as they are, and rules.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use kube::ResourceExt as _;
use kube::runtime::watcher::Event;
use time::OffsetDateTime;

use super::{ANNOTATION, SecretSettings};
use crate::authorize::{InvalidIdentity, from_subject, from_uri};

use state::State;

pub(super) use state::Wanted;

mod state;
#[cfg(test)]
mod tests;

const PREFIX: &str = "istio.";
const OVERRIDE_LABEL: &str = "ca.istio.io/override";
const ENVIRONMENT_LABEL: &str = "ca.istio.io/env";

/// A service account.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Account {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// Make the account's Secret, or make it anew.
    Write(Account),
    /// Put the present revocation lists into the account's Secret.
    Tell(Account),
    /// Delete a Secret that has lost its account.
    Delete {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

/// What is there, and what follows from it.
#[derive(Debug)]
pub(super) struct Plan {
    rules: Rules,
    namespaces: BTreeMap<String, bool>,
    accounts: BTreeSet<Account>,
    secrets: BTreeMap<Account, State>,
    /// A list of accounts is being read: nothing is deleted until it is whole.
    lists_accounts: bool,
    /// A list of Secrets is being read: nothing is written until it is whole.
    lists_secrets: bool,
    failed: BTreeSet<Step>,
}

#[derive(Debug)]
struct Rules {
    listened: Vec<String>,
    is_default_managed: bool,
    own_namespace: String,
    grace: Duration,
}

impl Account {
    /// The name of its Secret.
    pub fn secret(&self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    /// Whose identity that is, if it is one of ours.
    pub(super) fn of(uri: &str, trust_domain: &str) -> Option<Self> {
        let identity = from_uri(uri).ok()?;
        (identity.trust_domain() == trust_domain).then(|| Self {
            namespace: identity.namespace().to_owned(),
            name: identity.service_account().to_owned(),
        })
    }

    pub(super) fn identity(&self, trust_domain: &str) -> Result<String, InvalidIdentity> {
        let subject = format!("system:serviceaccount:{}:{}", self.namespace, self.name);
        from_subject(trust_domain, &subject).map(|identity| identity.to_string())
    }
}

/// Whether a namespace's accounts get Secrets: its own word, else whose it is, else the default.
fn is_managed(
    labels: &BTreeMap<String, String>,
    own_namespace: &str,
    is_default_managed: bool,
) -> bool {
    match labels.get(OVERRIDE_LABEL).map(String::as_str) {
        Some("true") => return true,
        Some("false") => return false,
        _ => {}
    }
    labels
        .get(ENVIRONMENT_LABEL)
        .map_or(is_default_managed, |environment| {
            environment == own_namespace
        })
}

fn is_managed_in(namespaces: &BTreeMap<String, bool>, account: &Account) -> bool {
    namespaces.get(&account.namespace) == Some(&true)
}

impl Plan {
    /// Nothing is known yet.
    pub(super) fn new(settings: &SecretSettings) -> Self {
        Self {
            rules: Rules {
                listened: settings.namespaces.clone(),
                is_default_managed: settings.is_default_managed,
                own_namespace: settings.own_namespace.clone(),
                grace: settings.grace,
            },
            namespaces: BTreeMap::new(),
            accounts: BTreeSet::new(),
            secrets: BTreeMap::new(),
            lists_accounts: true,
            lists_secrets: true,
            failed: BTreeSet::new(),
        }
    }

    /// Whether something is to be tried again.
    pub(super) fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Something was tried in vain.
    pub(super) fn failed(&mut self, step: Step) {
        self.failed.insert(step);
    }

    /// A namespace.
    pub(super) fn namespace(&mut self, event: Event<Namespace>) {
        match event {
            Event::Apply(namespace) | Event::InitApply(namespace) => {
                let is_going = namespace.metadata.deletion_timestamp.is_some();
                let rules = &self.rules;
                let name = namespace.name_any();
                let is_listened = rules.listened.is_empty() || rules.listened.contains(&name);
                let is_managed = is_managed(
                    namespace.labels(),
                    &rules.own_namespace,
                    rules.is_default_managed,
                );
                self.namespaces
                    .insert(name, is_managed && is_listened && !is_going);
            }
            Event::Delete(namespace) => {
                self.namespaces.remove(&namespace.name_any());
            }
            Event::Init | Event::InitDone => {}
        }
    }

    /// An account.
    pub(super) fn account(&mut self, event: Event<ServiceAccount>) {
        let key = |account: &ServiceAccount| Account {
            namespace: account.namespace().unwrap_or_default(),
            name: account.name_any(),
        };
        match event {
            Event::Apply(account) | Event::InitApply(account) => {
                self.accounts.insert(key(&account));
            }
            Event::Delete(account) => {
                self.accounts.remove(&key(&account));
            }
            Event::Init => {
                self.accounts.clear();
                self.lists_accounts = true;
            }
            Event::InitDone => self.lists_accounts = false,
        }
    }

    /// A Secret of ours.
    pub(super) fn secret(&mut self, event: Event<Secret>) {
        let key = |secret: &Secret| {
            let name = secret.annotations().get(ANNOTATION)?.clone();
            let account = Account {
                namespace: secret.namespace()?,
                name,
            };
            // Somebody else's with our annotation is not touched.
            (account.secret() == secret.name_any()).then_some(account)
        };
        match event {
            Event::Apply(secret) | Event::InitApply(secret) => {
                if let Some(account) = key(&secret) {
                    self.secrets.insert(account, State::of(&secret));
                }
            }
            Event::Delete(secret) => {
                if let Some(account) = key(&secret) {
                    self.secrets.remove(&account);
                }
            }
            Event::Init => {
                self.secrets.clear();
                self.lists_secrets = true;
            }
            Event::InitDone => self.lists_secrets = false,
        }
    }

    /// What is to be done now, if that is wanted. A step is taken for done until the API server says otherwise.
    pub(super) fn steps(&mut self, wanted: &Wanted, now: OffsetDateTime) -> Vec<Step> {
        let mut steps = std::mem::take(&mut self.failed);
        let accounts = self.accounts.iter();
        for account in accounts.filter(|account| is_managed_in(&self.namespaces, account)) {
            let grace = self.rules.grace;
            let present = self.secrets.get_mut(account);
            match present {
                Some(state) if state.is_good(wanted, now, grace) || wanted.bars(account) => {
                    if state.lists != wanted.lists {
                        state.lists.clone_from(&wanted.lists);
                        steps.insert(Step::Tell(account.clone()));
                    }
                }
                _ if self.lists_secrets || wanted.bars(account) => {}
                _ => {
                    steps.insert(Step::Write(account.clone()));
                    let done = State::new(wanted, now + grace * 2);
                    self.secrets.insert(account.clone(), done);
                }
            }
        }
        if !self.lists_accounts {
            let accounts = &self.accounts;
            let orphans = self
                .secrets
                .extract_if(.., |account, _| !accounts.contains(account));
            steps.extend(orphans.map(|(account, _)| Step::Delete {
                name: account.secret(),
                namespace: account.namespace,
            }));
        }
        // What failed may have lost its reason meanwhile.
        let is_wanted = |step: &Step| match step {
            Step::Write(account) => {
                self.accounts.contains(account)
                    && is_managed_in(&self.namespaces, account)
                    && !wanted.bars(account)
            }
            Step::Tell(account) => self.secrets.contains_key(account),
            Step::Delete { .. } => true,
        };
        steps.into_iter().filter(is_wanted).collect()
    }
}
