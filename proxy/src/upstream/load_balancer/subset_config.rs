//! Subsets as configured: by which metadata hosts are grouped, and where a request goes that no group fits.

use crate::invalid::{At as _, Invalid, try_all};
use prost_types::Struct;
use proto::envoy::{
    config::cluster::v3::cluster::LbSubsetConfig as Older,
    extensions::load_balancing_policies::subset::v3::Subset as Typed,
};
use std::collections::BTreeSet;

/// How hosts are grouped.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SubsetConfig {
    /// Where requests go that no subset fits.
    pub(crate) fallback: SubsetFallback,
    /// The metadata of `DEFAULT_SUBSET`.
    pub(crate) default_subset: Struct,
    /// Keys that make subsets.
    pub(crate) selectors: Vec<Selector>,
    /// Whether locality weights hold inside subsets.
    pub(crate) is_locality_aware: bool,
    /// Whether a locality's weight shrinks with its share of the subset.
    pub(crate) scales_localities: bool,
    /// Any host when the fallback has none.
    pub(crate) panics_to_any: bool,
    /// A list in a host's metadata stands for each of its values.
    pub(crate) is_list_any: bool,
}

/// Where requests go that no subset fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SubsetFallback {
    /// Nowhere.
    None,
    /// To any host.
    Any,
    /// To hosts with the default metadata.
    Default,
}

/// Keys whose values make a subset each.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Selector {
    pub(crate) keys: BTreeSet<String>,
    pub(crate) fallback: SelectorFallback,
    /// A subset is one host.
    pub(crate) is_single: bool,
}

/// Where requests go that name the keys of a selector but no subset of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SelectorFallback {
    /// Where all such requests go.
    Inherit,
    /// Elsewhere.
    Policy(SubsetFallback),
    /// To the subset of some of the keys.
    Keys(BTreeSet<String>),
}

/// One selector, whichever message it came in.
struct Parts<'a> {
    keys: &'a [String],
    fallback: i32,
    fallback_keys: &'a [String],
    is_single: bool,
}

impl SubsetConfig {
    /// From `lb_subset_config`.
    pub(super) fn older(wire: &Older) -> Result<Self, Invalid> {
        if wire.metadata_fallback_policy != 0 {
            return Err(Invalid::unsupported("FALLBACK_LIST").at("metadata_fallback_policy"));
        }
        Ok(Self {
            fallback: SubsetFallback::of(wire.fallback_policy).at("fallback_policy")?,
            default_subset: wire.default_subset.clone().unwrap_or_default(),
            selectors: try_all("subset_selectors", &wire.subset_selectors, |one| {
                Selector::new(&Parts {
                    keys: &one.keys,
                    fallback: one.fallback_policy,
                    fallback_keys: &one.fallback_keys_subset,
                    is_single: one.single_host_per_subset,
                })
            })?,
            is_locality_aware: wire.locality_weight_aware,
            scales_localities: wire.scale_locality_weight,
            panics_to_any: wire.panic_mode_any,
            is_list_any: wire.list_as_any,
        })
    }

    /// From the typed policy.
    pub(super) fn typed(wire: &Typed) -> Result<Self, Invalid> {
        if wire.metadata_fallback_policy != 0 {
            return Err(Invalid::unsupported("FALLBACK_LIST").at("metadata_fallback_policy"));
        }
        Ok(Self {
            fallback: SubsetFallback::of(wire.fallback_policy).at("fallback_policy")?,
            default_subset: wire.default_subset.clone().unwrap_or_default(),
            selectors: try_all("subset_selectors", &wire.subset_selectors, |one| {
                Selector::new(&Parts {
                    keys: &one.keys,
                    fallback: one.fallback_policy,
                    fallback_keys: &one.fallback_keys_subset,
                    is_single: one.single_host_per_subset,
                })
            })?,
            is_locality_aware: wire.locality_weight_aware,
            scales_localities: wire.scale_locality_weight,
            panics_to_any: wire.panic_mode_any,
            is_list_any: wire.list_as_any,
        })
    }
}

impl SubsetFallback {
    fn of(number: i32) -> Result<Self, Invalid> {
        match number {
            0 => Ok(Self::None),
            1 => Ok(Self::Any),
            2 => Ok(Self::Default),
            _ => Err(Invalid::new(format!("{number} is not a fallback policy"))),
        }
    }
}

impl Selector {
    fn new(parts: &Parts<'_>) -> Result<Self, Invalid> {
        let keys: BTreeSet<String> = parts.keys.iter().cloned().collect();
        if keys.is_empty() {
            return Err(Invalid::new("at least one is needed").at("keys"));
        }
        if parts.is_single && keys.len() != 1 {
            return Err(Invalid::new("it goes with exactly one key").at("single_host_per_subset"));
        }
        let fallback = match parts.fallback {
            0 => SelectorFallback::Inherit,
            // Here the numbers are one higher, zero being "not defined".
            number @ 1..=3 => SelectorFallback::Policy(SubsetFallback::of(number - 1)?),
            4 => {
                let chosen: BTreeSet<String> = parts.fallback_keys.iter().cloned().collect();
                let is_smaller = !chosen.is_empty() && chosen.is_subset(&keys) && chosen != keys;
                if !is_smaller {
                    return Err(Invalid::new("some of the keys, not all, are needed")
                        .at("fallback_keys_subset"));
                }
                SelectorFallback::Keys(chosen)
            }
            number => {
                return Err(Invalid::new(format!("{number} is not a fallback policy"))
                    .at("fallback_policy"));
            }
        };
        Ok(Self {
            keys,
            fallback,
            is_single: parts.is_single,
        })
    }
}
