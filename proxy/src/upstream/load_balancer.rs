//! Load balancing: which host of a pool serves a request. One file an algorithm; what an algorithm needs besides the hosts is
//! built with the host set ([`Pool`]).

mod foresight;
mod maglev;
pub(crate) mod policy;
mod ring_hash;
pub(crate) mod subset_config;
mod weighted;

pub(crate) use foresight::Foresight;
pub(crate) use weighted::fraction;

use super::Host;
use policy::{Hashing, LbPolicy};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

/// More hosts than this are not all weighed for one request; some are drawn.
const MOST_WEIGHED: usize = 64;

/// What a choice depends on.
#[derive(Clone, Copy, Default)]
pub(crate) struct LoadBalancerContext<'a> {
    /// A random number, drawn by the worker.
    pub(crate) random: u64,
    /// The hash of the route's hash policy.
    pub(crate) hash: Option<u64>,
    /// Where the client wanted to go (`ORIGINAL_DST`).
    pub(crate) original_destination: Option<SocketAddr>,
    /// The request's headers, for clusters that find their host there.
    pub(crate) headers: Option<&'a http::HeaderMap>,
    /// The request's host, for clusters that resolve it (dynamic forward proxy).
    pub(crate) authority: Option<&'a str>,
    /// The metadata under `envoy.lb` that a host must have, if any does.
    pub(crate) metadata_match: Option<&'a prost_types::Struct>,
    /// Hosts that a retry would rather not have again.
    pub(crate) should_select_another: Option<&'a dyn Fn(&Host) -> bool>,
    /// How often another is looked for before the last one found is taken.
    pub(crate) select_attempts: u32,
    /// Priorities that earlier attempts have used (`previous_priorities`).
    pub(crate) excluded_priorities: &'a [u32],
}

/// Hosts to choose from, and what the algorithm has prepared.
#[derive(Default)]
pub(crate) struct Pool {
    /// The hosts.
    pub(crate) hosts: Arc<[Arc<Host>]>,
    table: Table,
}

/// What an algorithm has prepared for a pool.
#[derive(Default)]
enum Table {
    /// There is no choice.
    #[default]
    Single,
    /// Round robin: the order of weighted turns, and whose turn it is.
    Turns(Option<Box<[u32]>>, AtomicUsize),
    /// Least request: this many are compared, or all.
    LeastRequest(Option<u32>),
    /// Least request where hosts weigh differently: the weights, how much activity counts against them.
    WeightedLeastRequest(Box<[f64]>, f64),
    /// Random: cumulative weights unless all are equal.
    Random(Option<Box<[f64]>>),
    /// Ring hash: sorted points.
    Ring(Box<[(u64, u32)]>, Option<Bound>),
    /// Maglev: a host for each slot.
    Maglev(Box<[u32]>, Option<Bound>),
}

/// The bound on a host's share of the requests under way.
struct Bound {
    /// Percent of the fair share.
    factor: u32,
    /// Each host's share of the weight.
    shares: Box<[f64]>,
}

impl Pool {
    /// Prepares `hosts`, which weigh `weights`, for `policy`.
    pub(crate) fn build(policy: &LbPolicy, hosts: Arc<[Arc<Host>]>, weights: &[f64]) -> Self {
        let are_equal = weights
            .windows(2)
            .all(|pair| (pair[0] - pair[1]).abs() < f64::EPSILON);
        let table = match policy {
            _ if hosts.len() < 2 => Table::Single,
            LbPolicy::RoundRobin => Table::Turns(
                (!are_equal).then(|| weighted::turns(weights)),
                // Not always with the first: workers and proxies would all begin with the same host.
                AtomicUsize::new(rand::random::<u32>() as usize),
            ),
            LbPolicy::LeastRequest {
                choices: Some(_),
                bias,
            } if !are_equal => Table::WeightedLeastRequest(weights.into(), *bias),
            LbPolicy::LeastRequest { choices, .. } => Table::LeastRequest(*choices),
            LbPolicy::Random | LbPolicy::ClusterProvided => {
                Table::Random((!are_equal).then(|| weighted::cumulative(weights)))
            }
            LbPolicy::RingHash(options, hashing) => Table::Ring(
                ring_hash::build(&hosts, weights, options, *hashing),
                Bound::new(*hashing, weights),
            ),
            LbPolicy::Maglev { size, hashing } => Table::Maglev(
                maglev::build(&hosts, weights, *size, *hashing),
                Bound::new(*hashing, weights),
            ),
        };
        Self { hosts, table }
    }

    /// Chooses a host; `random` must differ from call to call. `attempt` counts the times that another host was wanted,
    /// `active` the cluster's requests under way.
    pub(crate) fn choose(
        &self,
        hash: Option<u64>,
        random: u64,
        attempt: u32,
        active: u64,
    ) -> Option<&Arc<Host>> {
        let count = self.hosts.len();
        if count == 0 {
            return None;
        }
        let hash = hash.unwrap_or(random);
        let index = match &self.table {
            Table::Single => 0,
            Table::Turns(turns, next) => self.at_turn(turns.as_deref(), next.fetch_add(1, Relaxed)),
            Table::Random(sums) => self.at_random(sums.as_deref(), random),
            Table::LeastRequest(choices) => return self.least_request(*choices, random),
            Table::WeightedLeastRequest(weights, bias) => {
                self.weighted_least_request(weights, *bias, random)
            }
            Table::Ring(points, bound) => {
                let found = ring_hash::pick(points, hash, attempt)?;
                self.within(bound.as_ref(), found, hash, active)
            }
            Table::Maglev(slots, bound) => {
                let found = maglev::pick(slots, hash, attempt)?;
                self.within(bound.as_ref(), found, hash, active)
            }
        };
        self.hosts.get(index)
    }

    /// The host that [`Self::choose`] will come to by `random`, after `before` other choices; nothing where that is not known
    /// before it is asked.
    pub(crate) fn peek(&self, random: u64, before: usize) -> Option<&Arc<Host>> {
        if self.hosts.is_empty() {
            return None;
        }
        let index = match &self.table {
            Table::Single => 0,
            Table::Turns(turns, next) => {
                self.at_turn(turns.as_deref(), next.load(Relaxed).wrapping_add(before))
            }
            Table::Random(sums) => self.at_random(sums.as_deref(), random),
            Table::WeightedLeastRequest(weights, bias) => {
                self.weighted_least_request(weights, *bias, random)
            }
            Table::LeastRequest(_) | Table::Ring(..) | Table::Maglev(..) => return None,
        };
        self.hosts.get(index)
    }

    fn at_turn(&self, turns: Option<&[u32]>, turn: usize) -> usize {
        match turns {
            Some(turns) => turns[turn % turns.len()] as usize,
            None => turn % self.hosts.len(),
        }
    }

    fn at_random(&self, sums: Option<&[f64]>, random: u64) -> usize {
        match sums {
            Some(sums) => weighted::pick(sums, random),
            None => weighted::below(random, self.hosts.len()),
        }
    }

    /// Of some hosts drawn at random, or of all, the one with the fewest requests under way.
    fn least_request(&self, choices: Option<u32>, mut random: u64) -> Option<&Arc<Host>> {
        let count = self.hosts.len();
        let rounds = choices.map_or(count, |choices| choices as usize);
        let start = weighted::below(random, count);
        let mut best: Option<&Arc<Host>> = None;
        for round in 0..rounds {
            let index = if choices.is_some() {
                weighted::below(random, count)
            } else {
                // Begun anywhere, so that equals share the load.
                (start + round) % count
            };
            let host = &self.hosts[index];
            if best.is_none_or(|best| host.stats.rq_active.value() < best.stats.rq_active.value()) {
                best = Some(host);
            }
            random = mix(random);
        }
        best
    }

    /// A host by `weight / (active + 1)^bias`.
    #[expect(clippy::cast_precision_loss, reason = "counts of requests are small")]
    fn weighted_least_request(&self, weights: &[f64], bias: f64, mut random: u64) -> usize {
        let worth = |index: usize| {
            let active = self.hosts[index].stats.rq_active.value() as f64 + 1.0;
            let against = if (bias - 1.0).abs() < f64::EPSILON {
                active
            } else {
                active.powf(bias)
            };
            weights[index] / against
        };
        let count = self.hosts.len();
        if count <= MOST_WEIGHED {
            let total: f64 = (0..count).map(worth).sum();
            let mut left = weighted::fraction(random) * total;
            for index in 0..count {
                left -= worth(index);
                if left < 0.0 {
                    return index;
                }
            }
            return count - 1;
        }
        let mut best = weighted::below(random, count);
        for _ in 1..8 {
            random = mix(random);
            let other = weighted::below(random, count);
            if worth(other) > worth(best) {
                best = other;
            }
        }
        best
    }

    /// The host found, or another if it has more than its share of requests already.
    fn within(&self, bound: Option<&Bound>, found: usize, hash: u64, active: u64) -> usize {
        let Some(bound) = bound else { return found };
        let mut least = (bound.load(&self.hosts[found], found, active), found);
        let mut random = hash;
        let count = self.hosts.len();
        // From a place that the hash decides, so that equal requests go elsewhere together.
        let start = weighted::below(mix(random), count);
        for step in 0..count {
            if least.0 <= 1.0 {
                break;
            }
            random = mix(random);
            let index = (start + step) % count;
            let load = bound.load(&self.hosts[index], index, active);
            if load < least.0 {
                least = (load, index);
            }
        }
        least.1
    }
}

impl Bound {
    fn new(hashing: Hashing, weights: &[f64]) -> Option<Self> {
        let total: f64 = weights.iter().sum();
        (hashing.balance_factor > 0).then(|| Self {
            factor: hashing.balance_factor,
            shares: weights.iter().map(|weight| weight / total).collect(),
        })
    }

    /// Requests under way on `host` against what it may have: above one is too many.
    #[expect(clippy::cast_precision_loss, reason = "counts of requests are small")]
    fn load(&self, host: &Host, index: usize, active: u64) -> f64 {
        let slots = ((active + 1) * u64::from(self.factor)).div_ceil(100) as f64;
        let own = (slots * self.shares[index]).ceil().max(1.0);
        host.stats.rq_active.value() as f64 / own
    }
}

/// The next of a chain of random numbers (splitmix64).
pub(crate) fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The text that a host is hashed by: its own hash key, its name if asked for, or its address.
fn hash_key(host: &Host, hashing: Hashing) -> &str {
    if let Some(fields) = host.metadata_of("envoy.lb")
        && let Some(value) = fields.fields.get("hash_key")
        && let Some(prost_types::value::Kind::StringValue(key)) = &value.kind
    {
        return key;
    }
    if hashing.by_hostname {
        &host.hostname
    } else {
        &host.address_text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::host::testing::host;
    use policy::RingOptions;

    fn pool(policy: &LbPolicy, weights: &[f64]) -> Pool {
        let hosts = (1..).zip(weights).map(|(last, _)| host(last, true));
        Pool::build(policy, hosts.collect(), weights)
    }

    fn shares(pool: &Pool, rounds: u64) -> Vec<u64> {
        let mut counts = vec![0; pool.hosts.len()];
        for round in 0..rounds {
            let chosen = pool.choose(None, mix(round), 0, 0).unwrap();
            let index = pool.hosts.iter().position(|host| host.id == chosen.id);
            counts[index.unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn every_policy_follows_the_weights() {
        let hashing = Hashing::default();
        for policy in [
            LbPolicy::RoundRobin,
            LbPolicy::Random,
            LbPolicy::LeastRequest {
                choices: Some(2),
                bias: 1.0,
            },
            LbPolicy::RingHash(
                RingOptions {
                    minimum: 4096,
                    maximum: 8 << 20,
                    is_murmur: false,
                },
                hashing,
            ),
            LbPolicy::Maglev {
                size: 65_537,
                hashing,
            },
        ] {
            let counts = shares(&pool(&policy, &[1.0, 3.0]), 4000);
            assert!((800..1200).contains(&counts[0]), "{policy:?}: {counts:?}");
        }
    }

    #[test]
    fn least_request_prefers_the_idle_host() {
        for (choices, weights) in [(Some(2), [1.0, 1.0]), (None, [1.0, 1.0])] {
            let pool = pool(&LbPolicy::LeastRequest { choices, bias: 1.0 }, &weights);
            for _ in 0..9 {
                pool.hosts[0].stats.rq_active.inc();
            }
            let counts = shares(&pool, 1000);
            assert!(counts[1] > 700, "{counts:?}");
        }
        let weighted = pool(
            &LbPolicy::LeastRequest {
                choices: Some(2),
                bias: 1.0,
            },
            &[9.0, 3.0],
        );
        for _ in 0..8 {
            weighted.hosts[0].stats.rq_active.inc();
        }
        // 9 / (8 + 1) against 3 / 1.
        let counts = shares(&weighted, 4000);
        assert!((800..1200).contains(&counts[0]), "{counts:?}");
    }

    #[test]
    fn a_host_is_known_before_its_turn() {
        for policy in [LbPolicy::RoundRobin, LbPolicy::Random] {
            for weights in [[1.0, 1.0, 1.0], [3.0, 1.0, 2.0]] {
                let pool = pool(&policy, &weights);
                let peeked: Vec<u64> = (0..9)
                    .map(|before| pool.peek(mix(before), before as usize).unwrap().id)
                    .collect();
                let chosen: Vec<u64> = (0..9)
                    .map(|round| pool.choose(None, mix(round), 0, 0).unwrap().id)
                    .collect();
                assert_eq!(peeked, chosen, "{policy:?} {weights:?}");
            }
        }
        let least = LbPolicy::LeastRequest {
            choices: Some(2),
            bias: 1.0,
        };
        assert!(pool(&least, &[1.0, 1.0]).peek(0, 0).is_none());
    }

    #[test]
    fn a_hashed_host_with_too_much_to_do_is_passed_over() {
        let hashing = Hashing {
            by_hostname: false,
            balance_factor: 150,
        };
        let pool = pool(
            &LbPolicy::Maglev {
                size: 65_537,
                hashing,
            },
            &[1.0, 1.0, 1.0],
        );
        let first = pool.choose(Some(7), 0, 0, 0).unwrap().clone();
        for _ in 0..5 {
            first.stats.rq_active.inc();
        }
        assert_ne!(pool.choose(Some(7), 0, 0, 5).unwrap().id, first.id);
    }
}
