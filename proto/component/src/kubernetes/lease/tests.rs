//! Elections over an API server that is one Lease in memory.

use std::convert::Infallible;
use std::sync::Arc;

use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;
use crate::drain;

/// What the API server has.
#[derive(Default)]
struct Record {
    lease: Option<Value>,
    version: u64,
    is_away: bool,
}

#[derive(Clone, Default)]
struct ApiServer(Arc<Mutex<Record>>);

impl ApiServer {
    fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                if server.0.lock().is_away {
                    // As when packets are dropped.
                    std::future::pending::<()>().await;
                }
                let (status, value) = server.answer(&parts.method, &body);
                let body = Full::new(Bytes::from(value.to_string()));
                let response = Response::builder().status(status).body(body);
                Ok::<_, Infallible>(response.unwrap())
            }
        });
        Client::new(service, "default")
    }

    fn answer(&self, method: &Method, body: &[u8]) -> (StatusCode, Value) {
        let refuse = |status: StatusCode, reason: &str| {
            let (code, message) = (status.as_u16(), reason);
            let text = json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message});
            (status, text)
        };
        let mut record = self.0.lock();
        let sent: Value = serde_json::from_slice(body).unwrap_or_default();
        let known = record.lease.clone();
        match (method, known) {
            (&Method::GET, Some(lease)) => return (StatusCode::OK, lease),
            (&Method::GET | &Method::PUT, None) => {
                return refuse(StatusCode::NOT_FOUND, "NotFound");
            }
            (&Method::POST, Some(_)) => return refuse(StatusCode::CONFLICT, "AlreadyExists"),
            (&Method::PUT, Some(lease))
                if lease["metadata"]["resourceVersion"] != sent["metadata"]["resourceVersion"] =>
            {
                return refuse(StatusCode::CONFLICT, "Conflict");
            }
            _ => {}
        }
        record.version += 1;
        let mut lease = sent;
        lease["metadata"]["resourceVersion"] = record.version.to_string().into();
        record.lease = Some(lease.clone());
        (StatusCode::OK, lease)
    }

    fn holder(&self) -> Option<String> {
        let record = self.0.lock();
        let holder = record.lease.as_ref()?["spec"]["holderIdentity"].as_str()?;
        Some(holder.to_owned())
    }
}

/// A replica; what ends it, and what it believes.
struct Replica {
    trigger: drain::Trigger,
    leads: watch::Receiver<bool>,
    work: tokio::task::JoinHandle<()>,
}

fn replica(server: &ApiServer, identity: &str) -> Replica {
    let (trigger, drain) = drain::channel();
    let (leads, told) = watch::channel(false);
    let candidate = Candidate {
        api: Api::namespaced(server.client(), "istio-system"),
        name: "istio-galley".to_owned(),
        identity: identity.to_owned(),
        leads,
        observed: None,
        renewed: None,
        has_failed: false,
    };
    Replica {
        trigger,
        leads: told,
        work: task::spawn("candidate", candidate.run(drain)),
    }
}

async fn after(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn one_of_two_leads_and_the_other_follows_a_clean_end_at_once() {
    let server = ApiServer::default();
    let first = replica(&server, "a");
    after(1).await;
    let second = replica(&server, "b");
    after(60).await;
    let leads = || (*first.leads.borrow(), *second.leads.borrow());
    assert_eq!(leads(), (true, false));
    first.trigger.drain(Duration::from_secs(1));
    after(4).await;
    assert_eq!(leads(), (false, true));
    assert_eq!(server.holder().as_deref(), Some("b"));
    let transitions = server.0.lock().lease.clone().unwrap()["spec"]["leaseTransitions"].clone();
    assert_eq!(transitions, 2);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_vanishes_is_followed_when_its_lease_has_ended() {
    let server = ApiServer::default();
    let first = replica(&server, "a");
    after(1).await;
    let second = replica(&server, "b");
    after(30).await;
    first.work.abort();
    after(12).await;
    assert!(!*second.leads.borrow(), "the Lease is still held");
    after(8).await;
    assert!(*second.leads.borrow());
}

#[tokio::test(start_paused = true)]
async fn without_an_api_server_nobody_leads_and_afterwards_one_does() {
    let server = ApiServer::default();
    let first = replica(&server, "a");
    let second = replica(&server, "b");
    after(30).await;
    server.0.lock().is_away = true;
    after(7).await;
    let leads = || usize::from(*first.leads.borrow()) + usize::from(*second.leads.borrow());
    assert_eq!(leads(), 1, "a leader goes on for a while");
    after(5).await;
    assert_eq!(leads(), 0, "it cannot know any more");
    after(60).await;
    assert_eq!(leads(), 0);
    server.0.lock().is_away = false;
    after(30).await;
    assert_eq!(leads(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_was_overtaken_notices_at_its_next_renewal() {
    let server = ApiServer::default();
    let first = replica(&server, "a");
    after(10).await;
    {
        let mut record = server.0.lock();
        let lease = record.lease.as_mut().unwrap();
        lease["spec"]["holderIdentity"] = "somebody".into();
        lease["metadata"]["resourceVersion"] = "1000".into();
        record.version = 1000;
    }
    after(4).await;
    assert!(!*first.leads.borrow());
    assert_eq!(server.holder().as_deref(), Some("somebody"));
}

#[tokio::test(start_paused = true)]
async fn outside_of_a_cluster_each_one_leads_until_the_drain() {
    let (trigger, drain) = drain::channel();
    let client = ApiServer::default().client();
    let mut leadership = elect(client, "istio-galley", &LeaseArgs::default(), drain);
    assert!(leadership.gained().await);
    trigger.drain(Duration::from_secs(1));
    leadership.lost().await;
    assert!(!leadership.gained().await, "it never will again");
}
