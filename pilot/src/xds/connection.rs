//! One connected proxy: its node, its subscriptions, and the push that waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::ResourceType;
use super::push::PushRequest;
use super::resource_type::TYPES;
use super::watch::Watched;
use crate::model::Proxy;

/// One stream's proxy.
#[derive(Debug)]
pub struct Connection {
    /// Node id and a counter.
    pub id: String,
    /// The proxy.
    pub proxy: Proxy,
    /// Increments instead of the state of the world.
    pub is_delta: bool,
    /// When it came.
    pub since: SystemTime,
    /// By [`ResourceType::index`]; none: never asked for.
    pub watches: Mutex<[Option<Watched>; TYPES]>,
    /// Version of the push context that was pushed last.
    pushed: AtomicU64,
    pending: Mutex<Option<PushRequest>>,
    arrived: Notify,
}

impl Connection {
    /// A connection that has asked for nothing yet.
    #[must_use]
    pub fn new(id: String, proxy: Proxy, is_delta: bool) -> Arc<Self> {
        Arc::new(Connection {
            id,
            proxy,
            is_delta,
            since: SystemTime::now(),
            watches: Mutex::default(),
            pushed: AtomicU64::new(0),
            pending: Mutex::default(),
            arrived: Notify::new(),
        })
    }

    /// Notes which push context was pushed.
    pub(super) fn set_pushed(&self, version: u64) {
        self.pushed.store(version, Ordering::Relaxed);
    }

    /// Version of the push context that was pushed last.
    #[must_use]
    pub fn pushed(&self) -> u64 {
        self.pushed.load(Ordering::Relaxed)
    }

    /// Asks for a push; several that wait are one.
    pub fn enqueue(&self, request: &PushRequest) {
        let mut pending = self.pending.lock();
        match pending.as_mut() {
            Some(waiting) => waiting.merge(request),
            None => *pending = Some(request.clone()),
        }
        drop(pending);
        self.arrived.notify_one();
    }

    /// The next push.
    pub async fn next_push(&self) -> PushRequest {
        loop {
            if let Some(request) = self.pending.lock().take() {
                return request;
            }
            self.arrived.notified().await;
        }
    }

    /// True for a stream of an agent's own (names, bootstrap, health): its proxy has another one.
    #[must_use]
    pub fn is_agent(&self) -> bool {
        let watches = self.watches.lock();
        let mut of_proxies = ResourceType::ALL
            .iter()
            .filter(|kind| !kind.is_for_agents());
        of_proxies.all(|kind| watches[kind.index()].is_none())
    }

    /// A copy of the state of one type.
    #[must_use]
    pub fn watched(&self, kind: ResourceType) -> Option<Watched> {
        self.watches.lock()[kind.index()].clone()
    }
}
