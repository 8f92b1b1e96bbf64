//! Resources that requests ask for by name, and wait for: clusters (ODCDS).
//!
//! A worker asks ([`Demand::ask`]) and waits with a time limit of its own; the task of [`ConfigStore::run_demand`] puts the name
//! into what is wanted of its source; the store tells what came of it ([`Demand::found`], [`Demand::gone`]). What was found stays
//! asked for, so that it is followed; what is not there is forgotten, and asked for anew by the next request.
//!
//! Clients choose names, so there is a bound on those without an answer; how many are found is their server's matter.
//!
//! [`ConfigStore::run_demand`]: super::ConfigStore::run_demand

use super::{Key, Kind, Names};
use crate::{invalid::Invalid, table::Table, upstream::ClusterManager, xds::Source};
use parking_lot::Mutex;
use proto::envoy::config::core::v3::ConfigSource;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::sync::{Notify, futures::Notified, watch};

/// Kinds that are asked for on demand.
const KINDS: [Kind; 1] = [Kind::OnDemandCluster];
/// Names of a source without an answer; one more is not asked for.
const MAX_UNANSWERED: usize = 4096;

/// What requests ask for.
#[derive(Default)]
pub(crate) struct Demand {
    subscriptions: Mutex<BTreeMap<Key, Subscription>>,
    changed: Notify,
    is_ads_delta: OnceLock<bool>,
}

/// Where a kind of resources is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DemandSource(Key);

/// What is asked of one source.
#[derive(Default)]
struct Subscription {
    /// As [`Names::Demanded`] has it.
    names: Table<u32>,
    asked: HashMap<Arc<str>, watch::Sender<Answer>>,
    unanswered: usize,
    /// The number of the newest name.
    newest: u32,
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
        Self::new(Kind::OnDemandCluster, Source::try_from(wire)?)
    }

    /// Where `kind` is asked for; only delta can say that there is nothing of a name.
    fn new(kind: Kind, source: Source) -> Result<Self, Invalid> {
        match &source {
            Source::Grpc(grpc) if grpc.is_delta => {}
            Source::Ads => {}
            Source::Grpc(_) | Source::File(_) => {
                return Err(Invalid::new(
                    "only DELTA_GRPC and ADS can be asked on demand",
                ));
            }
        }
        Ok(Self(Key::of(kind, source)))
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

    /// Asks for `name`, unless too many names wait for an answer. Whoever asks looks once more whether it is there: it may have
    /// come before it was asked for.
    pub(crate) fn ask(&self, source: &DemandSource, name: &str) -> Option<Asking> {
        if let Err(error) = self.check(source) {
            tracing::error!(target: "config", name, %error, "cannot ask on demand");
            return None;
        }
        let mut subscriptions = self.subscriptions.lock();
        let subscription = subscriptions.entry(source.0.clone()).or_default();
        let asked = subscription.asked.get(name);
        if let Some(asked) = asked {
            return Some(Asking(asked.subscribe()));
        }
        if subscription.unanswered >= MAX_UNANSWERED && !subscription.forget_unwaited() {
            tracing::warn!(target: "config", name, "too many names without an answer");
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
                subscription.answer(name);
            }
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
        self.asked.insert(name, answer);
        self.unanswered += 1;
        Asking(asking)
    }

    /// Tells all who wait for `name` that it is there.
    fn answer(&mut self, name: &str) {
        let Some(answer) = self.asked.get(name) else {
            return;
        };
        if answer.send_replace(Answer::Found) == Answer::Awaited {
            self.unanswered -= 1;
        }
    }

    /// Tells all who wait for `name` that there is none; whether it was asked for.
    fn forget(&mut self, name: &str) -> bool {
        let Some(answer) = self.asked.remove(name) else {
            return false;
        };
        self.names.remove(name);
        if answer.send_replace(Answer::Gone) == Answer::Awaited {
            self.unanswered -= 1;
        }
        true
    }

    /// Forgets names without an answer that nobody waits for any more; whether there were any.
    fn forget_unwaited(&mut self) -> bool {
        let is_idle = |answer: &watch::Sender<Answer>| {
            answer.receiver_count() == 0 && *answer.borrow() == Answer::Awaited
        };
        let idle = self.asked.iter().filter(|(_, answer)| is_idle(answer));
        let idle: Vec<Arc<str>> = idle.map(|(name, _)| name.clone()).collect();
        for name in &idle {
            self.forget(name);
        }
        !idle.is_empty()
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
mod tests {
    use super::*;

    fn source() -> DemandSource {
        DemandSource(Key::of(Kind::OnDemandCluster, Source::Ads))
    }

    fn demand() -> Demand {
        let demand = Demand::default();
        demand.set_ads(true);
        demand
    }

    fn names(demand: &Demand) -> Names {
        let (_, mut all) = demand.names().remove(0);
        all.remove(&source().0).unwrap_or_default()
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_hears_what_came_of_it() {
        let demand = demand();
        let limit = Duration::from_secs(5);
        let ask = |name| demand.ask(&source(), name).unwrap().answered_within(limit);
        assert_eq!(ask("mute").await, Found::TooLate);
        let (one, two, gone) = (ask("there"), ask("there"), ask("gone"));
        demand.found(Kind::OnDemandCluster, ["there", "unasked"].into_iter());
        demand.gone(Kind::OnDemandCluster, "gone");
        assert_eq!(
            (one.await, two.await, gone.await),
            (Found::Yes, Found::Yes, Found::No)
        );
        // What is late is still there for the next.
        demand.found(Kind::OnDemandCluster, ["mute"].into_iter());
        assert_eq!(ask("mute").await, Found::Yes);
        assert_eq!(names(&demand).sorted(), ["mute", "there"]);
    }

    #[test]
    fn what_was_gone_is_asked_for_once_more() {
        let demand = demand();
        demand.ask(&source(), "one").unwrap();
        demand.ask(&source(), "two").unwrap();
        let before = names(&demand);
        assert_eq!(before.new_since(&Names::default()), ["one", "two"]);
        demand.gone(Kind::OnDemandCluster, "one");
        assert_eq!(before.missing_in(&names(&demand)), ["one"]);
        demand.ask(&source(), "one").unwrap();
        let after = names(&demand);
        // Though its name was on the list all the time for who looks only now.
        assert_ne!(after, before);
        assert_eq!(after.new_since(&before), ["one"]);
        assert_eq!(before.missing_in(&after), Vec::<String>::new());
    }

    #[test]
    fn names_without_an_answer_are_bounded() {
        let demand = demand();
        let ask = |name: &str| demand.ask(&source(), name);
        let waiting: Vec<_> = (0..MAX_UNANSWERED)
            .map(|number| ask(&number.to_string()).unwrap())
            .collect();
        assert!(ask("one more").is_none());
        // A name that is asked for already is no more.
        assert!(ask("0").is_some());
        // One with an answer leaves room for another, and those whom nobody waits for any more do.
        demand.found(Kind::OnDemandCluster, ["0"].into_iter());
        assert!(ask("one more").is_some());
        assert!(ask("two more").is_some());
        drop(waiting);
        assert!(ask("three more").is_some());
        assert_eq!(names(&demand).sorted(), ["0", "three more"]);
    }

    #[test]
    fn only_delta_is_asked() {
        let check = |text: &str| {
            let wire = proto::yaml::from_str(text).unwrap();
            DemandSource::clusters(&wire).and_then(|source| Demand::default().check(&source))
        };
        let grpc = |api: &str| {
            format!(
                "api_config_source: {{api_type: {api}, grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]}}"
            )
        };
        let (delta, other) = (grpc("DELTA_GRPC"), grpc("GRPC"));
        check(&delta).unwrap();
        for text in ["ads: {}", "path_config_source: {path: /a}", &other] {
            let error = check(text).unwrap_err().to_string();
            assert!(error.contains("DELTA_GRPC"), "{error}");
        }
    }
}
