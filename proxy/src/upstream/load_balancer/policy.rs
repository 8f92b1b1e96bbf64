//! The load-balancing policy of a cluster as configured: the algorithm, what localities mean to it, slow start, subsets.
//!
//! Both forms lead here: `lb_policy` with its companions, and `load_balancing_policy` (the first of its list that is known).
#![allow(
    deprecated,
    reason = "control planes still send the fields that Envoy has deprecated"
)]

mod slow_start;

pub(crate) use slow_start::SlowStart;

use super::subset_config::SubsetConfig;
use crate::{
    invalid::{At as _, Invalid},
    upstream::Discovery,
};
use proto::envoy::{
    config::cluster::v3::{
        Cluster as Wire, LoadBalancingPolicy,
        cluster::{
            CommonLbConfig, LbConfig, LbPolicy as WirePolicy, SlowStartConfig as WireSlowStart,
            common_lb_config::LocalityConfigSpecifier,
        },
    },
    extensions::load_balancing_policies::{
        cluster_provided::v3::ClusterProvided,
        common::v3::{
            ConsistentHashingLbConfig, LocalityLbConfig, SlowStartConfig,
            locality_lb_config::LocalityConfigSpecifier as TypedLocality,
        },
        least_request::v3::LeastRequest,
        maglev::v3::Maglev,
        random::v3::Random,
        ring_hash::v3::RingHash,
        round_robin::v3::RoundRobin,
        subset::v3::Subset,
        wrr_locality::v3::WrrLocality,
    },
};

/// How hosts are chosen.
#[derive(Clone, Debug)]
pub(crate) struct Balancing {
    /// The algorithm.
    pub(crate) algorithm: LbPolicy,
    /// What localities mean.
    pub(crate) locality: LocalityRule,
    /// New hosts get their share little by little.
    pub(crate) slow_start: Option<SlowStart>,
    /// Subsets by metadata.
    pub(crate) subsets: Option<SubsetConfig>,
    /// Percent of healthy hosts under which all are used; zero for never.
    pub(crate) panic_threshold: f64,
    /// In panic nobody is used instead of all.
    pub(crate) fails_on_panic: bool,
    /// Hosts that no health check has answered for yet do not count.
    pub(crate) ignores_new_hosts: bool,
}

/// The algorithm.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum LbPolicy {
    /// In turn.
    RoundRobin,
    /// The least busy of some.
    LeastRequest {
        /// How many are compared; none for all.
        choices: Option<u32>,
        /// How much activity counts against weight.
        bias: f64,
    },
    /// Any.
    Random,
    /// Ring hash.
    RingHash(RingOptions, Hashing),
    /// Maglev.
    Maglev {
        /// A prime.
        size: u64,
        /// Common to both.
        hashing: Hashing,
    },
    /// The discovery decides (original destination).
    ClusterProvided,
}

/// The ring's shape.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RingOptions {
    pub(crate) minimum: u64,
    pub(crate) maximum: u64,
    pub(crate) is_murmur: bool,
}

/// What consistent hashing has in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hashing {
    /// Hosts are hashed by name, not by address.
    pub(crate) by_hostname: bool,
    /// A host gets at most this percentage of its fair share of requests at once; zero for no bound.
    pub(crate) balance_factor: u32,
}

/// What localities mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum LocalityRule {
    /// Traffic goes by the weights of the localities.
    Weighted,
    /// Traffic stays in the proxy's own zone as far as that is fair.
    ZoneAware {
        /// Percent of requests that this applies to.
        enabled: f64,
        /// Clusters with fewer hosts are left alone.
        minimum: u64,
    },
}

impl Balancing {
    /// Checks the policy of `wire`.
    pub(crate) fn of(wire: &Wire, discovery: &Discovery) -> Result<Self, Invalid> {
        let common = wire.common_lb_config.clone().unwrap_or_default();
        let mut balancing = Self {
            algorithm: LbPolicy::RoundRobin,
            // It takes the proxy's own cluster to mean anything; Envoy has it on, too.
            locality: LocalityRule::zone(None, None),
            slow_start: None,
            subsets: None,
            panic_threshold: common
                .healthy_panic_threshold
                .as_ref()
                .map_or(50.0, |percent| percent.value),
            fails_on_panic: false,
            ignores_new_hosts: common.ignore_new_hosts_until_first_hc,
        };
        if common.override_host_status.is_some() {
            return Err(Invalid::unsupported("override_host_status").at("common_lb_config"));
        }
        if let Some(policy) = &wire.load_balancing_policy {
            // As in Envoy it takes the place of every older field.
            balancing.typed(policy).at("load_balancing_policy")?;
        } else {
            balancing.older(wire, &common)?;
        }
        let is_provided = balancing.algorithm == LbPolicy::ClusterProvided;
        let is_self_balancing = matches!(
            discovery,
            Discovery::OriginalDst { .. } | Discovery::DynamicForwardProxy(_)
        );
        if is_provided != is_self_balancing {
            return Err(
                Invalid::new("CLUSTER_PROVIDED goes with clusters that choose themselves (ORIGINAL_DST, dynamic forward proxy), and only with them")
                    .at("lb_policy"),
            );
        }
        Ok(balancing)
    }

    fn older(&mut self, wire: &Wire, common: &CommonLbConfig) -> Result<(), Invalid> {
        let policy = WirePolicy::try_from(wire.lb_policy).map_err(|_| {
            Invalid::new(format!("{} is not a policy", wire.lb_policy)).at("lb_policy")
        })?;
        let hashing = common
            .consistent_hashing_lb_config
            .as_ref()
            .map_or(Ok(Hashing::default()), |wire| {
                Hashing::new(
                    wire.use_hostname_for_hashing,
                    wire.hash_balance_factor.unwrap_or(0),
                )
            })
            .at("common_lb_config.consistent_hashing_lb_config")?;
        self.algorithm = self.older_algorithm(policy, wire, hashing)?;
        match &common.locality_config_specifier {
            Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => {
                self.locality = LocalityRule::Weighted;
            }
            Some(LocalityConfigSpecifier::ZoneAwareLbConfig(zone)) => {
                self.fails_on_panic = zone.fail_traffic_on_panic;
                self.locality = LocalityRule::zone(
                    zone.routing_enabled.as_ref().map(|percent| percent.value),
                    zone.min_cluster_size,
                );
            }
            None => {}
        }
        self.subsets = wire
            .lb_subset_config
            .as_ref()
            .map(SubsetConfig::older)
            .transpose()
            .at("lb_subset_config")?;
        Ok(())
    }

    fn older_algorithm(
        &mut self,
        policy: WirePolicy,
        wire: &Wire,
        hashing: Hashing,
    ) -> Result<LbPolicy, Invalid> {
        Ok(match (policy, &wire.lb_config) {
            (WirePolicy::RoundRobin, config) => {
                if let Some(LbConfig::RoundRobinLbConfig(options)) = config {
                    self.slow_start = older_slow_start(options.slow_start_config.as_ref())?;
                }
                LbPolicy::RoundRobin
            }
            (WirePolicy::LeastRequest, Some(LbConfig::LeastRequestLbConfig(options))) => {
                self.slow_start = older_slow_start(options.slow_start_config.as_ref())?;
                LbPolicy::LeastRequest {
                    choices: Some(options.choice_count.unwrap_or(2).max(2)),
                    bias: bias(
                        options
                            .active_request_bias
                            .as_ref()
                            .map(|one| one.default_value),
                    )?,
                }
            }
            (WirePolicy::LeastRequest, _) => LbPolicy::LeastRequest {
                choices: Some(2),
                bias: 1.0,
            },
            (WirePolicy::Random, _) => LbPolicy::Random,
            (WirePolicy::RingHash, Some(LbConfig::RingHashLbConfig(options))) => {
                let ring = RingOptions::new(
                    options.minimum_ring_size,
                    options.maximum_ring_size,
                    options.hash_function == 1,
                )
                .at("ring_hash_lb_config")?;
                LbPolicy::RingHash(ring, hashing)
            }
            (WirePolicy::RingHash, _) => {
                LbPolicy::RingHash(RingOptions::new(None, None, false)?, hashing)
            }
            (WirePolicy::Maglev, config) => {
                let size = match config {
                    Some(LbConfig::MaglevLbConfig(options)) => options.table_size,
                    _ => None,
                };
                LbPolicy::Maglev {
                    size: table_size(size).at("maglev_lb_config.table_size")?,
                    hashing,
                }
            }
            (WirePolicy::ClusterProvided, _) => LbPolicy::ClusterProvided,
            (WirePolicy::LoadBalancingPolicyConfig, _) => {
                return Err(Invalid::new("it is needed").at("load_balancing_policy"));
            }
        })
    }

    /// The first policy of the list that we know.
    fn typed(&mut self, list: &LoadBalancingPolicy) -> Result<(), Invalid> {
        for (index, policy) in list.policies.iter().enumerate() {
            let Some(config) = &policy.typed_extension_config else {
                continue;
            };
            let Some(any) = &config.typed_config else {
                continue;
            };
            let at = format!("policies[{index}]");
            if self.known(any).at(at)? {
                return Ok(());
            }
        }
        let names: Vec<&str> = list
            .policies
            .iter()
            .filter_map(|policy| policy.typed_extension_config.as_ref())
            .map(|config| config.name.as_str())
            .collect();
        Err(
            Invalid::new(format!("no supported policy among [{}]", names.join(", ")))
                .at("policies"),
        )
    }

    /// Takes over one typed policy; `false` if we do not know it.
    fn known(&mut self, any: &prost_types::Any) -> Result<bool, Invalid> {
        use proto::any::{is, unpack};
        if is::<RoundRobin>(any) {
            let wire: RoundRobin = unpack(any)?;
            self.slow_start = slow_start(wire.slow_start_config.as_ref())?;
            self.localities(wire.locality_lb_config.as_ref());
            self.algorithm = LbPolicy::RoundRobin;
        } else if is::<LeastRequest>(any) {
            let wire: LeastRequest = unpack(any)?;
            self.slow_start = slow_start(wire.slow_start_config.as_ref())?;
            self.localities(wire.locality_lb_config.as_ref());
            let is_full_scan = wire.enable_full_scan == Some(true) || wire.selection_method == 1;
            self.algorithm = LbPolicy::LeastRequest {
                choices: (!is_full_scan).then(|| wire.choice_count.unwrap_or(2).max(2)),
                bias: bias(
                    wire.active_request_bias
                        .as_ref()
                        .map(|one| one.default_value),
                )?,
            };
        } else if is::<Random>(any) {
            let wire: Random = unpack(any)?;
            self.localities(wire.locality_lb_config.as_ref());
            self.algorithm = LbPolicy::Random;
        } else if is::<RingHash>(any) {
            let wire: RingHash = unpack(any)?;
            let ring = RingOptions::new(
                wire.minimum_ring_size,
                wire.maximum_ring_size,
                wire.hash_function == 2,
            )?;
            if wire.locality_weighted_lb_config.is_some() {
                self.locality = LocalityRule::Weighted;
            }
            let hashing = match &wire.consistent_hashing_lb_config {
                Some(common) => Hashing::common(common)?,
                None => Hashing::new(
                    wire.use_hostname_for_hashing,
                    wire.hash_balance_factor.unwrap_or(0),
                )?,
            };
            self.algorithm = LbPolicy::RingHash(ring, hashing);
        } else if is::<Maglev>(any) {
            let wire: Maglev = unpack(any)?;
            if wire.locality_weighted_lb_config.is_some() {
                self.locality = LocalityRule::Weighted;
            }
            self.algorithm = LbPolicy::Maglev {
                size: table_size(wire.table_size).at("table_size")?,
                hashing: wire
                    .consistent_hashing_lb_config
                    .as_ref()
                    .map_or(Ok(Hashing::default()), Hashing::common)?,
            };
        } else if is::<WrrLocality>(any) {
            let wire: WrrLocality = unpack(any)?;
            let policy = wire
                .endpoint_picking_policy
                .ok_or_else(|| Invalid::new("it is needed").at("endpoint_picking_policy"))?;
            self.typed(&policy).at("endpoint_picking_policy")?;
            self.locality = LocalityRule::Weighted;
        } else if is::<Subset>(any) {
            let wire: Subset = unpack(any)?;
            let policy = wire
                .subset_lb_policy
                .as_ref()
                .ok_or_else(|| Invalid::new("it is needed").at("subset_lb_policy"))?;
            self.typed(policy).at("subset_lb_policy")?;
            self.subsets = Some(SubsetConfig::typed(&wire)?);
        } else if is::<ClusterProvided>(any) {
            self.algorithm = LbPolicy::ClusterProvided;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    fn localities(&mut self, wire: Option<&LocalityLbConfig>) {
        match wire.and_then(|wire| wire.locality_config_specifier.as_ref()) {
            Some(TypedLocality::LocalityWeightedLbConfig(_)) => {
                self.locality = LocalityRule::Weighted;
            }
            Some(TypedLocality::ZoneAwareLbConfig(zone)) => {
                self.fails_on_panic = zone.fail_traffic_on_panic;
                self.locality = LocalityRule::zone(
                    zone.routing_enabled.as_ref().map(|percent| percent.value),
                    zone.min_cluster_size,
                );
            }
            None => {}
        }
    }
}

impl LocalityRule {
    fn zone(enabled: Option<f64>, minimum: Option<u64>) -> Self {
        Self::ZoneAware {
            enabled: enabled.unwrap_or(100.0),
            minimum: minimum.unwrap_or(6),
        }
    }
}

impl Hashing {
    fn new(by_hostname: bool, balance_factor: u32) -> Result<Self, Invalid> {
        if (1..100).contains(&balance_factor) {
            return Err(
                Invalid::new(format!("{balance_factor} is below 100")).at("hash_balance_factor")
            );
        }
        Ok(Self {
            by_hostname,
            balance_factor,
        })
    }

    fn common(wire: &ConsistentHashingLbConfig) -> Result<Self, Invalid> {
        if !wire.hash_policy.is_empty() {
            return Err(Invalid::unsupported("hash_policy").at("consistent_hashing_lb_config"));
        }
        Self::new(
            wire.use_hostname_for_hashing,
            wire.hash_balance_factor.unwrap_or(0),
        )
        .at("consistent_hashing_lb_config")
    }
}

impl RingOptions {
    fn new(minimum: Option<u64>, maximum: Option<u64>, is_murmur: bool) -> Result<Self, Invalid> {
        let (minimum, maximum) = (minimum.unwrap_or(1024), maximum.unwrap_or(8 << 20));
        if minimum > maximum || maximum > 8 << 20 {
            return Err(Invalid::new(
                "minimum_ring_size ≤ maximum_ring_size ≤ 8388608 is needed",
            ));
        }
        Ok(Self {
            minimum,
            maximum,
            is_murmur,
        })
    }
}

fn table_size(size: Option<u64>) -> Result<u64, Invalid> {
    let size = size.unwrap_or(65_537);
    if !is_prime(size) || size > 5_000_011 {
        return Err(Invalid::new(format!("{size} is not a prime up to 5000011")));
    }
    Ok(size)
}

fn is_prime(number: u64) -> bool {
    number > 2
        && (2..)
            .take_while(|factor| factor * factor <= number)
            .all(|factor| !number.is_multiple_of(factor))
}

fn bias(value: Option<f64>) -> Result<f64, Invalid> {
    match value.unwrap_or(1.0) {
        bias if bias >= 0.0 && bias.is_finite() => Ok(bias),
        bias => Err(Invalid::new(format!("{bias} is not a bias")).at("active_request_bias")),
    }
}

fn older_slow_start(wire: Option<&WireSlowStart>) -> Result<Option<SlowStart>, Invalid> {
    let Some(wire) = wire else { return Ok(None) };
    SlowStart::new(
        wire.slow_start_window.as_ref(),
        wire.aggression.as_ref().map(|one| one.default_value),
        wire.min_weight_percent
            .as_ref()
            .map(|percent| percent.value),
    )
}

fn slow_start(wire: Option<&SlowStartConfig>) -> Result<Option<SlowStart>, Invalid> {
    let Some(wire) = wire else { return Ok(None) };
    SlowStart::new(
        wire.slow_start_window.as_ref(),
        wire.aggression.as_ref().map(|one| one.default_value),
        wire.min_weight_percent
            .as_ref()
            .map(|percent| percent.value),
    )
}

#[cfg(test)]
mod tests;
