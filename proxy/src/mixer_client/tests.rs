//! The client against a Mixer that answers what it is told to, with time standing still.

use std::collections::VecDeque;

use bytes::Bytes;
use prost::Message as _;
use proto::google::rpc::Status;
use proto::istio::mixer::v1::check_response::{PreconditionResult, QuotaResult};
use proto::istio::mixer::v1::config::client as wire;
use proto::istio::mixer::v1::referenced_attributes::{AttributeMatch, Condition};
use proto::istio::mixer::v1::{
    CheckRequest, CheckResponse, ReferencedAttributes, ReportRequest, ReportResponse,
};
use proto_component::drain::Drain;
use proto_mesh::attribute::codec::{self, Encoder, Words};
use proto_mesh::attribute::{Attributes, Known};
use std::time::Duration;
use tonic::Code;

use super::call::{CallError, Remote};
use super::*;

const HEADERS: Known = Known::new("request.headers");
const PATH: Known = Known::new("request.path");
const USER: Known = Known::new("source.user");

#[derive(Default)]
struct FakeMixer {
    answers: RefCell<VecDeque<Result<CheckResponse, CallError>>>,
    checks: RefCell<Vec<CheckRequest>>,
    reports: RefCell<Vec<ReportRequest>>,
    /// Reports that find nobody.
    away: Cell<usize>,
}

impl Remote for FakeMixer {
    fn call(
        &self,
        cluster: &str,
        method: &'static str,
        message: Bytes,
    ) -> LocalBoxFuture<'static, Result<Bytes, CallError>> {
        let message = &message[5..];
        let answer = if method.ends_with("Report") {
            assert_eq!(cluster, "reports");
            self.reports
                .borrow_mut()
                .push(ReportRequest::decode(message).unwrap());
            match self.away.get() {
                0 => Ok(ReportResponse {}.encode_to_vec()),
                away => {
                    self.away.set(away - 1);
                    Err(CallError::transport("nobody is there"))
                }
            }
        } else {
            assert_eq!(cluster, "mixer_server");
            self.checks
                .borrow_mut()
                .push(CheckRequest::decode(message).unwrap());
            let answer = self.answers.borrow_mut().pop_front();
            answer
                .unwrap_or_else(|| Err(CallError::transport("no answer")))
                .map(|answer| answer.encode_to_vec())
        };
        Box::pin(async move { answer.map(Bytes::from) })
    }

    fn random(&self) -> u64 {
        7
    }
}

fn client(change: impl FnOnce(&mut wire::TransportConfig)) -> (Rc<Client>, Rc<FakeMixer>) {
    let mut config = wire::TransportConfig {
        report_cluster: "reports".into(),
        ..Default::default()
    };
    change(&mut config);
    let transport = config::transport(Some(&config)).unwrap();
    let mixer = Rc::new(FakeMixer::default());
    let client = Client::new(transport, FilterKind::Http, mixer.clone(), Arc::default());
    batch::start(&client, &Drain::never());
    (client, mixer)
}

pub(super) fn record(user: &str) -> Rc<Record> {
    let mut record = Record::new(Base::new(&Attributes::new(), &Rc::default()));
    record.set_text(USER, user);
    record.set_map(HEADERS, |entries| {
        entries.push("x-a", b"1");
        entries.push("x-b", b"2");
    });
    record.set_text(PATH, "/x");
    Rc::new(record)
}

/// An answer that depended on the user, one header that was there and one that was not.
fn answer(code: Code, uses: i32) -> CheckResponse {
    let mut encoder = Encoder::new(222);
    let mut found = |name: &str, key: &str, condition: Condition| AttributeMatch {
        name: encoder.index(name),
        map_key: if key.is_empty() {
            0
        } else {
            encoder.index(key)
        },
        condition: condition.into(),
        regex: String::new(),
    };
    let attribute_matches = vec![
        found("source.user", "", Condition::Exact),
        found("source.name", "", Condition::Absence),
        found("request.headers", "x-a", Condition::Exact),
        found("request.headers", "x-c", Condition::Absence),
    ];
    CheckResponse {
        precondition: Some(PreconditionResult {
            status: Some(Status {
                code: code.into(),
                message: "why".into(),
                ..Default::default()
            }),
            valid_duration: Some(prost_types::Duration {
                seconds: 10,
                nanos: 0,
            }),
            valid_use_count: uses,
            referenced_attributes: Some(ReferencedAttributes {
                words: encoder.into_words(),
                attribute_matches,
            }),
            route_directive: None,
        }),
        ..Default::default()
    }
}

async fn check(client: &Rc<Client>, record: Rc<Record>, quotas: Vec<Requirement>) -> Outcome {
    let policy = client.transport.fail_policy.clone();
    match client.check(&record, quotas, &policy) {
        Check::Done(outcome) => outcome,
        Check::Wait(answer) => answer.await,
    }
}

fn local<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

#[test]
fn an_answer_is_used_again_for_requests_that_agree() {
    local(async {
        let (client, mixer) = client(|_| {});
        mixer.answers.borrow_mut().extend([
            Ok(answer(Code::Ok, 2)),
            Ok(answer(Code::PermissionDenied, 100)),
            Ok(answer(Code::Ok, -1)),
            Ok(answer(Code::Ok, -1)),
        ]);
        assert!(check(&client, record("a"), vec![]).await.is_ok());
        assert!(check(&client, record("a"), vec![]).await.check_cache_hit);
        // Another path makes no difference, another header value or user does.
        let mut other = Record::clone(&record("a"));
        other.set_text(PATH, "/other");
        assert!(
            check(&client, Rc::new(other.clone()), vec![])
                .await
                .check_cache_hit
        );
        let denied = check(&client, record("b"), vec![]).await;
        assert_eq!(denied.body(), "PERMISSION_DENIED:why");
        assert_eq!(denied.http_status(), 403);
        assert!(check(&client, record("b"), vec![]).await.check_cache_hit);
        // The two uses are up.
        assert!(!check(&client, record("a"), vec![]).await.check_cache_hit);
        assert!(check(&client, record("a"), vec![]).await.check_cache_hit);
        // A header that was not there is now.
        other.set_map(HEADERS, |entries| {
            entries.push("x-a", b"1");
            entries.push("x-c", b"3");
        });
        assert!(!check(&client, Rc::new(other), vec![]).await.check_cache_hit);
        assert_eq!(mixer.checks.borrow().len(), 4);
        tokio::time::advance(Duration::from_secs(11)).await;
        assert!(!check(&client, record("a"), vec![]).await.check_cache_hit);
        assert_eq!(mixer.checks.borrow().len(), 5);
        assert_eq!(client.stats.total_check_calls.value(), 9);
        assert_eq!(client.stats.total_check_cache_hits.value(), 4);
        assert_eq!(client.stats.total_check_cache_hit_denies.value(), 1);
        assert_eq!(client.stats.total_remote_check_denies.value(), 1);
    });
}

#[test]
fn an_answer_that_depended_on_a_pattern_is_not_used_again() {
    local(async {
        let (client, mixer) = client(|_| {});
        for _ in 0..2 {
            let mut answer = answer(Code::Ok, 100);
            let precondition = answer.precondition.as_mut().unwrap();
            let referenced = precondition.referenced_attributes.as_mut().unwrap();
            referenced.attribute_matches[0].condition = Condition::Regex.into();
            mixer.answers.borrow_mut().push_back(Ok(answer));
            let outcome = check(&client, record("a"), vec![]).await;
            assert!(outcome.is_ok() && !outcome.check_cache_hit);
        }
        assert_eq!(mixer.checks.borrow().len(), 2);
    });
}

#[test]
fn without_a_cache_every_request_is_asked_about() {
    local(async {
        let (client, mixer) = client(|config| config.disable_check_cache = true);
        mixer
            .answers
            .borrow_mut()
            .extend([Ok(answer(Code::Ok, 100)), Ok(answer(Code::Ok, 100))]);
        assert!(check(&client, record("a"), vec![]).await.is_ok());
        assert!(!check(&client, record("a"), vec![]).await.check_cache_hit);
        let ids: Vec<_> = mixer
            .checks
            .borrow()
            .iter()
            .map(|c| c.deduplication_id.clone())
            .collect();
        assert_ne!(ids[0], ids[1]);
        let request = mixer.checks.borrow()[0].clone();
        let sent = request.attributes.unwrap();
        let decoded = codec::decode(&sent, Words::new(&sent.words)).unwrap();
        assert_eq!(decoded.get_string("source.user"), Some("a"));
        assert_eq!(request.global_word_count, 222);
    });
}

#[test]
fn without_mixer_the_policy_decides() {
    local(async {
        let (open, _) = client(|_| {});
        assert!(check(&open, record("a"), vec![]).await.is_ok());
        let (closed, mixer) = client(|config| {
            let policy = wire::NetworkFailPolicy {
                policy: 1,
                max_retry: 2,
                ..Default::default()
            };
            config.network_fail_policy = Some(policy);
        });
        let refused = check(&closed, record("a"), vec![]).await;
        assert_eq!(refused.http_status(), 503);
        assert_eq!(
            refused.body(),
            "UNAVAILABLE:the policy check could not be made: no answer"
        );
        assert_eq!(mixer.checks.borrow().len(), 3);
        assert_eq!(closed.stats.total_remote_call_retries.value(), 2);
        let ids: Vec<_> = mixer
            .checks
            .borrow()
            .iter()
            .map(|c| c.deduplication_id.clone())
            .collect();
        assert!(ids.iter().all(|id| *id == ids[0]));
        // Mixer's own failure is not retried, and passes only where the network's would.
        let internal = || {
            Err(CallError {
                code: Code::Internal,
                message: "x".into(),
                is_transport: false,
            })
        };
        mixer.answers.borrow_mut().push_back(internal());
        assert_eq!(check(&closed, record("a"), vec![]).await.http_status(), 500);
        assert_eq!(mixer.checks.borrow().len(), 4);
        mixer
            .answers
            .borrow_mut()
            .push_back(Ok(CheckResponse::default()));
        assert_eq!(check(&closed, record("a"), vec![]).await.http_status(), 400);
    });
}

#[test]
fn a_mixer_that_does_not_answer_is_left_alone() {
    local(async {
        let (client, mixer) = client(|_| {});
        for _ in 0..8 {
            assert!(check(&client, record("a"), vec![]).await.is_ok());
        }
        assert_eq!(mixer.checks.borrow().len(), 5);
        assert_eq!(client.stats.total_circuit_breaker_opened.value(), 1);
        assert_eq!(client.stats.total_remote_call_broken.value(), 3);
        assert_eq!(client.stats.total_check_fail_open.value(), 8);
        tokio::time::advance(Duration::from_secs(1)).await;
        mixer
            .answers
            .borrow_mut()
            .push_back(Ok(answer(Code::Ok, 1)));
        check(&client, record("b"), vec![]).await;
        check(&client, record("c"), vec![]).await;
        assert_eq!(mixer.checks.borrow().len(), 7);
    });
}

#[test]
fn reports_wait_for_a_mixer_that_is_away() {
    local(async {
        let (client, mixer) = client(|config| config.disable_report_batch = true);
        mixer.away.set(3);
        client.report(&record("a"));
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(mixer.reports.borrow().len(), 4);
        assert_eq!(client.stats.total_remote_report_successes.value(), 1);
        assert_eq!(client.stats.total_report_dropped.value(), 0);
        // It stays away: what does not fit is dropped at once, the rest in the end.
        mixer.away.set(usize::MAX);
        for _ in 0..100 {
            client.report(&record("a"));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(client.stats.total_report_dropped.value(), 36);
        tokio::time::sleep(Duration::from_secs(300)).await;
        assert_eq!(client.stats.total_report_dropped.value(), 100);
        assert_eq!(client.reports_in_flight.get(), (0, 0));
    });
}

#[test]
fn a_server_of_the_first_days_gets_the_base_words_only() {
    local(async {
        let (client, mixer) = client(|_| {});
        let message = "Request could not be processed due to invalid attributes".to_owned();
        mixer.answers.borrow_mut().push_back(Err(CallError {
            code: Code::InvalidArgument,
            message,
            is_transport: false,
        }));
        check(&client, record("a"), vec![]).await;
        check(&client, record("a"), vec![]).await;
        let counts: Vec<_> = mixer
            .checks
            .borrow()
            .iter()
            .map(|c| c.global_word_count)
            .collect();
        assert_eq!(counts, [222, 111]);
    });
}

#[test]
fn quotas_are_asked_for_then_fetched_ahead() {
    local(async {
        let (client, mixer) = client(|_| {});
        let quota = || {
            vec![Requirement {
                name: "rps".into(),
                amount: 1,
            }]
        };
        let with = |granted: i64| {
            let mut answer = answer(Code::Ok, 1000);
            let result = QuotaResult {
                granted_amount: granted,
                valid_duration: Some(prost_types::Duration {
                    seconds: 1,
                    nanos: 0,
                }),
                referenced_attributes: answer
                    .precondition
                    .as_ref()
                    .unwrap()
                    .referenced_attributes
                    .clone(),
                ..Default::default()
            };
            answer.quotas.insert("rps".into(), result);
            Ok(answer)
        };
        mixer.answers.borrow_mut().extend([with(1), with(3)]);
        let first = check(&client, record("a"), quota()).await;
        assert!(first.is_ok() && !first.quota_cache_hit);
        assert!(!mixer.checks.borrow()[0].quotas["rps"].best_effort);
        // On credit, while ten are fetched ahead; three are granted, of which one is used already.
        let second = check(&client, record("a"), quota()).await;
        assert!(second.is_ok() && second.quota_cache_hit && second.check_cache_hit);
        tokio::time::sleep(Duration::from_millis(1)).await;
        let fetched = mixer.checks.borrow()[1].quotas["rps"];
        assert!(fetched.best_effort && fetched.amount == 10);
        for _ in 0..2 {
            assert!(check(&client, record("a"), quota()).await.is_ok());
        }
        let exhausted = check(&client, record("a"), quota()).await;
        assert_eq!(exhausted.http_status(), 429);
        assert_eq!(
            exhausted.body(),
            "RESOURCE_EXHAUSTED:Quota is exhausted for: rps"
        );
        assert_eq!(mixer.checks.borrow().len(), 2);
        // After a pause it is tried again, and Mixer's absence lets requests pass.
        tokio::time::advance(Duration::from_millis(600)).await;
        check(&client, record("a"), quota()).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(mixer.checks.borrow().len(), 3);
        assert!(check(&client, record("a"), quota()).await.is_ok());
    });
}

#[test]
fn a_quota_that_is_not_granted_refuses() {
    local(async {
        let (client, mixer) = client(|_| {});
        let mut refused = answer(Code::Ok, 1000);
        refused.quotas.insert("rps".into(), QuotaResult::default());
        mixer.answers.borrow_mut().push_back(Ok(refused));
        let quota = vec![Requirement {
            name: "rps".into(),
            amount: 5,
        }];
        assert_eq!(check(&client, record("a"), quota).await.http_status(), 429);
        assert_eq!(client.stats.total_remote_quota_denies.value(), 1);
    });
}

#[test]
fn reports_are_sent_together() {
    local(async {
        let (client, mixer) = client(|config| config.report_batch_max_entries = 3);
        client.report(&record("a"));
        tokio::time::sleep(Duration::from_millis(900)).await;
        assert!(mixer.reports.borrow().is_empty());
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(mixer.reports.borrow().len(), 1);
        for _ in 0..3 {
            client.report(&record("b"));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        let reports = mixer.reports.borrow();
        assert_eq!(reports.len(), 2);
        let batch = &reports[1];
        assert_eq!(batch.attributes.len(), 3);
        assert_eq!(batch.repeated_attributes_semantics, 1);
        assert!(batch.attributes.iter().all(|set| set.words.is_empty()));
        let set = codec::decode(&batch.attributes[2], Words::new(&batch.default_words)).unwrap();
        assert_eq!(set.get_string("source.user"), Some("b"));
        assert_eq!(client.stats.total_report_calls.value(), 4);
        assert_eq!(client.stats.total_remote_report_successes.value(), 2);
    });
}

#[test]
fn a_batch_of_much_text_is_sent_before_it_has_many_entries() {
    local(async {
        let (client, mixer) = client(|_| {});
        let mut large = Record::clone(&record("a"));
        for number in 0..3 {
            large.set_text(PATH, &format!("{number}{}", "x".repeat(200 << 10)));
            assert!(mixer.reports.borrow().is_empty());
            client.report(&large);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(mixer.reports.borrow()[0].attributes.len(), 3);
    });
}

#[test]
fn without_batches_reports_are_sent_at_once() {
    local(async {
        let (client, mixer) = client(|config| config.disable_report_batch = true);
        client.report(&record("a"));
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(mixer.reports.borrow().len(), 1);
    });
}
