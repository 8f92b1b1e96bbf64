//! Leader election: of several replicas one does what must be done once. The leader holds a Lease of the API server and renews it;
//! a replica that goes gives it back, one that vanishes loses it after [`DURATION`].
//!
//! As in Kubernetes' own clients no clock is compared with another machine's: a candidate counts from when it saw the record
//! change, a leader that has not renewed it for [`RENEW_DEADLINE`] knows nothing any more and stops, and every write names the
//! version of the record that it replaces.

use std::time::Duration;

use clap::{ArgAction, Args};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt as _};
use rand::RngExt as _;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::drain::Drain;
use crate::task;

/// How long a Lease is held without being renewed.
const DURATION: Duration = Duration::from_secs(15);
/// How long a leader goes on that cannot renew it; less than [`DURATION`], so that nobody else leads by then.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How often the leader renews it and the others look.
const RETRY: Duration = Duration::from_secs(2);
/// How long one answer of the API server may take.
const CALL: Duration = Duration::from_secs(5);
/// How long giving it back may take.
const RELEASE: Duration = Duration::from_secs(2);
/// What a Lease without a duration is held for.
const FALLBACK_SECONDS: i32 = 15;
const OVERDUE: &str = "the Lease is not renewed in time";
const NOT_FOUND: u16 = 404;
const CONFLICT: u16 = 409;

/// Who takes part in an election, and where.
#[derive(Clone, Debug, Default, Args)]
pub struct LeaseArgs {
    /// Of several replicas let one be the leader; without, each one leads.
    #[arg(long = "leader-election", env = "ENABLE_LEADER_ELECTION", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true")]
    pub is_elected: bool,
    /// Namespace of the Lease: the pod's own. Without one (outside of a cluster) there are no others.
    #[arg(
        long = "leader-election-namespace",
        env = "POD_NAMESPACE",
        default_value = ""
    )]
    pub namespace: String,
    /// This replica's name: the pod's.
    #[arg(
        long = "leader-election-identity",
        env = "POD_NAME",
        default_value = ""
    )]
    pub identity: String,
}

/// Whether this replica leads; cheap to clone, one for each task that asks.
#[derive(Clone, Debug)]
pub struct Leadership(watch::Receiver<bool>);

impl Leadership {
    /// Resolves while this replica leads; `false` once it never will again.
    pub async fn gained(&mut self) -> bool {
        self.0.wait_for(|leads| *leads).await.is_ok()
    }

    /// Resolves when it leads no more.
    pub async fn lost(&mut self) {
        // Those who are told wait for the election's end, too.
        let _ = self.0.wait_for(|leads| !*leads).await;
    }
}

/// Takes part in the election of who holds the Lease `name`, until the drain.
pub fn elect(client: Client, name: &str, args: &LeaseArgs, drain: Drain) -> Leadership {
    let is_alone = !args.is_elected || args.namespace.is_empty() || args.identity.is_empty();
    let (leads, told) = watch::channel(is_alone);
    if is_alone {
        task::spawn("leader-election", async move {
            drain.signaled().await;
            leads.send_replace(false);
        });
        return Leadership(told);
    }
    let candidate = Candidate {
        api: Api::namespaced(client, &args.namespace),
        name: name.to_owned(),
        identity: args.identity.clone(),
        leads,
        observed: None,
        renewed: None,
        has_failed: false,
    };
    task::spawn_drained("leader-election", candidate.run(drain));
    Leadership(told)
}

/// One replica in an election.
struct Candidate {
    api: Api<Lease>,
    name: String,
    identity: String,
    leads: watch::Sender<bool>,
    /// The record as it was last seen, and since when it is so.
    observed: Option<(Lease, Instant)>,
    /// When the last successful renewal was begun.
    renewed: Option<Instant>,
    /// The last attempt has failed, and the log says so.
    has_failed: bool,
}

impl Candidate {
    async fn run(mut self, drain: Drain) {
        loop {
            let deadline = self.deadline();
            tokio::select! {
                outcome = tokio::time::timeout(CALL, self.take_or_renew()) => {
                    let late = || Err("the API server does not answer".to_owned());
                    self.conclude(outcome.unwrap_or_else(|_| late()));
                }
                () = overdue(deadline) => self.conclude(Err(OVERDUE.to_owned())),
                () = drain.signaled() => break,
            }
            let deadline = self.deadline();
            let pause = RETRY.mul_f64(rand::rng().random_range(0.9..1.1));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = overdue(deadline) => self.conclude(Err(OVERDUE.to_owned())),
                () = drain.signaled() => break,
            }
        }
        let led = *self.leads.borrow();
        // Whoever works for the leader stops before another begins.
        self.leads.send_replace(false);
        if led && tokio::time::timeout(RELEASE, self.release()).await.is_err() {
            tracing::debug!(
                lease = self.name,
                "the Lease is not given back; it ends by itself"
            );
        }
    }

    /// When a leader must have renewed its Lease.
    fn deadline(&self) -> Option<Instant> {
        self.renewed.map(|at| at + RENEW_DEADLINE)
    }

    /// Takes note of an attempt.
    fn conclude(&mut self, outcome: Result<Option<Instant>, String>) {
        match outcome {
            Ok(renewed) => {
                self.renewed = renewed;
                self.has_failed = false;
            }
            Err(error) => {
                if !std::mem::replace(&mut self.has_failed, true) {
                    tracing::warn!(
                        lease = self.name,
                        error,
                        "cannot reach the Lease; trying again"
                    );
                }
                self.renewed = self.renewed.filter(|at| at.elapsed() < RENEW_DEADLINE);
            }
        }
        let leads = self.renewed.is_some();
        let changed = self.leads.send_if_modified(|current| {
            let changed = *current != leads;
            *current = leads;
            changed
        });
        if changed {
            let identity = &self.identity;
            tracing::info!(lease = self.name, identity, leads, "leadership");
        }
    }

    /// One attempt: when it was begun if this replica leads now.
    async fn take_or_renew(&mut self) -> Result<Option<Instant>, String> {
        let now = Instant::now();
        if let (Some(_), Some((record, _))) = (self.renewed, &self.observed) {
            // Nobody else has written it since, most often: no need to read it.
            let record = record.clone();
            if self.write(record).await? {
                return Ok(Some(now));
            }
        }
        let Some(found) = self.read().await? else {
            return Ok(self.create().await?.then_some(now));
        };
        let since = match &self.observed {
            Some((known, since)) if known.resource_version() == found.resource_version() => *since,
            _ => now,
        };
        self.observed = Some((found.clone(), since));
        if !self.is_free(&found, since) {
            return Ok(None);
        }
        Ok(self.write(found).await?.then_some(now))
    }

    /// Whether the Lease may be taken: it is nobody's, our own, or its holder has been silent for as long as it said.
    fn is_free(&self, lease: &Lease, since: Instant) -> bool {
        let spec = lease.spec.as_ref();
        let holder = spec.and_then(|spec| spec.holder_identity.as_deref());
        let seconds = spec.and_then(|spec| spec.lease_duration_seconds);
        let seconds = u64::try_from(seconds.unwrap_or(FALLBACK_SECONDS)).unwrap_or_default();
        match holder {
            None | Some("") => true,
            Some(holder) => {
                holder == self.identity || since.elapsed() >= Duration::from_secs(seconds)
            }
        }
    }

    async fn read(&self) -> Result<Option<Lease>, String> {
        self.api
            .get_opt(&self.name)
            .await
            .map_err(|error| error.to_string())
    }

    /// Makes the Lease, held by us; false if another was faster.
    async fn create(&mut self) -> Result<bool, String> {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(self.held(None)),
        };
        let made = self.api.create(&PostParams::default(), &lease).await;
        self.written(made, &[CONFLICT])
    }

    /// Writes that we hold the Lease into the version of it that is at hand; false if there is another by now.
    async fn write(&mut self, mut lease: Lease) -> Result<bool, String> {
        lease.spec = Some(self.held(lease.spec));
        let written = self
            .api
            .replace(&self.name, &PostParams::default(), &lease)
            .await;
        self.written(written, &[CONFLICT, NOT_FOUND])
    }

    /// Takes note of what was written; false if another was `faster`, as these codes say.
    fn written(&mut self, outcome: kube::Result<Lease>, faster: &[u16]) -> Result<bool, String> {
        match outcome {
            Ok(lease) => {
                self.observed = Some((lease, Instant::now()));
                Ok(true)
            }
            Err(kube::Error::Api(status)) if faster.contains(&status.code) => Ok(false),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The record with us as its holder, from now on.
    fn held(&self, earlier: Option<LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let earlier = earlier.unwrap_or_default();
        let is_ours = earlier.holder_identity.as_ref() == Some(&self.identity);
        let transitions = earlier.lease_transitions.unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: if is_ours {
                earlier.acquire_time
            } else {
                Some(now.clone())
            },
            renew_time: Some(now),
            lease_transitions: Some(if is_ours {
                transitions
            } else {
                transitions.saturating_add(1)
            }),
            ..LeaseSpec::default()
        }
    }

    /// Gives the Lease back: the next one need not wait.
    async fn release(&self) {
        if let Err(error) = self.try_release().await {
            tracing::debug!(lease = self.name, %error, "the Lease is not given back");
        }
    }

    async fn try_release(&self) -> kube::Result<()> {
        // Not what we saw last: a renewal that the drain has interrupted may have been written.
        let mut record = self.api.get(&self.name).await?;
        let ours = |spec: &&mut LeaseSpec| spec.holder_identity.as_ref() == Some(&self.identity);
        if let Some(spec) = record.spec.as_mut().filter(ours) {
            spec.holder_identity = None;
            spec.acquire_time = None;
            let params = PostParams::default();
            self.api.replace(&self.name, &params, &record).await?;
            tracing::info!(lease = self.name, "the Lease is given back");
        }
        Ok(())
    }
}

/// Resolves at the deadline, if there is one.
async fn overdue(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
