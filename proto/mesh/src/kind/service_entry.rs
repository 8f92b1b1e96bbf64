//! Rules of ServiceEntry: hosts, ports, and endpoints as its resolution allows.

use std::collections::HashSet;

use proto::istio::networking::v1alpha3::service_entry::{Location, Resolution};
use proto::istio::networking::v1alpha3::{ServiceEntry, ServicePort};

use crate::finding::Report;
use crate::kind::address::check_range;
use crate::kind::workload_entry::{Addresses, check_endpoint};
use crate::kind::{export_to, selector};
use crate::protocol::Protocol;
use crate::resource::Metadata;
use crate::{host, port};

const MAX_HOSTS: usize = 256;
const MAX_ADDRESSES: usize = 256;
const MAX_ENDPOINTS: usize = 4096;

/// On every entry that Galley makes of a Kubernetes service.
const SYNTHETIC: &str = "networking.alpha.istio.io/serviceVersion";

/// Label that keeps automatic addresses away from an entry.
const NO_AUTOMATIC_ADDRESS: &str = "networking.istio.io/enable-autoallocate-ip";

/// Label that sends an entry's traffic through a waypoint.
const WAYPOINT: &str = "istio.io/use-waypoint";

/// Reports what is wrong.
pub(super) fn check(spec: &ServiceEntry, meta: &Metadata, report: &mut Report) {
    selector::check_workload(spec.workload_selector.as_ref(), report);
    if spec.workload_selector.is_some() && !spec.endpoints.is_empty() {
        report.error_at(
            "workloadSelector",
            "give either workloadSelector or endpoints, not both",
        );
    }
    for (field, count, most) in [
        ("hosts", spec.hosts.len(), MAX_HOSTS),
        ("addresses", spec.addresses.len(), MAX_ADDRESSES),
        ("endpoints", spec.endpoints.len(), MAX_ENDPOINTS),
    ] {
        if count > most && !is_synthetic(meta) {
            report.error_at(
                field,
                format!("there are {count} {field}; at most {most} are allowed"),
            );
        }
    }
    check_hosts(spec, report);
    check_addresses(spec, report);
    check_ports(spec, meta, report);
    match spec.resolution() {
        Resolution::None if is_synthetic(meta) => check_endpoints(spec, Addresses::Static, report),
        Resolution::None => check_unresolved(spec, report),
        Resolution::Static => check_endpoints(spec, Addresses::Static, report),
        Resolution::Dns | Resolution::DnsRoundRobin => check_dns(spec, report),
        Resolution::DynamicDns => check_dynamic_dns(spec, meta, report),
    }
    check_hosts_can_be_told_apart(spec, report);
    export_to::check(&spec.export_to, meta, true, report);
}

fn check_hosts(spec: &ServiceEntry, report: &mut Report) {
    if spec.hosts.is_empty() {
        report.error_at("hosts", "the service has no hosts: give at least one");
    }
    report.each("hosts", &spec.hosts, |report, name| {
        if name == host::ANY {
            report.error(
                "`*` is no host of a service: give a name, or a wildcard as in `*.example.com`",
            );
            return;
        }
        if let Err(message) = host::check(name) {
            report.error(message);
        } else if let Err(message) = host::check_whole_wildcard(name) {
            report.warning(message);
        }
    });
}

fn check_addresses(spec: &ServiceEntry, report: &mut Report) {
    let allows_ranges = matches!(spec.resolution(), Resolution::None | Resolution::Static);
    report.each("addresses", &spec.addresses, |report, address| {
        report.require(check_range(address));
        if address.contains('/') && !allows_ranges {
            report.error("address ranges need the resolution NONE or STATIC");
        }
    });
}

fn check_ports(spec: &ServiceEntry, meta: &Metadata, report: &mut Report) {
    let has_address = !spec.addresses.is_empty() || gets_address(spec, meta);
    let (mut names, mut numbers) = (HashSet::new(), HashSet::new());
    report.each("ports", &spec.ports, |report, service_port: &ServicePort| {
        if !names.insert(service_port.name.clone()) {
            report.error_at("name", format!("there are two ports {:?}", service_port.name));
        }
        if !numbers.insert(service_port.number) {
            report.error_at("number", format!("there are two ports {}", service_port.number));
        }
        if service_port.target_port != 0 {
            report.require_at("targetPort", port::check_number(service_port.target_port));
        }
        if !has_address && ["", "TCP"].contains(&service_port.protocol.as_str()) {
            report.warning("a TCP port without addresses takes all traffic to that port number: give addresses");
        }
        report.require_at("name", port::check_name(&service_port.name));
        if !service_port.protocol.is_empty() && Protocol::parse(&service_port.protocol).is_unsupported() {
            report.error_at("protocol", format!("{:?} is no protocol", service_port.protocol));
        }
        report.require_at("number", port::check_number(service_port.number));
    });
}

/// True when an address is allocated by itself: the service is resolved, has a full name, and nobody said no.
fn gets_address(spec: &ServiceEntry, meta: &Metadata) -> bool {
    spec.resolution() != Resolution::None
        && spec.hosts.iter().any(|name| !host::is_wildcard(name))
        && meta
            .labels
            .get(NO_AUTOMATIC_ADDRESS)
            .is_none_or(|value| value != "false")
}

/// Galley makes entries of Kubernetes services, of any size, and lists the endpoints of headless ones.
fn is_synthetic(meta: &Metadata) -> bool {
    meta.annotations.contains_key(SYNTHETIC)
}

fn check_unresolved(spec: &ServiceEntry, report: &mut Report) {
    if !spec.endpoints.is_empty() {
        report.error_at("endpoints", "with resolution NONE connections go where the client wanted: leave endpoints out, or use STATIC");
    }
    if spec.workload_selector.is_some() {
        report.warning_at(
            "workloadSelector",
            "with resolution NONE the selector does nothing",
        );
    }
}

fn check_endpoints(spec: &ServiceEntry, addresses: Addresses, report: &mut Report) {
    let ports: HashSet<_> = spec.ports.iter().map(|port| port.name.as_str()).collect();
    report.each("endpoints", &spec.endpoints, |report, endpoint| {
        check_endpoint(endpoint, Some(&ports), addresses, report);
    });
}

fn check_dns(spec: &ServiceEntry, report: &mut Report) {
    if spec.endpoints.is_empty() {
        report.each("hosts", &spec.hosts, |report, name| {
            if host::check_name(name).is_err() {
                report.error(format!(
                    "{name:?} cannot be resolved: give endpoints, or a full DNS name"
                ));
            }
        });
    }
    if spec.resolution() == Resolution::DnsRoundRobin && spec.endpoints.len() > 1 {
        report.error_at(
            "endpoints",
            "with resolution DNS_ROUND_ROBIN there can be one endpoint at most",
        );
    }
    check_endpoints(spec, Addresses::Resolved, report);
    let has_tcp = spec
        .ports
        .iter()
        .any(|port| Protocol::parse(&port.protocol).is_tcp());
    if !spec.addresses.is_empty() && has_tcp && spec.hosts.len() > 1 {
        report.warning_at(
            "hosts",
            "hosts that share addresses and a TCP port cannot be told apart",
        );
    }
}

/// The host of each request is resolved when it comes, so nothing may be said about addresses.
fn check_dynamic_dns(spec: &ServiceEntry, meta: &Metadata, report: &mut Report) {
    report.each("hosts", &spec.hosts, |report, name| {
        if !host::is_wildcard(name) {
            report.error(format!(
                "{name:?} is no wildcard; with resolution DYNAMIC_DNS all hosts are"
            ));
        }
    });
    if !spec.endpoints.is_empty() {
        report.error_at("endpoints", "with resolution DYNAMIC_DNS endpoints are resolved from the hosts: leave endpoints out");
    }
    if spec.workload_selector.is_some() {
        report.error_at(
            "workloadSelector",
            "with resolution DYNAMIC_DNS there are no workloads to select",
        );
    }
    if !spec.addresses.is_empty() {
        report.error_at(
            "addresses",
            "with resolution DYNAMIC_DNS there are no addresses: leave them out",
        );
    }
    if spec.location() == Location::MeshInternal && meta.labels.contains_key(WAYPOINT) {
        report.error_at(
            "location",
            "a waypoint cannot resolve hosts of the mesh by DYNAMIC_DNS: use MESH_EXTERNAL",
        );
    }
    report.each("ports", &spec.ports, |report, service_port| {
        let protocol = Protocol::parse(&service_port.protocol);
        if !matches!(
            protocol,
            Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::Tls
        ) {
            report.error_at(
                "protocol",
                "with resolution DYNAMIC_DNS the protocol is HTTP, HTTP2, GRPC or TLS",
            );
        }
    });
}

/// Requests name their host, TLS has SNI; plain connections say nothing.
fn check_hosts_can_be_told_apart(spec: &ServiceEntry, report: &mut Report) {
    if spec.resolution() == Resolution::None || spec.hosts.len() < 2 {
        return;
    }
    let plain = spec.ports.iter().find(|port| {
        let protocol = Protocol::parse(&port.protocol);
        !protocol.is_http() && !protocol.is_tls()
    });
    if let Some(port) = plain {
        report.error_at(
            "hosts",
            format!("on the port {:?} connections do not say which of the hosts they are for: use one host, or resolution NONE", port.name),
        );
    }
}
