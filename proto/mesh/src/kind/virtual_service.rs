//! Rules of VirtualService: hosts, gateways, and routes for HTTP, TLS and TCP.

use proto::istio::networking::v1alpha3::{
    L4MatchAttributes, TcpRoute, TlsMatchAttributes, TlsRoute, VirtualService,
};

use crate::finding::Report;
use crate::kind::address::{check_range, is_ip};
use crate::kind::{destination, export_to, selector};
use crate::labels::is_dns_label;
use crate::resource::Metadata;
use crate::{host, port};

mod fault;
mod http_match;
mod http_route;
mod unreachable;

/// The gateway that means all sidecars.
const MESH_GATEWAY: &str = "mesh";

/// Reports what is wrong.
pub(super) fn check(spec: &VirtualService, meta: &Metadata, report: &mut Report) {
    let is_delegate = spec.hosts.is_empty();
    if is_delegate {
        check_delegate(spec, report);
    }
    check_gateway_names(&spec.gateways, report);
    check_hosts(spec, report);
    if spec.http.is_empty() && spec.tcp.is_empty() && spec.tls.is_empty() {
        report.error("there are no routes: give http, tcp or tls");
    }
    report.each("http", &spec.http, |report, route| {
        http_route::check(route, is_delegate, report);
        if !is_bound_to_gateways_only(spec) {
            http_match::refuse_claims(route, report);
        }
    });
    report.each("tls", &spec.tls, |report, route| {
        check_tls_route(route, spec, report);
    });
    report.each("tcp", &spec.tcp, |report, route| {
        check_tcp_route(route, report);
    });
    export_to::check(&spec.export_to, meta, false, report);
    unreachable::check(spec, report);
}

/// A VirtualService without hosts holds the HTTP routes of another one.
fn check_delegate(spec: &VirtualService, report: &mut Report) {
    for (field, is_empty) in [
        ("gateways", spec.gateways.is_empty()),
        ("tls", spec.tls.is_empty()),
        ("tcp", spec.tcp.is_empty()),
    ] {
        if !is_empty {
            report.error_at(
                field,
                format!(
                    "a delegate (a virtual service without hosts) has http routes only, no {field}"
                ),
            );
        }
    }
}

fn is_bound_to_gateways_only(spec: &VirtualService) -> bool {
    !spec.gateways.is_empty() && !spec.gateways.iter().any(|gateway| gateway == MESH_GATEWAY)
}

fn check_hosts(spec: &VirtualService, report: &mut Report) {
    let is_mesh = !is_bound_to_gateways_only(spec);
    let has_sni = spec
        .tls
        .iter()
        .flat_map(|route| &route.r#match)
        .any(|tls| !tls.sni_hosts.is_empty());
    let mut all_fit = true;
    report.each("hosts", &spec.hosts, |report, name| {
        let result = match check_bound_host(name, !is_mesh && has_sni) {
            Err(_) if is_ip(name) => Ok(()),
            Ok(()) if is_mesh && name == host::ANY => Err(
                "`*` is for virtual services of gateways only: name the hosts for the mesh"
                    .to_owned(),
            ),
            result => result,
        };
        if let Err(message) = result {
            all_fit = false;
            report.error(message);
        }
    });
    if !all_fit {
        return;
    }
    for (index, first) in spec.hosts.iter().enumerate() {
        for (offset, second) in spec.hosts[index + 1..].iter().enumerate() {
            if host::matches(first, second) {
                report.error_at(
                    &format!("hosts[{}]", index + 1 + offset),
                    format!("{second:?} and {first:?} cover the same names: give each name once"),
                );
            }
        }
    }
}

/// A host, or (for a gateway that passes TLS through by SNI) the name of a cluster, `outbound_.80_._.host`.
fn check_bound_host(name: &str, allows_clusters: bool) -> Result<(), String> {
    match name.strip_prefix("outbound_.") {
        Some(rest) if allows_clusters => {
            if rest.starts_with(|first: char| ('0'..='8').contains(&first)) {
                return Ok(());
            }
            Err(format!(
                "{name:?} names no cluster: write outbound_.<port>_.<subset>_.<host>"
            ))
        }
        _ => host::check(name),
    }
}

/// Checks gateways: `mesh`, `name`, `namespace/name`, or the old `name.namespace.svc…`.
pub(super) fn check_gateway_names(gateways: &[String], report: &mut Report) {
    report.each("gateways", gateways, |report, gateway| {
        let Some((namespace, name)) = gateway.split_once('/') else {
            if let Some((name, rest)) = gateway.split_once('.') {
                let namespace = rest.split('.').next().unwrap_or_default();
                report.warning(format!(
                    "{gateway:?} is the old form of a gateway's name: write {namespace}/{name}"
                ));
            }
            report.require(host::check_name(gateway));
            return;
        };
        if !is_dns_label(namespace) {
            report.error(format!(
                "{namespace:?} is no namespace: write namespace/name"
            ));
        }
        if !is_dns_label(name) {
            report.error(format!(
                "{name:?} is no gateway's name: give letters, digits and `-`"
            ));
        }
    });
}

fn check_tls_route(route: &TlsRoute, spec: &VirtualService, report: &mut Report) {
    if route.r#match.is_empty() {
        report.error_at(
            "match",
            "a TLS route needs at least one match with sniHosts",
        );
    }
    report.each("match", &route.r#match, |report, tls| {
        check_tls_match(tls, spec, report);
    });
    if route.route.is_empty() {
        report.error_at("route", "the route has no destination");
    }
    destination::check_routes(&route.route, report);
}

fn check_tls_match(tls: &TlsMatchAttributes, spec: &VirtualService, report: &mut Report) {
    if tls.sni_hosts.is_empty() {
        report.error_at("sniHosts", "a TLS match needs at least one SNI host");
    }
    report.each("sniHosts", &tls.sni_hosts, |report, sni| {
        check_sni_host(sni, spec, report);
    });
    report.each(
        "destinationSubnets",
        &tls.destination_subnets,
        |report, range: &String| report.require(check_range(range)),
    );
    check_match_port(tls.port, report);
    selector::check_assigned("sourceLabels", &tls.source_labels, report);
    check_gateway_names(&tls.gateways, report);
}

fn check_sni_host(sni: &str, spec: &VirtualService, report: &mut Report) {
    if let Err(message) = check_bound_host(sni, is_bound_to_gateways_only(spec)) {
        if is_ip(sni) {
            report.warning(format!(
                "{sni:?} is an IP address; hardly any client sends one as SNI"
            ));
        } else {
            report.error(message);
        }
        return;
    }
    if !spec.hosts.iter().any(|name| host::is_subset(sni, name)) {
        report.error(format!(
            "{sni:?} is covered by none of the hosts ({}): add it to them",
            spec.hosts.join(", ")
        ));
    }
}

fn check_tcp_route(route: &TcpRoute, report: &mut Report) {
    report.each(
        "match",
        &route.r#match,
        |report, tcp: &L4MatchAttributes| {
            report.each(
                "destinationSubnets",
                &tcp.destination_subnets,
                |report, range: &String| report.require(check_range(range)),
            );
            if !tcp.source_subnet.is_empty() {
                report.warning_at(
                    "sourceSubnet",
                    "where a connection comes from is not looked at: the condition does nothing",
                );
            }
            check_match_port(tcp.port, report);
            selector::check_assigned("sourceLabels", &tcp.source_labels, report);
            check_gateway_names(&tcp.gateways, report);
        },
    );
    if route.route.is_empty() {
        report.error_at("route", "the route has no destination");
    }
    destination::check_routes(&route.route, report);
}

/// Port 0 is no condition.
fn check_match_port(number: u32, report: &mut Report) {
    if number != 0 {
        report.require_at("port", port::check_number(number));
    }
}
