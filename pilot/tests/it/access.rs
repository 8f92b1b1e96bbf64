//! Who may read Secrets: what the API server is asked, and how long its answers hold.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::routing::post;
use axum::{Json, Router};
use http::StatusCode;
use kube::Client;
use parking_lot::Mutex;
use pilot::xds::access::AccessReviewer;
use serde_json::{Value, json};
use tokio::time::advance;

const REVIEWS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
const SHOP: &str = "shop";
const INGRESS: &str = "ingress";

/// An API server that reviews nothing but access.
#[derive(Clone, Default)]
pub(crate) struct ApiServer(Arc<Mutex<Record>>);

#[derive(Default)]
struct Record {
    /// Users that may do what they are asked about for.
    allowed: BTreeSet<String>,
    /// What it was asked.
    asked: Vec<Value>,
    condition: Condition,
}

#[derive(Clone, Copy, Default)]
enum Condition {
    #[default]
    Good,
    /// It does not let us ask.
    Forbidding,
    /// Packets to it are dropped.
    Away,
    /// Answers without a verdict.
    Mute,
}

fn user(namespace: &str, account: &str) -> String {
    format!("system:serviceaccount:{namespace}:{account}")
}

impl ApiServer {
    pub(crate) fn reviewer(&self) -> AccessReviewer {
        let server = self.clone();
        let review = async move |Json(review): Json<Value>| server.answer(review).await;
        let router = Router::new().route(REVIEWS, post(review));
        AccessReviewer::new(Client::new(router, "default"))
    }

    pub(crate) fn allow(&self, namespace: &str, account: &str) {
        self.0.lock().allowed.insert(user(namespace, account));
    }

    fn forbid(&self, namespace: &str, account: &str) {
        self.0.lock().allowed.remove(&user(namespace, account));
    }

    fn is(&self, condition: Condition) {
        self.0.lock().condition = condition;
    }

    fn asked(&self) -> usize {
        self.0.lock().asked.len()
    }

    async fn answer(&self, mut review: Value) -> (StatusCode, Json<Value>) {
        let condition = {
            let mut record = self.0.lock();
            record.asked.push(review.clone());
            let user = review["spec"]["user"].as_str().unwrap();
            let is_allowed = record.allowed.contains(user);
            review["status"] = json!({"allowed": is_allowed});
            record.condition
        };
        match condition {
            Condition::Good => {}
            Condition::Away => std::future::pending().await,
            Condition::Mute => {
                review.as_object_mut().unwrap().remove("status");
            }
            Condition::Forbidding => {
                let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403,
                    "reason": "Forbidden", "message": "may not ask"});
                return (StatusCode::FORBIDDEN, Json(status));
            }
        }
        (StatusCode::CREATED, Json(review))
    }
}

#[tokio::test(start_paused = true)]
async fn only_an_account_that_may_list_secrets_may_read_them() {
    let server = ApiServer::default();
    server.allow(SHOP, INGRESS);
    let reviewer = server.reviewer();
    for (namespace, account, is_allowed) in [
        (SHOP, INGRESS, true),
        (SHOP, "seller", false),
        ("other", INGRESS, false),
    ] {
        let answer = reviewer.may_read_secrets(namespace, account).await;
        assert_eq!(answer, Ok(is_allowed), "{namespace}/{account}");
    }
    let groups = [
        "system:serviceaccounts",
        "system:serviceaccounts:shop",
        "system:authenticated",
    ];
    assert_eq!(
        server.0.lock().asked[0]["spec"],
        json!({
            "user": "system:serviceaccount:shop:ingress",
            "groups": groups,
            "resourceAttributes": {"namespace": SHOP, "verb": "list", "resource": "secrets"},
        })
    );
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_nobody_may_and_the_next_one_asks_again() {
    let server = ApiServer::default();
    server.allow(SHOP, INGRESS);
    let reviewer = server.reviewer();
    for condition in [Condition::Away, Condition::Forbidding] {
        server.is(condition);
        let answer = reviewer.may_read_secrets(SHOP, INGRESS).await;
        assert!(answer.is_err(), "{answer:?}");
    }
    server.is(Condition::Mute);
    assert_eq!(reviewer.may_read_secrets(SHOP, "seller").await, Ok(false));
    server.is(Condition::Good);
    assert_eq!(reviewer.may_read_secrets(SHOP, INGRESS).await, Ok(true));
}

#[tokio::test(start_paused = true)]
async fn a_yes_holds_for_a_minute_and_a_no_for_less() {
    let server = ApiServer::default();
    server.allow(SHOP, INGRESS);
    let reviewer = server.reviewer();
    for (account, is_allowed, holds) in [(INGRESS, true, 60), ("seller", false, 10)] {
        let before = server.asked();
        for (after, times) in [(0, 1), (holds - 1, 1), (2, 2)] {
            advance(Duration::from_secs(after)).await;
            let answer = reviewer.may_read_secrets(SHOP, account).await;
            assert_eq!(answer, Ok(is_allowed));
            assert_eq!(server.asked() - before, times, "{account} after {after} s");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn answers_about_more_accounts_than_are_kept_are_right_too() {
    let server = ApiServer::default();
    server.allow(SHOP, INGRESS);
    let reviewer = server.reviewer();
    for number in 0..4096 {
        let answer = reviewer
            .may_read_secrets(SHOP, &format!("seller-{number}"))
            .await;
        assert_eq!(answer, Ok(false));
    }
    for more in 1..=2 {
        assert_eq!(reviewer.may_read_secrets(SHOP, INGRESS).await, Ok(true));
        assert_eq!(server.asked(), 4096 + more, "there is no room for it");
    }
    // Those that count no more make room.
    advance(Duration::from_secs(11)).await;
    for _ in 0..2 {
        assert_eq!(reviewer.may_read_secrets(SHOP, INGRESS).await, Ok(true));
        assert_eq!(server.asked(), 4096 + 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_role_that_comes_or_goes_is_noticed_and_an_api_server_that_goes_is_not() {
    let server = ApiServer::default();
    let reviewer = server.reviewer();
    let changes = async |before: bool| {
        let changed = reviewer.changed(SHOP, INGRESS, before);
        tokio::time::timeout(Duration::from_secs(180), changed)
            .await
            .is_ok()
    };
    assert!(!changes(false).await);
    server.allow(SHOP, INGRESS);
    assert!(changes(false).await);
    assert!(!changes(true).await);
    for condition in [Condition::Away, Condition::Forbidding] {
        server.is(condition);
        assert!(!changes(true).await);
        assert!(!changes(false).await);
    }
    server.is(Condition::Good);
    server.forbid(SHOP, INGRESS);
    assert!(changes(true).await);
}
