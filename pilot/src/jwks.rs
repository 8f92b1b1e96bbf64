//! Keys that tokens are checked with, where the proxies cannot fetch them: Pilot does, and writes them into the configuration.
//!
//! The discovery task says which key sets it wants ([`Wanted`]); the task `jwks` fetches each, tries again with back-off until it
//! has it, and refreshes it from time to time. A rule whose keys have not come yet refuses every token.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proto_component::backoff::Backoff;
use proto_component::drain::Drain;
use proto_component::task;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

mod fetch;

/// Delays after failures.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How often the task looks what is due.
const TICK: Duration = Duration::from_millis(500);
/// Most key sets that are followed at all.
const LIMIT: usize = 1000;

/// Where a key set is: its URI, or the issuer whose discovery document names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeySource {
    /// `jwksUri`.
    Uri(String),
    /// `issuer`, by `/.well-known/openid-configuration`.
    Issuer(String),
}

/// The key sets that configuration needs, and how long an answer may take.
pub type Wanted = BTreeMap<KeySource, Duration>;

/// A key set that was fetched.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// From where.
    pub source: KeySource,
    /// The JSON text.
    pub keys: String,
}

/// All key sets that are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySets {
    sets: BTreeMap<KeySource, Arc<str>>,
}

impl KeySets {
    /// The text of a key set, once it has been fetched.
    #[must_use]
    pub fn get(&self, source: &KeySource) -> Option<&str> {
        self.sets.get(source).map(AsRef::as_ref)
    }

    /// Takes a key set in; true when it is different from before.
    pub fn insert(&mut self, fetched: Fetched) -> bool {
        let keys: Arc<str> = fetched.keys.into();
        self.sets.insert(fetched.source, Arc::clone(&keys)) != Some(keys)
    }

    /// Forgets what is not wanted any more.
    pub fn retain(&mut self, wanted: &Wanted) {
        self.sets.retain(|source, _| wanted.contains_key(source));
    }
}

/// Counts of fetches.
#[derive(Clone, Debug)]
pub struct Counters {
    /// Key sets fetched.
    pub success: prometheus::IntCounter,
    /// Fetches that failed.
    pub failure: prometheus::IntCounter,
}

/// Starts the task; say what is wanted, and take what was fetched, again each time `refresh` has passed.
#[must_use]
pub fn start(
    refresh: Duration,
    counters: Counters,
    drain: Drain,
) -> (watch::Sender<Wanted>, mpsc::Receiver<Fetched>) {
    let (wanted, follow) = watch::channel(Wanted::new());
    let (found, fetched) = mpsc::channel(16);
    task::spawn("jwks", run(refresh, follow, found, counters, drain));
    (wanted, fetched)
}

struct Due {
    at: Instant,
    patience: Duration,
    backoff: Backoff,
    is_running: bool,
}

async fn run(
    refresh: Duration,
    mut follow: watch::Receiver<Wanted>,
    found: mpsc::Sender<Fetched>,
    counters: Counters,
    drain: Drain,
) {
    let mut due: BTreeMap<KeySource, Due> = BTreeMap::new();
    let mut running = JoinSet::new();
    loop {
        let wait = if due.is_empty() { refresh } else { TICK };
        tokio::select! {
            () = drain.signaled() => return,
            changed = follow.changed() => {
                if changed.is_err() {
                    return;
                }
                let wanted = follow.borrow_and_update().clone();
                due.retain(|source, _| wanted.contains_key(source));
                for (source, patience) in wanted.into_iter().take(LIMIT) {
                    let state = due.entry(source).or_insert_with(|| Due {
                        at: Instant::now(),
                        patience,
                        backoff: Backoff::new(RETRY.0, RETRY.1),
                        is_running: false,
                    });
                    state.patience = patience;
                }
            }
            Some(Ok((source, outcome))) = running.join_next(), if !running.is_empty() => {
                let Some(state) = due.get_mut(&source) else {
                    continue;
                };
                let keys = state.finish(&source, outcome, refresh, &counters);
                let fetched = keys.map(|keys| Fetched { source, keys });
                if let Some(fetched) = fetched && found.send(fetched).await.is_err() {
                    return;
                }
            }
            () = tokio::time::sleep(wait) => {}
        }
        let now = Instant::now();
        for (source, state) in due.iter_mut().filter(|(_, state)| state.at <= now) {
            if !std::mem::replace(&mut state.is_running, true) {
                let (source, patience) = (source.clone(), state.patience);
                running.spawn(async move {
                    let outcome = fetch::fetch(&source, patience).await;
                    (source, outcome)
                });
            }
            state.at = now + refresh;
        }
    }
}

impl Due {
    /// A fetch has ended: its keys, and when the next one is due.
    fn finish(
        &mut self,
        source: &KeySource,
        outcome: Result<String, String>,
        refresh: Duration,
        counters: &Counters,
    ) -> Option<String> {
        self.is_running = false;
        match outcome {
            Ok(keys) => {
                counters.success.inc();
                self.backoff.reset();
                self.at = Instant::now() + refresh;
                Some(keys)
            }
            Err(error) => {
                counters.failure.inc();
                let delay = self.backoff.next_delay();
                self.at = Instant::now() + delay;
                tracing::warn!(target: "model", ?source, error, retry = ?delay, "keys cannot be fetched");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
