//! Subsets as configured: by which metadata hosts are grouped, and where a request goes that no group fits.

use crate::invalid::{At as _, Invalid, try_all};
use prost_types::Struct;
use proto::envoy::{
    config::cluster::v3::cluster::{
        LbSubsetConfig as Older, lb_subset_config::LbSubsetSelector as OlderSelector,
    },
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

impl SubsetConfig {
    /// From `lb_subset_config`.
    pub(super) fn older(wire: &Older) -> Result<Self, Invalid> {
        if wire.metadata_fallback_policy != 0 {
            return Err(Invalid::unsupported("FALLBACK_LIST").at("metadata_fallback_policy"));
        }
        Ok(Self {
            fallback: SubsetFallback::of(wire.fallback_policy).at("fallback_policy")?,
            default_subset: wire.default_subset.clone().unwrap_or_default(),
            selectors: try_all(
                "subset_selectors",
                &wire.subset_selectors,
                Selector::try_from,
            )?,
            is_locality_aware: wire.locality_weight_aware,
            scales_localities: wire.scale_locality_weight,
            panics_to_any: wire.panic_mode_any,
            is_list_any: wire.list_as_any,
        })
    }

    /// From the typed policy, whose fields are the older message's under the same names.
    pub(super) fn typed(wire: &Typed) -> Result<Self, Invalid> {
        let selectors = wire.subset_selectors.iter();
        Self::older(&Older {
            fallback_policy: wire.fallback_policy,
            default_subset: wire.default_subset.clone(),
            subset_selectors: selectors
                .map(|one| OlderSelector {
                    keys: one.keys.clone(),
                    single_host_per_subset: one.single_host_per_subset,
                    fallback_policy: one.fallback_policy,
                    fallback_keys_subset: one.fallback_keys_subset.clone(),
                })
                .collect(),
            locality_weight_aware: wire.locality_weight_aware,
            scale_locality_weight: wire.scale_locality_weight,
            panic_mode_any: wire.panic_mode_any,
            list_as_any: wire.list_as_any,
            metadata_fallback_policy: wire.metadata_fallback_policy,
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

impl TryFrom<&OlderSelector> for Selector {
    type Error = Invalid;

    fn try_from(wire: &OlderSelector) -> Result<Self, Invalid> {
        let keys: BTreeSet<String> = wire.keys.iter().cloned().collect();
        if keys.is_empty() {
            return Err(Invalid::new("at least one is needed").at("keys"));
        }
        if wire.single_host_per_subset && keys.len() != 1 {
            return Err(Invalid::new("it goes with exactly one key").at("single_host_per_subset"));
        }
        let fallback = match wire.fallback_policy {
            0 => SelectorFallback::Inherit,
            // Here the numbers are one higher, zero being "not defined".
            number @ 1..=3 => SelectorFallback::Policy(SubsetFallback::of(number - 1)?),
            4 => {
                let chosen: BTreeSet<String> = wire.fallback_keys_subset.iter().cloned().collect();
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
            is_single: wire.single_host_per_subset,
        })
    }
}
