//! The client of Mixer: asks before a request is let through (Check), tells what became of it (Report).
//!
//! filter → [`Client::check`]: [`check_cache`] → [`quota_cache`] → [`breaker`] → [`call`] (through the worker's own clusters) →
//! outcome;
//! filter → [`Client::report`]: [`batch`], sent when it is full or old. [`config`] is what the filters are told;
//! [`quota_spec`] which quotas a request costs; [`referenced`] what an answer depended on.
//!
//! Every worker has a client of its own for each transport configuration: nothing is shared, nothing is locked.

mod batch;
mod breaker;
mod call;
mod check_cache;
pub(crate) mod config;
mod outcome;
mod quota_cache;
pub(crate) mod quota_spec;
mod referenced;
mod remote;
mod stats;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use futures::future::LocalBoxFuture;
use proto_mesh::attribute::record::{Base, Record};
use proto_mesh::attribute::word::Vocabulary;
use proto_mesh::attribute::{Attributes, dictionary};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::worker::Worker;
use batch::Batch;
use breaker::Breaker;
use check_cache::CheckCache;
use config::{FailPolicy, Transport};
use quota_cache::QuotaCache;
use quota_spec::Requirement;

pub(crate) use outcome::Outcome;
pub(crate) use stats::{FilterKind, Stats};

/// A worker has no more clients than this; the oldest makes room. There is one for each distinct transport configuration.
const MAX_CLIENTS: usize = 16;

/// Records that are kept for requests to come.
const MAX_RECORDS: usize = 256;

thread_local! {
    /// The clients of this thread's worker.
    static CLIENTS: RefCell<Vec<Rc<Client>>> = const { RefCell::new(Vec::new()) };
}

/// One worker's client.
pub(crate) struct Client {
    transport: Arc<Transport>,
    kind: FilterKind,
    remote: Rc<dyn call::Remote>,
    stats: Arc<Stats>,
    breaker: Breaker,
    checks: RefCell<CheckCache>,
    quotas: RefCell<QuotaCache>,
    batch: RefCell<Batch>,
    /// Told when the batch is full.
    full: Notify,
    /// Told when the batch has got its first entry.
    begun: Notify,
    /// How many words of the dictionary the server knows.
    words: Cell<usize>,
    /// Names this client's calls.
    id: uuid::Uuid,
    calls: Cell<u64>,
    /// Batches on their way, and their size in bytes.
    reports_in_flight: Cell<(usize, usize)>,
    /// The words of all records.
    vocabulary: Rc<Vocabulary>,
    /// For requests to come.
    records: RefCell<Vec<Rc<Record>>>,
    /// Another client has taken its place.
    is_closed: Cell<bool>,
}

/// How a check begins.
pub(crate) enum Check {
    /// The answer was at hand.
    Done(Outcome),
    /// Mixer is asked.
    Wait(LocalBoxFuture<'static, Outcome>),
}

impl Client {
    /// The worker's client for a transport configuration.
    pub(crate) fn of(
        worker: &Rc<Worker>,
        transport: &Arc<Transport>,
        kind: FilterKind,
    ) -> Rc<Self> {
        CLIENTS.with_borrow_mut(|clients| {
            let known = clients.iter().find(|client| {
                client.kind == kind
                    && (Arc::ptr_eq(&client.transport, transport) || client.transport == *transport)
            });
            if let Some(client) = known {
                return client.clone();
            }
            let stats = worker.server.stats.scope(kind.scope()).group();
            let remote = Rc::new(call::WorkerRemote::new(worker));
            let client = Self::new(transport.clone(), kind, remote, stats);
            batch::start(&client, &worker.server.drain);
            if clients.len() >= MAX_CLIENTS {
                let oldest = clients.remove(0);
                oldest.is_closed.set(true);
                oldest.full.notify_one();
            }
            clients.push(client.clone());
            client
        })
    }

    fn new(
        transport: Arc<Transport>,
        kind: FilterKind,
        remote: Rc<dyn call::Remote>,
        stats: Arc<Stats>,
    ) -> Rc<Self> {
        Rc::new(Self {
            breaker: Breaker::default(),
            checks: RefCell::new(CheckCache::new(!transport.disable_check_cache)),
            quotas: RefCell::default(),
            batch: RefCell::new(Batch::new()),
            full: Notify::new(),
            begun: Notify::new(),
            words: Cell::new(dictionary::WORDS.len()),
            id: uuid::Uuid::new_v4(),
            calls: Cell::new(0),
            reports_in_flight: Cell::new((0, 0)),
            vocabulary: Rc::default(),
            records: RefCell::default(),
            is_closed: Cell::new(false),
            transport,
            kind,
            remote,
            stats,
        })
    }

    /// Whether such a request may pass. What it costs in quotas is charged.
    pub(crate) fn check(
        self: &Rc<Self>,
        record: &Rc<Record>,
        quotas: Vec<Requirement>,
        policy: &FailPolicy,
    ) -> Check {
        let now = Instant::now();
        self.stats.total_check_calls.inc();
        let cached = self.checks.borrow_mut().get(record, now);
        let Some(answer) = cached else {
            self.stats.total_check_cache_misses.inc();
            return self.wait(record, quotas, policy);
        };
        self.stats.total_check_cache_hits.inc();
        let mut outcome = Outcome::new(&answer, true);
        if !outcome.is_ok() {
            self.stats.total_check_cache_hit_denies.inc();
            return Check::Done(outcome);
        }
        self.stats.total_check_cache_hit_accepts.inc();
        if quotas.is_empty() {
            return Check::Done(outcome);
        }
        if self.transport.disable_quota_cache {
            return self.wait(record, quotas, policy);
        }
        outcome.quota_cache_hit = true;
        outcome.exhausted(&self.charge(record, &quotas, now));
        Check::Done(outcome)
    }

    fn wait(
        self: &Rc<Self>,
        record: &Rc<Record>,
        quotas: Vec<Requirement>,
        policy: &FailPolicy,
    ) -> Check {
        let (client, record, policy) = (self.clone(), record.clone(), policy.clone());
        Check::Wait(Box::pin(async move {
            client.ask(record, quotas, &policy).await
        }))
    }

    /// Charges quotas from the cache, and fetches more ahead; names of those that are exhausted.
    fn charge(
        self: &Rc<Self>,
        record: &Rc<Record>,
        quotas: &[Requirement],
        now: Instant,
    ) -> Vec<String> {
        let mut exhausted = Vec::new();
        for quota in quotas {
            self.stats.total_quota_calls.inc();
            let decision = self.quotas.borrow_mut().charge(quota, record, now);
            self.stats.total_quota_cache_hits.inc();
            if decision.is_granted {
                self.stats.total_quota_cache_hit_accepts.inc();
            } else {
                self.stats.total_quota_cache_hit_denies.inc();
                exhausted.push(quota.name.to_string());
            }
            if let Some(fetch) = decision.prefetch {
                self.stats.total_remote_quota_prefetch_calls.inc();
                let (client, record) = (self.clone(), record.clone());
                tokio::task::spawn_local(async move { client.prefetch(&record, fetch).await });
            }
        }
        exhausted
    }

    /// Tells Mixer of something that is over. Sent some time later, with others.
    pub(crate) fn report(&self, record: &Record) {
        self.stats.total_report_calls.inc();
        let mut batch = self.batch.borrow_mut();
        let length = batch.add(record, self.words.get());
        let is_full = length >= self.transport.batch_entries || batch.is_large();
        if self.transport.disable_report_batch || is_full {
            self.full.notify_one();
        } else if length == 1 {
            self.begun.notify_one();
        }
    }

    /// What many records share.
    pub(crate) fn base(&self, attributes: &Attributes) -> Rc<Base> {
        Base::new(attributes, &self.vocabulary)
    }

    /// An empty record on `base`.
    pub(crate) fn record(&self, base: &Rc<Base>) -> Rc<Record> {
        let Some(mut record) = self.records.borrow_mut().pop() else {
            return Rc::new(Record::new(base.clone()));
        };
        // Nobody else has it, or it would not be here.
        Rc::make_mut(&mut record).reset(base.clone());
        record
    }

    /// Takes back a record that is no longer needed, for another request.
    pub(crate) fn recycle(&self, mut record: Rc<Record>) {
        let mut records = self.records.borrow_mut();
        if records.len() < MAX_RECORDS
            && let Some(unshared) = Rc::get_mut(&mut record)
            && unshared.is_small()
        {
            // Words that nobody else has go at once.
            unshared.clear();
            records.push(record);
        }
    }

    /// Whether another client has taken its place.
    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.get()
    }

    /// An id that no other call has.
    fn next_call_id(&self) -> String {
        self.calls.set(self.calls.get() + 1);
        format!("{}{}", self.id, self.calls.get())
    }
}
