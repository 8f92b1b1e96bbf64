//! Accounts, namespaces and Secrets that come, go and are spoilt.

use super::super::CHAIN;
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

fn wanted(roots: &str) -> Wanted {
    Wanted {
        roots: roots.to_owned(),
        lists: Some(String::new()),
        ..Wanted::default()
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
    assert!(
        plan.steps(&wanted("root"), now).is_empty(),
        "it may be there"
    );
    plan.secret(Event::InitDone);
    assert_eq!(plan.steps(&wanted("root"), now), [write("a", "one")]);
    assert!(plan.steps(&wanted("root"), now).is_empty());
    assert_eq!(plan.steps(&wanted("other root"), now), [write("a", "one")]);
    let late = now + Duration::from_secs(1801);
    assert_eq!(plan.steps(&wanted("other root"), late), [write("a", "one")]);
    // Tried in vain: again, as long as there is a reason.
    plan.failed(write("a", "one"));
    assert!(plan.has_failed());
    assert_eq!(plan.steps(&wanted("other root"), late), [write("a", "one")]);
    // Opted in: those that are there already get theirs.
    plan.namespace(Event::Apply(namespace("off", &[])));
    assert_eq!(
        plan.steps(&wanted("other root"), late),
        [write("off", "one")]
    );
    plan.account(Event::Delete(account("a", "one")));
    let gone = Step::Delete {
        namespace: "a".to_owned(),
        name: "istio.one".to_owned(),
    };
    assert_eq!(plan.steps(&wanted("other root"), late), [gone]);
    plan.failed(write("a", "one"));
    assert!(plan.steps(&wanted("other root"), late).is_empty());
}

#[test]
fn a_spoilt_or_deleted_secret_is_made_anew_and_a_strangers_is_left_alone() {
    let mut plan = Plan::new(&settings());
    let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
    plan.namespace(Event::Apply(namespace("a", &[])));
    plan.account(Event::Apply(account("a", "one")));
    plan.secret(Event::InitDone);
    assert_eq!(plan.steps(&wanted("root"), now).len(), 1);
    let mut secret = Secret {
        metadata: meta("a", "istio.one"),
        data: Some([(CHAIN.to_owned(), ByteString(b"spoilt".to_vec()))].into()),
        ..Secret::default()
    };
    secret
        .annotations_mut()
        .insert(ANNOTATION.to_owned(), "one".to_owned());
    plan.secret(Event::Apply(secret.clone()));
    assert_eq!(plan.steps(&wanted("root"), now), [write("a", "one")]);
    plan.secret(Event::Delete(secret.clone()));
    assert_eq!(plan.steps(&wanted("root"), now), [write("a", "one")]);
    plan.account(Event::InitDone);
    secret.metadata.name = Some("mine".to_owned());
    secret
        .annotations_mut()
        .insert(ANNOTATION.to_owned(), "two".to_owned());
    plan.secret(Event::Apply(secret));
    assert!(plan.steps(&wanted("root"), now).is_empty());
}

#[test]
fn what_is_revoked_is_told_and_replaced_but_not_for_the_barred() {
    let mut plan = Plan::new(&settings());
    let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
    plan.namespace(Event::Apply(namespace("a", &[])));
    plan.account(Event::Apply(account("a", "one")));
    plan.secret(Event::InitDone);
    let mut wanted = wanted("root");
    assert_eq!(plan.steps(&wanted, now), [write("a", "one")]);
    wanted.lists = Some("somebody".to_owned());
    let one = Account {
        namespace: "a".to_owned(),
        name: "one".to_owned(),
    };
    assert_eq!(plan.steps(&wanted, now), [Step::Tell(one.clone())]);
    assert!(plan.steps(&wanted, now).is_empty());
    plan.failed(Step::Tell(one.clone()));
    assert_eq!(plan.steps(&wanted, now), [Step::Tell(one.clone())]);
    // Its own certificate (of which nothing is known here but that it has no serial number).
    wanted.revoked.insert(String::new());
    wanted.barred.insert(one);
    assert!(plan.steps(&wanted, now).is_empty());
    wanted.barred.clear();
    assert_eq!(plan.steps(&wanted, now), [write("a", "one")]);
}
