//! Which Secrets are to be written and which deleted: namespaces, accounts and Secrets as they are, and rules.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use kube::ResourceExt as _;
use kube::runtime::watcher::Event;
use time::OffsetDateTime;

use super::{ANNOTATION, CHAIN, ROOT, SecretSettings};
use crate::authorize::{InvalidIdentity, from_subject};
use crate::pki::{Validity, certificates_from_pem};

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

/// A Secret as it is.
#[derive(Debug)]
struct State {
    /// None if it holds no certificate.
    not_after: Option<OffsetDateTime>,
    roots: String,
}

impl Account {
    /// The name of its Secret.
    pub fn secret(&self) -> String {
        format!("{PREFIX}{}", self.name)
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

    /// What is to be done now, if these roots are to be trusted. A step is taken for done until the API server says otherwise.
    pub(super) fn steps(&mut self, roots: &str, now: OffsetDateTime) -> Vec<Step> {
        let mut steps = std::mem::take(&mut self.failed);
        for account in &self.accounts {
            let is_managed = self.namespaces.get(&account.namespace) == Some(&true);
            let is_good = self
                .secrets
                .get(account)
                .is_some_and(|state| state.is_good(roots, now, self.rules.grace));
            if is_managed && !is_good && !self.lists_secrets {
                steps.insert(Step::Write(account.clone()));
                let done = State {
                    not_after: Some(now + self.rules.grace * 2),
                    roots: roots.to_owned(),
                };
                self.secrets.insert(account.clone(), done);
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
                    && self.namespaces.get(&account.namespace) == Some(&true)
            }
            Step::Delete { .. } => true,
        };
        steps.into_iter().filter(is_wanted).collect()
    }
}

impl State {
    fn of(secret: &Secret) -> Self {
        let text = |name: &str| {
            let bytes = secret.data.as_ref()?.get(name)?;
            String::from_utf8(bytes.0.clone()).ok()
        };
        let leaf = text(CHAIN).and_then(|chain| certificates_from_pem(&chain).ok());
        let life = leaf.and_then(|chain| Validity::of(&chain[0]).ok());
        Self {
            not_after: life.map(|life| life.not_after),
            roots: text(ROOT).unwrap_or_default(),
        }
    }

    fn is_good(&self, roots: &str, now: OffsetDateTime, grace: Duration) -> bool {
        self.roots == roots && self.not_after.is_some_and(|end| end - now > grace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;
    use kube::api::ObjectMeta;

    fn settings() -> SecretSettings {
        SecretSettings {
            trust_domain: "td".to_owned(),
            ttl: Duration::from_secs(3600),
            grace: Duration::from_secs(1800),
            dns_names: BTreeMap::new(),
            namespaces: Vec::new(),
            is_default_managed: true,
            own_namespace: "istio-system".to_owned(),
            dual_use: false,
        }
    }

    fn meta(namespace: &str, name: &str) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        }
    }

    fn namespace(name: &str, labels: &[(&str, &str)]) -> Namespace {
        let labels = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Namespace {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: Some(labels.collect()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        }
    }

    fn account(namespace: &str, name: &str) -> ServiceAccount {
        ServiceAccount {
            metadata: meta(namespace, name),
            ..ServiceAccount::default()
        }
    }

    fn write(namespace: &str, name: &str) -> Step {
        Step::Write(Account {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }

    #[test]
    fn a_namespaces_labels_decide() {
        let managed = |labels: &[(&str, &str)], default| {
            is_managed(namespace("n", labels).labels(), "istio-system", default)
        };
        assert!(managed(&[], true) && !managed(&[], false));
        assert!(managed(
            &[(OVERRIDE_LABEL, "true"), (ENVIRONMENT_LABEL, "x")],
            false
        ));
        assert!(!managed(&[(OVERRIDE_LABEL, "false")], true));
        assert!(managed(&[(ENVIRONMENT_LABEL, "istio-system")], false));
        assert!(!managed(&[(ENVIRONMENT_LABEL, "other")], true));
    }

    #[test]
    fn secrets_follow_accounts_roots_and_time() {
        let mut plan = Plan::new(&settings());
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        plan.namespace(Event::Apply(namespace("a", &[])));
        plan.namespace(Event::Apply(namespace("off", &[(OVERRIDE_LABEL, "false")])));
        plan.account(Event::Init);
        plan.account(Event::InitApply(account("a", "one")));
        plan.account(Event::InitApply(account("off", "one")));
        plan.account(Event::InitDone);
        assert!(plan.steps("root", now).is_empty(), "it may be there");
        plan.secret(Event::InitDone);
        assert_eq!(plan.steps("root", now), [write("a", "one")]);
        assert!(plan.steps("root", now).is_empty());
        assert_eq!(plan.steps("other root", now), [write("a", "one")]);
        let late = now + Duration::from_secs(1801);
        assert_eq!(plan.steps("other root", late), [write("a", "one")]);
        // Tried in vain: again, as long as there is a reason.
        plan.failed(write("a", "one"));
        assert!(plan.has_failed());
        assert_eq!(plan.steps("other root", late), [write("a", "one")]);
        // Opted in: those that are there already get theirs.
        plan.namespace(Event::Apply(namespace("off", &[])));
        assert_eq!(plan.steps("other root", late), [write("off", "one")]);
        plan.account(Event::Delete(account("a", "one")));
        let gone = Step::Delete {
            namespace: "a".to_owned(),
            name: "istio.one".to_owned(),
        };
        assert_eq!(plan.steps("other root", late), [gone]);
        plan.failed(write("a", "one"));
        assert!(plan.steps("other root", late).is_empty());
    }

    #[test]
    fn a_spoilt_or_deleted_secret_is_made_anew_and_a_strangers_is_left_alone() {
        let mut plan = Plan::new(&settings());
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        plan.namespace(Event::Apply(namespace("a", &[])));
        plan.account(Event::Apply(account("a", "one")));
        plan.secret(Event::InitDone);
        assert_eq!(plan.steps("root", now).len(), 1);
        let mut secret = Secret {
            metadata: meta("a", "istio.one"),
            data: Some([(CHAIN.to_owned(), ByteString(b"spoilt".to_vec()))].into()),
            ..Secret::default()
        };
        secret
            .annotations_mut()
            .insert(ANNOTATION.to_owned(), "one".to_owned());
        plan.secret(Event::Apply(secret.clone()));
        assert_eq!(plan.steps("root", now), [write("a", "one")]);
        plan.secret(Event::Delete(secret.clone()));
        assert_eq!(plan.steps("root", now), [write("a", "one")]);
        plan.account(Event::InitDone);
        secret.metadata.name = Some("mine".to_owned());
        secret
            .annotations_mut()
            .insert(ANNOTATION.to_owned(), "two".to_owned());
        plan.secret(Event::Apply(secret));
        assert!(plan.steps("root", now).is_empty());
    }
}
