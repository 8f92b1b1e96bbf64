//! Locality load balancing: shares by place, or the nearest first.
//!
//! Failover needs outlier detection: without it nobody would notice that a place has failed.

use std::collections::{BTreeMap, BTreeSet};

use proto::envoy::config::core::v3::Locality;
use proto::envoy::config::endpoint::v3::LocalityLbEndpoints;
use proto::istio::networking::v1alpha3::LocalityLoadBalancerSetting;

use crate::model::endpoint::split_locality;

/// Sets weights and priorities.
pub(super) fn apply(
    localities: &mut Vec<LocalityLbEndpoints>,
    setting: &LocalityLoadBalancerSetting,
    own: &str,
    _labels: &BTreeMap<String, String>,
    has_outlier_detection: bool,
) {
    if own.is_empty() {
        return;
    }
    if !setting.distribute.is_empty() {
        distribute(localities, setting, own);
    } else if has_outlier_detection {
        fail_over(localities, setting, own);
    }
}

fn distribute(
    localities: &mut Vec<LocalityLbEndpoints>,
    setting: &LocalityLoadBalancerSetting,
    own: &str,
) {
    let Some(shares) = setting
        .distribute
        .iter()
        .find(|entry| matches(own, &entry.from))
    else {
        return;
    };
    let mut is_named = vec![false; localities.len()];
    for (pattern, share) in &shares.to {
        let members: Vec<usize> = (0..localities.len())
            .filter(|index| {
                !is_named[*index] && matches(&text(localities[*index].locality.as_ref()), pattern)
            })
            .collect();
        let total: u64 = members
            .iter()
            .map(|index| u64::from(weight(&localities[*index])))
            .sum();
        for index in members {
            is_named[index] = true;
            let old = u64::from(weight(&localities[index]));
            let new = if total == 0 {
                0
            } else {
                (old * u64::from(*share)).div_ceil(total)
            };
            localities[index].load_balancing_weight = u32::try_from(new).ok();
        }
    }
    // Places that are not named get nothing.
    let mut index = 0;
    localities.retain(|_| {
        index += 1;
        is_named[index - 1]
    });
}

fn fail_over(
    localities: &mut [LocalityLbEndpoints],
    setting: &LocalityLoadBalancerSetting,
    own: &str,
) {
    let (region, zone, subzone) = split_locality(own);
    let target = setting
        .failover
        .iter()
        .find(|entry| entry.from == region)
        .map(|entry| entry.to.as_str());
    for locality in localities.iter_mut() {
        let empty = Locality::default();
        let place = locality.locality.as_ref().unwrap_or(&empty);
        locality.priority = if place.region != region {
            if target.is_some_and(|target| target != place.region) {
                4
            } else {
                3
            }
        } else if place.zone != zone {
            2
        } else if place.sub_zone != subzone {
            1
        } else {
            0
        };
    }
    // Priorities must be without gaps.
    let levels: BTreeSet<u32> = localities
        .iter()
        .map(|locality| locality.priority)
        .collect();
    for locality in localities.iter_mut() {
        let rank = levels
            .iter()
            .position(|level| *level == locality.priority)
            .unwrap_or(0);
        locality.priority = u32::try_from(rank).unwrap_or(u32::MAX);
    }
    localities.sort_by_key(|locality| locality.priority);
}

fn weight(locality: &LocalityLbEndpoints) -> u32 {
    locality.load_balancing_weight.unwrap_or(1)
}

fn text(locality: Option<&Locality>) -> String {
    locality
        .map(|place| format!("{}/{}/{}", place.region, place.zone, place.sub_zone))
        .unwrap_or_default()
}

/// `region/*`, `region/zone/*`, `*` or an exact place.
fn matches(place: &str, pattern: &str) -> bool {
    let mut parts = place.split('/');
    for wanted in pattern.split('/') {
        if wanted == "*" {
            return true;
        }
        if parts.next().unwrap_or_default() != wanted {
            return false;
        }
    }
    parts.all(|part| part.is_empty() || !pattern.contains('/') || pattern.split('/').count() < 3)
}
