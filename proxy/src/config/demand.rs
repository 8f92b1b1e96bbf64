//! Resources that requests ask for by name, and wait for: clusters (ODCDS) and virtual hosts (VHDS).
//!
//! A worker asks ([`Demand::ask`]) and waits with a time limit of its own; the task of [`ConfigStore::run_demand`] puts the name
//! into what is wanted of its source; the store tells what came of it ([`Demand::found`], [`Demand::gone`]). What was found stays
//! asked for, so that it is followed; what is not there is forgotten, and asked for anew by the next request.
//!
//! Clients choose names, so there is a bound on those without an answer, and a wide one on all: many names may stand for one virtual
//! host.
//!
//! [`ConfigStore::run_demand`]: super::ConfigStore::run_demand

use super::{Key, Kind, Names};
use crate::{invalid::Invalid, table::Table, upstream::ClusterManager, xds::Source};
use parking_lot::Mutex;
use proto::envoy::config::core::v3::ConfigSource;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, futures::Notified, watch},
    time::Instant,
};

/// Kinds that are asked for on demand.
const KINDS: [Kind; 2] = [Kind::OnDemandCluster, Kind::VirtualHost];
/// Names of a source without an answer; one more is not asked for.
const MAX_UNANSWERED: usize = 4096;
/// Names of a source in all.
const MAX_NAMES: usize = 65_536;
/// Bytes of all names of a source: they go in one message when a stream begins, and servers take no more than 4 MiB as a rule.
const MAX_BYTES: usize = 2 << 20;
/// A longer name is not asked for.
const MAX_NAME: usize = 1024;
/// So often a source that is full looks for names that nobody waits for any more.
const LOOK: Duration = Duration::from_secs(1);

/// What requests ask for.
#[derive(Default)]
pub(crate) struct Demand {
    subscriptions: Mutex<BTreeMap<Key, Subscription>>,
    changed: Notify,
    is_ads_delta: OnceLock<bool>,
    is_refusal_told: AtomicBool,
}

/// Where a kind of resources is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DemandSource(Key);

/// What is asked of one source.
#[derive(Default)]
struct Subscription {
    /// As [`Names::Demanded`] has it.
    names: Table<u32>,
    asked: HashMap<Arc<str>, Asked>,
    unanswered: usize,
    /// Bytes of the names.
    bytes: usize,
    /// The number of the newest name.
    newest: u32,
    /// When it was full and looked what it can do without.
    looked: Option<Instant>,
}

/// A name that requests have asked for.
struct Asked {
    answer: watch::Sender<Answer>,
    /// The resource that it stands for, if that has another name.
    resource: Option<Arc<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Awaited,
    Found,
    Gone,
}

/// A name that was asked for.
pub(crate) struct Asking(watch::Receiver<Answer>);

/// What came of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// It is in force.
    Yes,
    /// There is none, says its server; or too much was asked for.
    No,
    /// Nothing was said in time.
    TooLate,
}

impl DemandSource {
    /// Where clusters are asked for.
    pub(crate) fn clusters(wire: &ConfigSource) -> Result<Self, Invalid> {
        Self::new(wire, |source| Key::of(Kind::OnDemandCluster, source))
    }

    /// Where virtual hosts of a route configuration are asked for.
    pub(crate) fn virtual_hosts(wire: &ConfigSource, table: &str) -> Result<Self, Invalid> {
        Self::new(wire, |source| {
            Key::for_name(Kind::VirtualHost, source, &table.into())
        })
    }

    /// Only delta can say that there is nothing of a name.
    fn new(wire: &ConfigSource, key: impl FnOnce(Source) -> Key) -> Result<Self, Invalid> {
        let source = Source::try_from(wire)?;
        match &source {
            Source::Grpc(grpc) if grpc.is_delta => {}
            Source::Ads => {}
            Source::Grpc(_) | Source::File(_) => {
                return Err(Invalid::new(
                    "only DELTA_GRPC and ADS can be asked on demand",
                ));
            }
        }
        Ok(Self(key(source)))
    }

    /// The subscription.
    pub(super) fn key(&self) -> &Key {
        &self.0
    }
}

impl Demand {
    /// Tells whether the ADS stream, if there is one, speaks delta.
    pub(crate) fn set_ads(&self, is_delta: bool) {
        // A process has one bootstrap.
        let _ = self.is_ads_delta.set(is_delta);
    }

    /// Refuses ADS where its stream does not speak delta.
    pub(crate) fn check(&self, source: &DemandSource) -> Result<(), Invalid> {
        if source.0.source == Source::Ads && !self.is_ads_delta.get().is_some_and(|is| *is) {
            return Err(Invalid::new("ADS must be DELTA_GRPC to be asked on demand"));
        }
        Ok(())
    }

    /// Asks for `name`, unless it is too long, or too many are asked for. Whoever asks looks once more whether it is there: it may have
    /// come before it was asked for.
    pub(crate) fn ask(&self, source: &DemandSource, name: &str) -> Option<Asking> {
        if let Err(error) = self.check(source) {
            // A route may say so, which nobody checks before; once is enough, as every request asks.
            if !self.is_refusal_told.swap(true, Relaxed) {
                tracing::error!(target: "config", name, %error, "cannot ask on demand");
            }
            return None;
        }
        let mut subscriptions = self.subscriptions.lock();
        let subscription = subscriptions.entry(source.0.clone()).or_default();
        let asked = subscription.asked.get(name);
        if let Some(asked) = asked {
            return Some(Asking(asked.answer.subscribe()));
        }
        if name.len() > MAX_NAME || !subscription.has_room() {
            return None;
        }
        let asking = subscription.ask(name);
        drop(subscriptions);
        self.changed.notify_one();
        Some(asking)
    }

    /// Asks for the cluster called `name` and waits until it is in force, but no longer than `limit`.
    pub(crate) fn find_cluster(
        &self,
        clusters: &ClusterManager,
        source: &DemandSource,
        name: &str,
        limit: Duration,
    ) -> impl Future<Output = Found> + use<> {
        let asking = self.ask(source, name);
        let is_there = clusters.get(name).is_some();
        async move {
            match asking {
                _ if is_there => Found::Yes,
                Some(asking) => asking.answered_within(limit).await,
                None => Found::No,
            }
        }
    }

    /// These of `kind` are in force now.
    pub(super) fn found<'a>(&self, kind: Kind, names: impl Iterator<Item = &'a str>) {
        let mut subscriptions = self.subscriptions.lock();
        let mut of_kind: Vec<&mut Subscription> = of(&mut subscriptions, kind).collect();
        if of_kind.is_empty() {
            return;
        }
        for name in names {
            for subscription in &mut of_kind {
                subscription.answer(name, None);
            }
        }
    }

    /// These names stand for `resource`, which is in force now.
    pub(super) fn found_as(&self, key: &Key, names: &[String], resource: &str) {
        let mut subscriptions = self.subscriptions.lock();
        if let Some(subscription) = subscriptions.get_mut(key) {
            for name in names {
                subscription.answer(name, Some(resource));
            }
        }
    }

    /// Nothing has these names (any more), be they asked for or of what was found.
    pub(super) fn gone_from(&self, key: &Key, names: &HashSet<&str>) {
        let mut subscriptions = self.subscriptions.lock();
        let Some(subscription) = subscriptions.get_mut(key).filter(|_| !names.is_empty()) else {
            return;
        };
        subscription.forget_all(|name, asked| {
            let resource = asked.resource.as_deref();
            names.contains(name) || resource.is_some_and(|resource| names.contains(resource))
        });
        drop(subscriptions);
        self.changed.notify_one();
    }

    /// Virtual hosts of these route configurations are wanted from now on, be they asked for or not, and of no others.
    pub(super) fn keep_tables(&self, wanted: &BTreeMap<Key, BTreeSet<Arc<str>>>) {
        let mut subscriptions = self.subscriptions.lock();
        let before = subscriptions.len();
        let mut has_changed = false;
        subscriptions.retain(|key, subscription| {
            let Some(tables) = wanted.get(key) else {
                return key.kind != Kind::VirtualHost;
            };
            let is_of = |name: &str| {
                name.rsplit_once('/')
                    .is_some_and(|(table, _)| tables.contains(table))
            };
            has_changed |= subscription.forget_all(|name, _| !is_of(name));
            true
        });
        has_changed |= subscriptions.len() != before;
        for key in wanted.keys() {
            subscriptions.entry(key.clone()).or_insert_with(|| {
                has_changed = true;
                Subscription::default()
            });
        }
        drop(subscriptions);
        if has_changed {
            self.changed.notify_one();
        }
    }

    /// There is no `name` of `kind` (any more).
    pub(super) fn gone(&self, kind: Kind, name: &str) {
        let mut subscriptions = self.subscriptions.lock();
        let mut has_changed = false;
        for subscription in of(&mut subscriptions, kind) {
            has_changed |= subscription.forget(name);
        }
        drop(subscriptions);
        if has_changed {
            self.changed.notify_one();
        }
    }

    /// Whether `name` is there because it was asked for.
    pub(super) fn is_demanded(&self, kind: Kind, name: &str) -> bool {
        let mut subscriptions = self.subscriptions.lock();
        of(&mut subscriptions, kind).any(|subscription| subscription.asked.contains_key(name))
    }

    /// All that is asked for, by kind.
    pub(super) fn names(&self) -> Vec<(Kind, BTreeMap<Key, Names>)> {
        let subscriptions = self.subscriptions.lock();
        let names = |kind| {
            let of_kind = subscriptions.iter().filter(|(key, _)| key.kind == kind);
            of_kind
                .map(|(key, one)| (key.clone(), Names::Demanded(one.names.clone())))
                .collect()
        };
        KINDS.map(|kind| (kind, names(kind))).into()
    }

    /// Waits until something else is asked for than when this was called.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }
}

fn of(
    subscriptions: &mut BTreeMap<Key, Subscription>,
    kind: Kind,
) -> impl Iterator<Item = &mut Subscription> {
    let of_kind = subscriptions.iter_mut();
    of_kind.filter_map(move |(key, one)| (key.kind == kind).then_some(one))
}

impl Subscription {
    fn ask(&mut self, name: &str) -> Asking {
        let name: Arc<str> = name.into();
        let (answer, asking) = watch::channel(Answer::Awaited);
        // Another number than the name had if it was asked for before: it is asked for once more.
        self.newest = self.newest.wrapping_add(1);
        self.names.insert(name.clone(), self.newest);
        self.bytes += name.len();
        let resource = None;
        self.asked.insert(name, Asked { answer, resource });
        self.unanswered += 1;
        Asking(asking)
    }

    fn is_full(&self) -> bool {
        self.unanswered >= MAX_UNANSWERED
            || self.asked.len() >= MAX_NAMES
            || self.bytes + MAX_NAME > MAX_BYTES
    }

    /// Whether one more may be asked for. When it is full that costs a look at all names, so not each request has one.
    fn has_room(&mut self) -> bool {
        if !self.is_full() {
            return true;
        }
        let now = Instant::now();
        if self.looked.is_some_and(|looked| now - looked < LOOK) {
            return false;
        }
        self.looked = Some(now);
        let has_room = self.forget_unwaited() && !self.is_full();
        if !has_room {
            tracing::warn!(target: "config", names = self.asked.len(), "too many names are asked for");
        }
        has_room
    }

    /// Tells all who wait for `name` that it is there.
    fn answer(&mut self, name: &str, resource: Option<&str>) {
        let Some(asked) = self.asked.get_mut(name) else {
            return;
        };
        asked.resource = resource.map(Arc::from);
        if asked.answer.send_replace(Answer::Found) == Answer::Awaited {
            self.unanswered -= 1;
        }
    }

    /// Tells all who wait for `name` that there is none; whether it was asked for.
    fn forget(&mut self, name: &str) -> bool {
        let Some(asked) = self.asked.remove(name) else {
            return false;
        };
        self.names.remove(name);
        self.bytes -= name.len();
        if asked.answer.send_replace(Answer::Gone) == Answer::Awaited {
            self.unanswered -= 1;
        }
        true
    }

    /// Forgets names without an answer that nobody waits for any more; whether there were any.
    fn forget_unwaited(&mut self) -> bool {
        self.forget_all(|_, asked| {
            asked.answer.receiver_count() == 0 && *asked.answer.borrow() == Answer::Awaited
        })
    }

    /// Forgets what `is_over` says; whether there was any.
    fn forget_all(&mut self, is_over: impl Fn(&str, &Asked) -> bool) -> bool {
        let over = self
            .asked
            .iter()
            .filter(|(name, asked)| is_over(name, asked));
        let over: Vec<Arc<str>> = over.map(|(name, _)| name.clone()).collect();
        for name in &over {
            self.forget(name);
        }
        !over.is_empty()
    }
}

impl Asking {
    /// Waits for the answer, but no longer than this.
    pub(crate) async fn answered_within(mut self, limit: Duration) -> Found {
        let answer = self.0.wait_for(|answer| *answer != Answer::Awaited);
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(answer)) if *answer == Answer::Found => Found::Yes,
            // Its sender goes only when its name is forgotten.
            Ok(_) => Found::No,
            Err(_) => Found::TooLate,
        }
    }
}

#[cfg(test)]
mod tests;
