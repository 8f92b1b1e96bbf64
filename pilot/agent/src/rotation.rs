//! Keeps the workload's certificate fresh: asks Citadel until there is one, then again when its remaining life falls below
//! the grace share (spread a little, so that proxies do not come back together), at once when the root file changes or the
//! certificate is revoked, and soon (spread, again) when another root signs now.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use prometheus::IntCounterVec;
use proto_component::backoff::Backoff;
use proto_component::drain::Drain;
use proto_component::file_watcher::FileWatcher;
use tokio::sync::watch;

use crate::citadel_client::{CitadelClient, FetchError};
use crate::secret::{Standing, Workload};
use crate::secret_cache::SecretCache;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const RETRY_CAP: Duration = Duration::from_secs(10);
/// However short a life is, it is not renewed more often than this.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
/// When another root signs, all proxies want new certificates: within this time.
const SUPERSEDED_SPREAD: Duration = Duration::from_secs(10);
/// The clock is looked at this often: a suspended machine sleeps past a timer.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// When to renew.
#[derive(Debug, Clone, Copy)]
pub struct Grace {
    /// Renew when less than this share of the life remains.
    pub ratio: f64,
    /// The share's spread.
    pub jitter: f64,
}

/// The rotation of one workload's certificate.
pub struct Rotation {
    client: CitadelClient,
    cache: SecretCache,
    grace: Grace,
    metrics: Metrics,
}

/// What the rotation counts, with the names of Istio's node agent.
#[derive(Clone)]
pub struct Metrics {
    requests: IntCounterVec,
    failures: IntCounterVec,
}

/// Why the rotation woke up.
enum Wake {
    Due,
    RootChanged,
    /// Something in the cache has changed, perhaps what is to be trusted.
    CacheChanged,
    Drain,
}

impl Metrics {
    /// Registers the counters.
    pub fn new(registry: &prometheus::Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounterVec::new(prometheus::Opts::new(name, help), &["request_type"])?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        Ok(Self {
            requests: counter(
                "num_outgoing_requests",
                "Number of total outgoing requests.",
            )?,
            failures: counter(
                "num_failed_outgoing_requests",
                "Number of failed outgoing requests.",
            )?,
        })
    }
}

impl Grace {
    /// How long a certificate with this much life left is used before it is renewed. `random` is from 0 to 1.
    fn wait(&self, life: Duration, random: f64) -> Duration {
        let ratio = self.ratio + self.jitter * (2.0 * random - 1.0);
        life.mul_f64(1.0 - ratio.clamp(0.0, 1.0)).max(SHORTEST_WAIT)
    }
}

impl Rotation {
    /// A rotation that fills `cache`.
    pub fn new(client: CitadelClient, cache: SecretCache, grace: Grace, metrics: Metrics) -> Self {
        Self {
            client,
            cache,
            grace,
            metrics,
        }
    }

    /// Runs until the drain.
    pub async fn run(self, drain: Drain) {
        let mut root_file = FileWatcher::files([PathBuf::from(&self.client.root_certificate)]);
        let mut backoff = Backoff::new(FIRST_RETRY, RETRY_CAP);
        let mut complaint = String::new();
        let mut cache = self.cache.subscribe();
        // Fetched for it already, whatever came of it: not again and again.
        let mut answered = Standing::Good;
        loop {
            let wait = match self.fetch().await {
                Ok(workload) => {
                    complaint.clear();
                    backoff.reset();
                    let wait = self.grace.wait(workload.remaining(), rand::random());
                    tracing::info!(target: "ca", serial = workload.serial, not_after = %workload.not_after, "got a certificate");
                    self.cache.set_workload(workload);
                    wait
                }
                Err(error) => {
                    // Once for each reason, not for each attempt.
                    let text = error.to_string();
                    if text == complaint {
                        tracing::debug!(target: "ca", error = text, "still no certificate");
                    } else {
                        tracing::warn!(target: "ca", error = text, has_one = self.cache.workload().is_some(), "no new certificate, will retry");
                        complaint = text;
                    }
                    backoff.next_delay()
                }
            };
            let mut due = SystemTime::now() + wait;
            loop {
                match sleep(due, &mut root_file, &mut cache, &drain).await {
                    Wake::Due => break,
                    Wake::RootChanged => {
                        backoff.reset();
                        break;
                    }
                    Wake::CacheChanged => {
                        let standing = self.cache.standing();
                        if standing == answered {
                            continue;
                        }
                        answered = standing;
                        let spread = match standing {
                            Standing::Good => continue,
                            Standing::Revoked => Duration::ZERO,
                            Standing::Superseded => {
                                SUPERSEDED_SPREAD.mul_f64(rand::random::<f64>())
                            }
                        };
                        tracing::info!(target: "ca", ?standing, "the certificate is to be replaced");
                        due = due.min(SystemTime::now() + spread);
                    }
                    Wake::Drain => return,
                }
            }
        }
    }

    async fn fetch(&self) -> Result<Workload, FetchError> {
        self.metrics.requests.with_label_values(&["csr"]).inc();
        let current = self.cache.workload();
        let outcome = self.client.fetch(current.as_ref().as_ref()).await;
        if outcome.is_err() {
            self.metrics.failures.with_label_values(&["csr"]).inc();
        }
        outcome
    }
}

/// Sleeps by the wall clock's time, or until something else happens.
async fn sleep(
    due: SystemTime,
    root_file: &mut FileWatcher,
    cache: &mut watch::Receiver<u64>,
    drain: &Drain,
) -> Wake {
    loop {
        let left = due.duration_since(SystemTime::now());
        let Ok(left) = left else {
            return Wake::Due;
        };
        tokio::select! {
            () = tokio::time::sleep(left.min(LONGEST_SLEEP)) => {}
            () = root_file.changed() => return Wake::RootChanged,
            Ok(()) = cache.changed() => return Wake::CacheChanged,
            () = drain.signaled() => return Wake::Drain,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_comes_at_the_grace_share_with_spread() {
        let grace = Grace {
            ratio: 0.5,
            jitter: 0.05,
        };
        let day = Duration::from_secs(86400);
        assert_eq!(grace.wait(day, 0.5), day / 2);
        assert!(grace.wait(day, 0.0) > day / 2 && grace.wait(day, 1.0) < day / 2);
        assert!(grace.wait(day, 0.0) <= day.mul_f64(0.56));
        assert_eq!(grace.wait(Duration::ZERO, 0.5), SHORTEST_WAIT);
    }
}
