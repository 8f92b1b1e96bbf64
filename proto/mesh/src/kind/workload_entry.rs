//! Rules of WorkloadEntry, by itself and as an endpoint of a ServiceEntry.

use std::collections::HashSet;

use proto::istio::networking::v1alpha3::WorkloadEntry;

use crate::finding::Report;
use crate::kind::address::{self, check_unix_path, is_ip};
use crate::kind::selector;
use crate::resource::Metadata;
use crate::{host, port};

/// Reports what is wrong.
pub(super) fn check(spec: &WorkloadEntry, _meta: &Metadata, report: &mut Report) {
    check_endpoint(spec, None, Addresses::Any, report);
}

/// Which addresses an endpoint may have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Addresses {
    /// DNS names, IP addresses, Unix sockets.
    Any,
    /// IP addresses and Unix sockets: nothing is resolved.
    Static,
    /// What can be resolved: DNS names and IP addresses.
    Resolved,
}

/// Checks an endpoint; `ports` are the names of its service's ports, if it has a service.
pub(super) fn check_endpoint(
    spec: &WorkloadEntry,
    ports: Option<&HashSet<&str>>,
    addresses: Addresses,
    report: &mut Report,
) {
    if spec.address.is_empty() && addresses != Addresses::Resolved {
        if spec.network.is_empty() {
            report.error_at("address", "the address is missing");
            return;
        }
        report.warning_at(
            "address",
            format!(
                "no address: the workload is reached through the gateways of {:?}",
                spec.network
            ),
        );
    } else {
        report.require_at("address", check_address(spec, ports, addresses));
    }
    report.entries("ports", &spec.ports, |report, name, number| {
        if ports.is_some_and(|ports| !ports.contains(name.as_str())) {
            report.error(format!(
                "the service has no port {name:?}: use the name of one of its ports"
            ));
        }
        for result in [port::check_name(name), port::check_number(*number)] {
            report.require(result);
        }
    });
    selector::check_assigned("labels", &spec.labels, report);
}

fn check_address(
    spec: &WorkloadEntry,
    ports: Option<&HashSet<&str>>,
    addresses: Addresses,
) -> Result<(), String> {
    let text = &spec.address;
    if let (Some(path), true) = (
        text.strip_prefix(address::UNIX),
        addresses != Addresses::Resolved,
    ) {
        check_unix_path(path)?;
        if !spec.ports.is_empty() {
            return Err("a Unix socket has no ports: leave ports out".into());
        }
        if ports.is_some_and(|ports| ports.len() != 1) {
            return Err("a Unix socket can serve one port only: give the service one port".into());
        }
        return Ok(());
    }
    if is_ip(text) {
        return Ok(());
    }
    if addresses == Addresses::Static {
        return Err(format!(
            "{text:?} is no IP address; with resolution STATIC names are not resolved"
        ));
    }
    host::check_name(text).map_err(|_| format!("{text:?} is neither a DNS name nor an IP address"))
}
