//! Load balancing: which host of a pool serves a request. One file an algorithm; what an algorithm needs besides the hosts is
//! built with the host set ([`Table`]).

mod maglev;
mod ring_hash;
mod weighted;

use super::{Host, cluster_config::LbPolicy, host_set::Pool};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

/// What a choice depends on.
#[derive(Clone, Copy, Default)]
pub(crate) struct LoadBalancerContext<'a> {
    /// A random number, drawn by the worker.
    pub(crate) random: u64,
    /// The hash of the route's hash policy.
    pub(crate) hash: Option<u64>,
    /// Where the client wanted to go (`ORIGINAL_DST`).
    pub(crate) original_destination: Option<SocketAddr>,
    /// The metadata under `envoy.lb` that a host must have, if any does.
    pub(crate) metadata_match: Option<&'a prost_types::Struct>,
    /// Hosts that a retry would rather not have again.
    pub(crate) should_select_another: Option<&'a dyn Fn(&Host) -> bool>,
    /// How often another is looked for before the last one found is taken.
    pub(crate) select_attempts: u32,
    /// Priorities that earlier attempts have used (`previous_priorities`).
    pub(crate) excluded_priorities: &'a [u32],
}

/// What an algorithm has prepared for a pool.
pub(crate) enum Table {
    /// Round robin: the order of weighted turns, and whose turn it is.
    Turns(Option<Box<[u32]>>, AtomicUsize),
    /// Least request: this many are compared; cumulative weights unless all are equal.
    LeastRequest(u32, Option<Box<[u64]>>),
    /// Random: cumulative weights unless all are equal.
    Random(Option<Box<[u64]>>),
    /// Ring hash: sorted points.
    Ring(Box<[(u64, u32)]>),
    /// Maglev: a host for each slot.
    Maglev(Box<[u32]>),
}

impl Default for Table {
    fn default() -> Self {
        Self::Random(None)
    }
}

impl Table {
    /// Prepares `hosts` for `policy`.
    pub(crate) fn build(policy: &LbPolicy, hosts: &[Arc<Host>]) -> Self {
        match policy {
            LbPolicy::RoundRobin => Self::Turns(weighted::turns(hosts), AtomicUsize::new(0)),
            LbPolicy::LeastRequest { choices } => {
                Self::LeastRequest(*choices, weighted::cumulative(hosts))
            }
            LbPolicy::Random | LbPolicy::ClusterProvided => {
                Self::Random(weighted::cumulative(hosts))
            }
            LbPolicy::RingHash(options) => Self::Ring(ring_hash::build(hosts, options)),
            LbPolicy::Maglev { size } => Self::Maglev(maglev::build(hosts, *size)),
        }
    }
}

impl Pool {
    /// Chooses a host; `random` must differ from call to call.
    pub(crate) fn choose(&self, hash: Option<u64>, random: u64) -> Option<&Arc<Host>> {
        if self.hosts.is_empty() {
            return None;
        }
        let index = match &self.table {
            Table::Turns(turns, next) => {
                let turn = next.fetch_add(1, Relaxed);
                match turns {
                    Some(turns) => turns[turn % turns.len()] as usize,
                    None => turn % self.hosts.len(),
                }
            }
            Table::Random(weights) => weighted::pick(weights.as_deref(), self.hosts.len(), random),
            Table::LeastRequest(choices, weights) => {
                return self.least_request(*choices, weights.as_deref(), random);
            }
            Table::Ring(points) => ring_hash::pick(points, hash.unwrap_or(random))?,
            Table::Maglev(slots) => maglev::pick(slots, hash.unwrap_or(random))?,
        };
        self.hosts.get(index)
    }

    /// Of some hosts drawn at random (by weight), the one with the fewest requests under way.
    fn least_request(
        &self,
        choices: u32,
        weights: Option<&[u64]>,
        mut random: u64,
    ) -> Option<&Arc<Host>> {
        let mut best: Option<&Arc<Host>> = None;
        for _ in 0..choices {
            let host = &self.hosts[weighted::pick(weights, self.hosts.len(), random)];
            if best.is_none_or(|best| host.stats.rq_active.value() < best.stats.rq_active.value()) {
                best = Some(host);
            }
            random = mix(random);
        }
        best
    }
}

/// The next of a chain of random numbers (splitmix64).
pub(crate) fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The text that a host is hashed by: its own hash key, its name if it has one, or its address.
fn hash_key(host: &Host) -> &str {
    if let Some(fields) = host.metadata_of("envoy.lb")
        && let Some(value) = fields.fields.get("hash_key")
        && let Some(prost_types::value::Kind::StringValue(key)) = &value.kind
    {
        return key;
    }
    &host.address_text
}
