//! Asking Mixer: the request, its retries, what the answer leaves in the caches.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use proto::istio::mixer::v1::check_request::QuotaParams;
use proto::istio::mixer::v1::check_response::QuotaResult;
use proto::istio::mixer::v1::{CheckRequest, CheckResponse};
use proto_mesh::attribute::record::Record;
use proto_mesh::attribute::{codec, dictionary};
use tokio::time::Instant;
use tonic::Code;

use super::Client;
use super::call::{self, CallError};
use super::config::FailPolicy;
use super::outcome::{Outcome, status};
use super::quota_cache::{Granted, Prefetch};
use super::quota_spec::Requirement;

const TRY_TIMEOUT: Duration = Duration::from_secs(5);
/// Tries of a report, over about a minute.
const REPORT_TRIES: u32 = 16;
const REPORT_POLICY: FailPolicy = FailPolicy {
    is_open: true,
    retries: REPORT_TRIES,
    base_wait: Duration::from_millis(250),
    max_wait: Duration::from_secs(8),
};
const CHECK: &str = "/istio.mixer.v1.Mixer/Check";
const REPORT: &str = "/istio.mixer.v1.Mixer/Report";
/// How a server of the first days says that it does not know all our words.
const OLD_SERVER: &str = "Request could not be processed due to invalid";

impl Client {
    /// Asks whether the request may pass and for its quotas.
    pub(super) async fn ask(
        self: Rc<Self>,
        record: Rc<Record>,
        quotas: Vec<Requirement>,
        policy: &FailPolicy,
    ) -> Outcome {
        self.stats.total_remote_check_calls.inc();
        if !quotas.is_empty() {
            self.stats.total_quota_calls.add(quotas.len() as u64);
            self.stats.total_quota_cache_misses.add(quotas.len() as u64);
            self.stats.total_remote_quota_calls.add(quotas.len() as u64);
        }
        let params = quotas.iter().map(|quota| {
            let params = QuotaParams {
                amount: quota.amount,
                best_effort: false,
            };
            (quota.name.to_string(), params)
        });
        let request = self.request(&record, params.collect());
        let outcome = match self.check_call(&request, policy).await {
            Ok(response) => self.read(&record, &quotas, response, policy),
            Err(error) => {
                if error.code == Code::InvalidArgument && error.message.starts_with(OLD_SERVER) {
                    self.words.set(dictionary::BASE_WORDS);
                }
                tracing::debug!(target: "mixer", %error, is_open = policy.is_open, "a check has no answer");
                self.without_answer(&error, policy)
            }
        };
        if outcome.is_ok() {
            self.stats.total_remote_check_accepts.inc();
        } else {
            self.stats.total_remote_check_denies.inc();
        }
        outcome
    }

    /// What becomes of a request that nobody has judged.
    fn without_answer(&self, error: &CallError, policy: &FailPolicy) -> Outcome {
        if policy.is_open {
            self.stats.total_check_fail_open.inc();
            return Outcome::without(status(Code::Ok, ""));
        }
        self.stats.total_check_fail_close.inc();
        if error.is_transport {
            // 503, and a body that says why: the request itself may be a good one.
            let message = format!("the policy check could not be made: {}", error.message);
            return Outcome::without(status(Code::Unavailable, message));
        }
        Outcome::without(status(error.code, error.message.clone()))
    }

    fn read(
        &self,
        record: &Record,
        quotas: &[Requirement],
        mut response: CheckResponse,
        policy: &FailPolicy,
    ) -> Outcome {
        let Some(precondition) = response.precondition.take() else {
            return Outcome::without(status(
                Code::InvalidArgument,
                "the answer has no precondition",
            ));
        };
        let mut answer = precondition;
        let code = answer.status.as_ref().map_or(0, |status| status.code);
        if code == Code::Internal as i32 && policy.is_open {
            answer.status = Some(status(Code::Ok, ""));
        }
        let answer = Rc::new(answer);
        self.checks
            .borrow_mut()
            .put(record, &answer, Instant::now());
        let mut outcome = Outcome::new(&answer, false);
        if outcome.is_ok() {
            let is_refused =
                |quota: &&Requirement| !is_granted(response.quotas.get(quota.name.as_ref()));
            let exhausted: Vec<_> = quotas
                .iter()
                .filter(is_refused)
                .map(|quota| quota.name.to_string())
                .collect();
            self.stats
                .total_remote_quota_denies
                .add(exhausted.len() as u64);
            self.stats
                .total_remote_quota_accepts
                .add((quotas.len() - exhausted.len()) as u64);
            outcome.exhausted(&exhausted);
        }
        outcome
    }

    /// Fetches an amount ahead; nobody waits for it.
    pub(super) async fn prefetch(self: Rc<Self>, record: &Record, prefetch: Prefetch) {
        let name = prefetch.name.to_string();
        let params = QuotaParams {
            amount: prefetch.amount,
            best_effort: true,
        };
        let request = self.request(record, [(name.clone(), params)].into());
        let result = match self.check_call(&request, &self.transport.fail_policy).await {
            Ok(mut response) => response.quotas.remove(&name),
            Err(error) => {
                tracing::debug!(target: "mixer", %error, quota = name, "a quota could not be fetched");
                None
            }
        };
        let granted = result.as_ref().map(|result| Granted {
            amount: result.granted_amount,
            valid: result
                .valid_duration
                .and_then(|valid| Duration::try_from(valid).ok())
                .unwrap_or_default(),
        });
        let referenced = result
            .as_ref()
            .and_then(|result| result.referenced_attributes.as_ref());
        self.quotas
            .borrow_mut()
            .answered(&prefetch, granted, referenced, record, Instant::now());
    }

    fn request(
        &self,
        record: &Record,
        quotas: std::collections::BTreeMap<String, QuotaParams>,
    ) -> CheckRequest {
        let words = self.words.get();
        CheckRequest {
            attributes: Some(codec::encode_all(record.iter(), words)),
            global_word_count: u32::try_from(words).unwrap_or(u32::MAX),
            // The same for every retry: Mixer charges quotas once.
            deduplication_id: self.next_call_id(),
            quotas,
        }
    }

    async fn check_call(
        &self,
        request: &CheckRequest,
        policy: &FailPolicy,
    ) -> Result<CheckResponse, CallError> {
        let message = call::frame(|buffer| buffer.extend_from_slice(&request.encode_to_vec()));
        let mut attempt = 0;
        loop {
            if !self.breaker.admits(Instant::now()) {
                self.stats.total_remote_call_broken.inc();
                return Err(CallError::transport(
                    "Mixer has not answered for a while and is left alone",
                ));
            }
            self.stats.total_remote_calls.inc();
            let call = self
                .remote
                .call(&self.transport.check_cluster, CHECK, message.clone());
            let answered = tokio::time::timeout(TRY_TIMEOUT, call).await;
            let error = match answered.unwrap_or_else(|_| Err(CallError::timeout(TRY_TIMEOUT))) {
                Ok(bytes) => {
                    self.breaker.succeeded();
                    self.stats.total_remote_call_successes.inc();
                    return CheckResponse::decode(bytes)
                        .map_err(|error| CallError::transport(error.to_string()));
                }
                Err(error) => error,
            };
            self.count_failure(&error);
            if !error.is_transport {
                self.breaker.succeeded();
            } else if self.breaker.failed(Instant::now(), self.remote.random()) {
                self.stats.total_circuit_breaker_opened.inc();
                tracing::warn!(target: "mixer", %error, "Mixer does not answer; it is asked again now and then");
            }
            attempt += 1;
            let is_worth_it = error.is_transport || error.code == Code::Unavailable;
            if !is_worth_it || attempt > policy.retries {
                return Err(error);
            }
            self.stats.total_remote_call_retries.inc();
            tokio::time::sleep(policy.wait(attempt, self.remote.random())).await;
        }
    }

    fn count_failure(&self, error: &CallError) {
        match (error.is_transport, error.code) {
            (true, Code::DeadlineExceeded) => self.stats.total_remote_call_timeouts.inc(),
            (true, _) => self.stats.total_remote_call_send_errors.inc(),
            (false, Code::Cancelled) => self.stats.total_remote_call_cancellations.inc(),
            (false, _) => self.stats.total_remote_call_other_errors.inc(),
        }
    }

    /// Sends a batch. While Mixer is away it is tried again, with growing pauses; the batch waits in memory, within bounds.
    pub(super) async fn send_report(&self, entries: usize, message: Bytes) {
        for attempt in 1..=REPORT_TRIES {
            self.stats.total_remote_report_calls.inc();
            let call = self
                .remote
                .call(&self.transport.report_cluster, REPORT, message.clone());
            let answered = tokio::time::timeout(TRY_TIMEOUT, call).await;
            let answered = answered.unwrap_or_else(|_| Err(CallError::timeout(TRY_TIMEOUT)));
            let Err(error) = answered else {
                self.stats.total_remote_report_successes.inc();
                return;
            };
            match (error.is_transport, error.code) {
                (true, Code::DeadlineExceeded) => self.stats.total_remote_report_timeouts.inc(),
                (true, _) => self.stats.total_remote_report_send_errors.inc(),
                (false, _) => self.stats.total_remote_report_other_errors.inc(),
            }
            // What Mixer has seen it has counted, except where it was too busy.
            let is_away = error.is_transport && error.code != Code::DeadlineExceeded;
            let is_worth_it = is_away || error.code == Code::Unavailable;
            if !is_worth_it || attempt == REPORT_TRIES {
                tracing::debug!(target: "mixer", %error, entries, "a report was lost");
                break;
            }
            self.stats.total_remote_report_retries.inc();
            tokio::time::sleep(REPORT_POLICY.wait(attempt, self.remote.random())).await;
        }
        self.stats.total_report_dropped.add(entries as u64);
    }
}

/// A quota passes when something was granted, or when nobody could say.
fn is_granted(result: Option<&QuotaResult>) -> bool {
    result.is_none_or(|result| {
        let code = result.status.as_ref().map_or(0, |status| status.code);
        result.granted_amount > 0 || code == Code::Unavailable as i32
    })
}
