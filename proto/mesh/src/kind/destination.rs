//! Destinations of traffic: a host, perhaps a subset and a port.

use proto::istio::networking::v1alpha3::{Destination, RouteDestination};

use crate::finding::Report;
use crate::labels::is_dns_label;
use crate::{host, port};

/// Checks one destination.
pub(super) fn check(destination: &Destination, report: &mut Report) {
    if destination.host == host::ANY {
        report.error_at("host", "`*` is no destination: name a host");
    } else {
        report.require_at("host", host::check(&destination.host));
    }
    if !destination.subset.is_empty() {
        report.require_at("subset", check_subset_name(&destination.subset));
    }
    if let Some(selector) = &destination.port {
        report.require_at("port.number", port::check_number(selector.number));
    }
}

/// Checks a subset's name: a DNS label.
pub(super) fn check_subset_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("the subset's name is empty".into());
    }
    if is_dns_label(name) {
        return Ok(());
    }
    Err(format!(
        "{name:?} is no subset name: give letters, digits and `-`"
    ))
}

/// Checks `route` of TCP and TLS routes.
pub(super) fn check_routes(routes: &[RouteDestination], report: &mut Report) {
    report.each("route", routes, |report, route| {
        match &route.destination {
            Some(destination) => report.at("destination", |report| check(destination, report)),
            None => report.error_at("destination", "the destination is missing"),
        }
        report.require_at("weight", check_weight(route.weight));
    });
    check_total_weight(routes.iter().map(|route| route.weight), report);
}

/// Checks a weight.
pub(super) fn check_weight(weight: i32) -> Result<(), String> {
    if weight < 0 {
        return Err(format!("the weight {weight} is negative"));
    }
    Ok(())
}

/// Several destinations need weights of which at least one is not 0.
pub(super) fn check_total_weight(weights: impl Iterator<Item = i32> + Clone, report: &mut Report) {
    if weights.clone().count() > 1 && weights.map(i64::from).sum::<i64>() == 0 {
        report.error_at(
            "route",
            "the weights of the destinations add up to 0: give at least one a weight",
        );
    }
}
