//! A replica and the ConfigMap, when one of them is away, empty or half-way.

use proto_component::{task, tls};
use serde_json::json;

use super::*;
use crate::ca::SelfSigned;
use crate::kubernetes::testing::ApiServer;
use crate::revocation::Target;
use crate::store::Store;
use crate::testing::settings;

const DAY: Duration = Duration::from_secs(86400);
const ALICE: &str = "spiffe://td/ns/a/sa/alice";
const BOB: &str = "spiffe://td/ns/a/sa/bob";

struct Replica {
    store: Store,
    server: ApiServer,
    ledger: Ledger,
    revocations: Revocations,
    trust: Arc<Trust>,
    shared: SharedRevocations,
    _folder: tempfile::TempDir,
}

impl Replica {
    /// With an API server that has no ConfigMap.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = crate::testing::open_store(folder.path());
        let now = OffsetDateTime::now_utc();
        let ca = SelfSigned::open(&store, settings(), tls::provider(), now).unwrap();
        let (ledger, writer) = Ledger::open(&store, DAY).unwrap();
        task::spawn("ledger", writer.run(Drain::never()));
        let revocations = Revocations::open(&store).unwrap();
        let trust = Arc::new(Trust::new(Arc::new(ca), revocations.clone()).unwrap());
        let server = ApiServer::default();
        let shared = shared(&server, &revocations, &ledger, &trust);
        Self {
            store,
            server,
            ledger,
            revocations,
            trust,
            shared,
            _folder: folder,
        }
    }

    /// As after a restart.
    fn restart(&mut self) {
        self.revocations = Revocations::open(&self.store).unwrap();
        self.shared = shared(&self.server, &self.revocations, &self.ledger, &self.trust);
    }

    /// What the operator's commands do; whether the others were told.
    async fn revoke(&self, identity: &str) -> anyhow::Result<()> {
        let _turn = self.shared.turn().await;
        let target = Target::Identity(identity.to_owned());
        self.revocations
            .revoke(&target, &self.ledger, OffsetDateTime::now_utc())?;
        self.shared.push().await
    }

    async fn restore(&self, identity: &str) -> anyhow::Result<()> {
        let _turn = self.shared.turn().await;
        self.revocations.restore(identity)?;
        self.shared.push().await
    }

    fn is_barred(&self, identity: &str) -> bool {
        self.revocations.is_barred(identity).unwrap()
    }

    /// Who is barred in the ConfigMap.
    fn told(&self) -> BTreeSet<String> {
        let object = self.server.object().unwrap();
        let text = object["data"][KEY].as_str().unwrap();
        serde_json::from_str::<Content>(text).unwrap().barred
    }

    /// What others write.
    fn write(&self, content: &Content) {
        let text = serde_json::to_string(content).unwrap();
        self.server.merge(&json!({"data": {KEY: text}}));
    }
}

fn shared(
    server: &ApiServer,
    revocations: &Revocations,
    ledger: &Ledger,
    trust: &Arc<Trust>,
) -> SharedRevocations {
    let (revocations, ledger) = (revocations.clone(), ledger.clone());
    SharedRevocations::new(
        server.client(),
        "istio-system",
        revocations,
        ledger,
        trust.clone(),
    )
}

fn barred<const N: usize>(identities: [&str; N]) -> Content {
    Content {
        barred: identities.map(str::to_owned).into(),
        ..Content::default()
    }
}

#[tokio::test]
async fn what_could_not_be_told_is_not_undone_and_told_later() {
    let mut replica = Replica::new();
    replica.write(&barred([BOB]));
    replica.shared.load().await.unwrap();
    replica.server.set_away(true);
    replica.revoke(ALICE).await.unwrap_err();
    replica.restore(BOB).await.unwrap_err();
    for has_restarted in [false, true] {
        if has_restarted {
            replica.restart();
        }
        replica.shared.load().await.unwrap_err();
        assert!(replica.is_barred(ALICE) && !replica.is_barred(BOB));
    }
    replica.server.set_away(false);
    replica.shared.load().await.unwrap();
    assert!(replica.is_barred(ALICE) && !replica.is_barred(BOB));
    assert_eq!(replica.told(), barred([ALICE]).barred);
    // From then on others may undo it.
    replica.write(&barred([BOB]));
    replica.shared.load().await.unwrap();
    assert!(!replica.is_barred(ALICE) && replica.is_barred(BOB));
}

#[tokio::test]
async fn what_two_have_done_before_they_met_is_in_force_for_both() {
    let replica = Replica::new();
    replica.server.set_away(true);
    replica.revoke(ALICE).await.unwrap_err();
    replica.server.set_away(false);
    replica.write(&barred([BOB]));
    replica.shared.load().await.unwrap();
    assert!(replica.is_barred(ALICE) && replica.is_barred(BOB));
    assert_eq!(replica.told(), barred([ALICE, BOB]).barred);
}

#[tokio::test]
async fn a_config_map_without_content_restores_nobody() {
    let replica = Replica::new();
    replica.revoke(ALICE).await.unwrap();
    replica.server.merge(&json!({"data": {KEY: null}}));
    replica.shared.load().await.unwrap();
    assert!(replica.is_barred(ALICE));
    assert_eq!(replica.told(), barred([ALICE]).barred);
    for spoilt in ["", "{}", r#"{"revoked": {}}"#] {
        replica.server.merge(&json!({"data": {KEY: spoilt}}));
        replica.shared.load().await.unwrap_err();
        assert!(replica.is_barred(ALICE), "{spoilt}");
    }
}

#[tokio::test]
async fn a_config_map_that_went_while_nobody_watched_is_made_anew() {
    let replica = Replica::new();
    replica.revoke(ALICE).await.unwrap();
    replica.server.delete();
    let server = replica.server.clone();
    let run = replica.shared.run(Drain::never());
    let made = server.until(Option::is_some);
    let made = async {
        tokio::select! {
            () = run => None,
            object = made => object,
        }
    };
    let made = tokio::time::timeout(Duration::from_secs(30), made).await;
    assert!(made.unwrap().is_some());
    assert_eq!(replica.told(), barred([ALICE]).barred);
}

#[tokio::test]
async fn what_was_taken_over_before_a_failure_is_published_after_it() {
    let replica = Replica::new();
    let now = OffsetDateTime::now_utc();
    let mut content = barred([]);
    let row = (
        "4a".to_owned(),
        (now + DAY).unix_timestamp(),
        now.unix_timestamp(),
    );
    content
        .revoked
        .entry(BOB.to_owned())
        .or_default()
        .insert(row);
    replica.write(&content);
    // As if the attempt had ended before the list was made.
    let revoked: Vec<Revoked> = content.entries().collect();
    let adopted = replica
        .revocations
        .adopt(&content.barred, &revoked, &replica.ledger, now);
    assert!(adopted.unwrap());
    assert_eq!(replica.trust.watch().borrow().crls, "");
    replica.shared.load().await.unwrap();
    assert_ne!(replica.trust.watch().borrow().crls, "");
}
