//! Locality load balancing: shares by place, or the nearest first.

use std::collections::BTreeSet;

use proto::envoy::config::core::v3::Locality;
use proto::envoy::config::endpoint::v3::LocalityLbEndpoints;
use proto::istio::networking::v1alpha3::LocalityLoadBalancerSetting;

use crate::model::endpoint::split_locality;
use crate::model::{Endpoint, Proxy};
use crate::networking::cluster::Places;

/// Sets weights and priorities. `label_priorities` are what [`label_priority`] says of each.
pub(super) fn apply(
    localities: &mut Vec<LocalityLbEndpoints>,
    places: Places<'_>,
    proxy: &Proxy,
    label_priorities: Vec<usize>,
) {
    let own = proxy.locality.as_str();
    if let Places::ByLocality(setting) = places
        && !setting.distribute.is_empty()
    {
        if !own.is_empty() {
            distribute(localities, setting, own);
        }
        return;
    }
    let is_by_label = !places.labels().is_empty();
    let is_by_zone = matches!(places, Places::ByZone(_));
    if !own.is_empty() && (is_by_zone || !is_by_label || !places.failover().is_empty()) {
        fail_over(localities, places, own);
    }
    if is_by_label {
        // Labels decide first, the place among equals.
        for (locality, by_label) in localities.iter_mut().zip(label_priorities) {
            let by_label = u32::try_from(by_label).unwrap_or(u32::MAX / 8);
            locality.priority += by_label * 5;
        }
    }
    close_gaps(localities);
}

/// How far an endpoint is away by labels: of N labels the first k are the same as the proxy's, so its priority is N - k.
pub(super) fn label_priority(labels: &[String], proxy: &Proxy, endpoint: &Endpoint) -> usize {
    let count = labels.len();
    let (mut same, mut penalty) = (0, 0);
    for (index, entry) in labels.iter().enumerate() {
        let (name, wanted) = match entry.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (entry.as_str(), proxy_label(proxy, entry)),
        };
        if wanted.unwrap_or_default() == endpoint_label(endpoint, name).unwrap_or_default() {
            same += 1;
        } else if index == 0 && name == NETWORK {
            // Another network is worse than everything in the own one, and its endpoints are still told apart.
            penalty = count;
            same += 1;
        } else {
            break;
        }
    }
    count - same + penalty
}

const NETWORK: &str = "topology.istio.io/network";
const CLUSTER: &str = "topology.istio.io/cluster";

fn place(locality: &str, name: &str) -> Option<String> {
    let (region, zone, subzone) = split_locality(locality);
    let found = match name {
        "topology.kubernetes.io/region" | "failure-domain.beta.kubernetes.io/region" => region,
        "topology.kubernetes.io/zone" | "failure-domain.beta.kubernetes.io/zone" => zone,
        "topology.istio.io/subzone" => subzone,
        _ => return None,
    };
    Some(found.to_owned())
}

fn proxy_label(proxy: &Proxy, name: &str) -> Option<String> {
    let metadata = match name {
        NETWORK => proxy.metadata_text("NETWORK"),
        CLUSTER => proxy.metadata_text("CLUSTER_ID"),
        _ => None,
    };
    proxy
        .label(name)
        .or(metadata)
        .map(str::to_owned)
        .or_else(|| place(&proxy.locality, name))
}

fn endpoint_label(endpoint: &Endpoint, name: &str) -> Option<String> {
    let own = endpoint.labels.get(name).cloned();
    let network =
        || (name == NETWORK && !endpoint.network.is_empty()).then(|| endpoint.network.clone());
    own.or_else(network)
        .or_else(|| place(&endpoint.locality, name))
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

fn fail_over(localities: &mut [LocalityLbEndpoints], places: Places<'_>, own: &str) {
    let (region, zone, subzone) = split_locality(own);
    let is_by_zone = matches!(places, Places::ByZone(_));
    let target = places
        .failover()
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
        } else if is_by_zone {
            0
        } else if place.zone != zone {
            2
        } else if place.sub_zone != subzone {
            1
        } else {
            0
        };
    }
}

/// Priorities must be without gaps.
fn close_gaps(localities: &mut [LocalityLbEndpoints]) {
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
