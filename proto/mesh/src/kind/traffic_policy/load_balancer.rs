//! Load balancing: algorithms, warm-up, localities.

use std::collections::HashSet;

use proto::istio::networking::v1alpha3::load_balancer_settings::consistent_hash_lb::{
    HashAlgorithm, HashKey,
};
use proto::istio::networking::v1alpha3::load_balancer_settings::{ConsistentHashLb, LbPolicy};
use proto::istio::networking::v1alpha3::{
    LoadBalancerSettings, LocalityLoadBalancerSetting, WarmupConfiguration,
    ZoneAwareLoadBalancerSetting,
};

use super::require_duration;
use crate::finding::Report;

/// Largest Maglev table.
const MAX_MAGLEV_TABLE: u64 = 5_000_011;

/// The labels of a place; failover by region and by these exclude each other.
const TOPOLOGY_LABELS: [&str; 3] = [
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.istio.io/subzone",
];

/// Reports what is wrong; `ejects` says whether there is outlier detection.
pub(super) fn check(settings: &LoadBalancerSettings, ejects: bool, report: &mut Report) {
    if let Some(LbPolicy::ConsistentHash(hash)) = &settings.lb_policy {
        report.at("consistentHash", |report| check_hash(hash, report));
    }
    if settings.locality_lb_setting.is_some() && settings.zone_aware_lb_setting.is_some() {
        report.error("give either localityLbSetting or zoneAwareLbSetting, not both");
    }
    if let Some(locality) = &settings.locality_lb_setting {
        report.at("localityLbSetting", |report| {
            check_locality(locality, ejects, report);
        });
    }
    if let Some(zones) = &settings.zone_aware_lb_setting {
        report.at("zoneAwareLbSetting", |report| {
            check_zones(zones, ejects, report);
        });
    }
    check_old_warmup(settings, report);
    if let Some(warmup) = &settings.warmup {
        report.at("warmup", |report| check_warmup(warmup, report));
    }
}

#[allow(deprecated, reason = "the old field is still read")]
fn check_old_warmup(settings: &LoadBalancerSettings, report: &mut Report) {
    require_duration(
        "warmupDurationSecs",
        settings.warmup_duration_secs.as_ref(),
        report,
    );
}

fn check_warmup(warmup: &WarmupConfiguration, report: &mut Report) {
    if warmup.duration.is_none() {
        report.error_at("duration", "the duration is missing");
    }
    require_duration("duration", warmup.duration.as_ref(), report);
    if let Some(percent) = warmup.minimum_percent
        && !(0.0..=100.0).contains(&percent)
    {
        report.error_at(
            "minimumPercent",
            format!("the percentage {percent} is not in 0..=100"),
        );
    }
    if warmup
        .aggression
        .is_some_and(|aggression| aggression <= 0.0)
    {
        report.error_at(
            "aggression",
            "the aggression must be greater than 0; 1 is linear",
        );
    }
}

fn check_hash(hash: &ConsistentHashLb, report: &mut Report) {
    if let Some(HashKey::HttpCookie(cookie)) = &hash.hash_key {
        report.at("httpCookie", |report| {
            if cookie.name.is_empty() {
                report.error_at("name", "the cookie's name is missing");
            }
            let mut names = HashSet::new();
            report.each("attributes", &cookie.attributes, |report, attribute| {
                if attribute.name.is_empty() {
                    report.error_at("name", "the attribute's name is missing");
                } else if !names.insert(attribute.name.clone()) {
                    report.error_at(
                        "name",
                        format!("the attribute {:?} is given twice", attribute.name),
                    );
                }
            });
        });
    }
    if minimum_ring_size(hash) != 0 {
        report.warning_at(
            "minimumRingSize",
            "minimumRingSize is the old form: use ringHash.minimumRingSize",
        );
        if hash.hash_algorithm.is_some() {
            report.error_at(
                "minimumRingSize",
                "give either minimumRingSize or an algorithm, not both",
            );
        }
    }
    if let Some(HashAlgorithm::Maglev(maglev)) = &hash.hash_algorithm {
        report.require_at("maglev.tableSize", check_table_size(maglev.table_size));
    }
}

#[allow(deprecated, reason = "the old field is still read")]
fn minimum_ring_size(hash: &ConsistentHashLb) -> u64 {
    hash.minimum_ring_size
}

fn check_table_size(size: u64) -> Result<(), String> {
    if size == 0 {
        return Err("the table's size is missing: give a prime number, as 65537".into());
    }
    if size >= MAX_MAGLEV_TABLE {
        return Err(format!(
            "the table's size {size} must be less than {MAX_MAGLEV_TABLE}"
        ));
    }
    if !is_prime(size) {
        return Err(format!(
            "the table's size {size} is no prime number; 65537 is one"
        ));
    }
    Ok(())
}

/// QUIRK: 1 passes for a prime, as in Envoy.
fn is_prime(number: u64) -> bool {
    (1..4).contains(&number)
        || (number % 2 == 1
            && (3..)
                .step_by(2)
                .take_while(|factor| factor * factor <= number)
                .all(|factor| !number.is_multiple_of(factor)))
}

/// Reports what is wrong with a zone-aware setting: it orders by region itself, and leaves zones to the proxy.
pub(crate) fn check_zones(
    setting: &ZoneAwareLoadBalancerSetting,
    ejects: bool,
    report: &mut Report,
) {
    if let Some(label) = by_place(&setting.failover_priority) {
        report.error_at(
            "failoverPriority",
            format!("{label} cannot be in it: regions come first anyway, zones are the proxy's"),
        );
        return;
    }
    let as_locality = LocalityLoadBalancerSetting {
        failover: setting.failover.clone(),
        failover_priority: setting.failover_priority.clone(),
        ..LocalityLoadBalancerSetting::default()
    };
    check_locality(&as_locality, ejects, report);
}

/// The first label of a place.
fn by_place(labels: &[String]) -> Option<&String> {
    labels
        .iter()
        .find(|label| TOPOLOGY_LABELS.contains(&label.as_str()))
}

/// Reports what is wrong with a setting about localities.
pub(crate) fn check_locality(
    setting: &LocalityLoadBalancerSetting,
    ejects: bool,
    report: &mut Report,
) {
    if !setting.distribute.is_empty() && !setting.failover.is_empty() {
        report.error("give either distribute or failover, not both");
        return;
    }
    let label = by_place(&setting.failover_priority);
    if let (false, Some(label)) = (setting.failover.is_empty(), label) {
        report.error_at(
            "failoverPriority",
            format!("with failover, {label} cannot be in failoverPriority: both order places"),
        );
        return;
    }
    report.each("distribute", &setting.distribute, |report, distribute| {
        let mut total = 0_u64;
        report.entries("to", &distribute.to, |report, _, weight| {
            if !(1..=100).contains(weight) {
                report.error(format!("the weight {weight} is not in 1..=100"));
            }
            total += u64::from(*weight);
        });
        if total != 100 {
            report.error_at(
                "to",
                format!("the weights add up to {total}; they must add up to 100"),
            );
        }
        let mut destinations: Vec<_> = distribute.to.keys().map(String::as_str).collect();
        destinations.sort_unstable();
        report.require_at("to", check_places(&destinations));
    });
    let sources: Vec<_> = setting
        .distribute
        .iter()
        .map(|distribute| distribute.from.as_str())
        .collect();
    report.require_at("distribute", check_places(&sources));
    if (!setting.failover.is_empty() || !setting.failover_priority.is_empty()) && !ejects {
        report.warning(
            "nothing fails over without outlierDetection: nobody would notice that endpoints fail",
        );
    }
    report.each("failover", &setting.failover, |report, failover| {
        if failover.from == failover.to {
            report.error("from and to are the same region");
        }
        for (field, region) in [("from", &failover.from), ("to", &failover.to)] {
            if region.contains('/') {
                report.error_at(
                    field,
                    format!("{region:?} is more than a region: failover is between regions"),
                );
            }
            if region.contains('*') {
                report.error_at(field, format!("{region:?} has a wildcard: name a region"));
            }
        }
    });
}

/// Checks places such as `region/zone/*`: at most one wildcard, at the end; no empty part; none covered by another.
fn check_places(places: &[&str]) -> Result<(), String> {
    for (index, place) in places.iter().enumerate() {
        if place.trim_end_matches('*').contains('*') || place.ends_with("**") {
            return Err(format!("{place:?} can have one wildcard, at its end"));
        }
        if place.splitn(3, '/').any(str::is_empty) {
            return Err(format!(
                "{place:?} has an empty part: write region/zone/subzone"
            ));
        }
        if let Some(other) = places[..index].iter().find(|other| overlap(place, other)) {
            return Err(format!("{place:?} and {other:?} cover the same places"));
        }
    }
    Ok(())
}

/// True when one of the places is, or contains, the other. A missing part covers all.
fn overlap(a: &str, b: &str) -> bool {
    for (a, b) in a.splitn(3, '/').zip(b.splitn(3, '/')) {
        if a == "*" || b == "*" {
            return true;
        }
        if a != b {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_do_not_overlap() {
        for places in [
            &["a", "b"][..],
            &["a/x", "a/y"],
            &["a/x/1", "a/x/2", "b/*"],
            &["*"],
        ] {
            assert_eq!(check_places(places), Ok(()), "{places:?}");
        }
        for places in [
            &["a", "a/x"][..],
            &["*", "a"],
            &["a/*", "a/x"],
            &["a/x/1", "a/x"],
            &["a", "a"],
            &["a//x"],
            &["*/a"],
            &["**"],
        ] {
            assert!(check_places(places).is_err(), "{places:?}");
        }
    }

    #[test]
    fn maglev_tables_have_a_prime_size() {
        assert!(check_table_size(65537).is_ok() && check_table_size(2).is_ok());
        for size in [0, 4, 65536, 5_000_011, 25] {
            assert!(check_table_size(size).is_err(), "{size}");
        }
    }
}
