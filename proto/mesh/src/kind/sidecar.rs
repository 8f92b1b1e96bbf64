//! Rules of Sidecar: ingress and egress listeners.

use std::collections::HashSet;

use proto::istio::networking::v1alpha3::outbound_traffic_policy::Mode;
use proto::istio::networking::v1alpha3::server_tls_settings::TlSmode;
use proto::istio::networking::v1alpha3::{
    CaptureMode, IstioEgressListener, IstioIngressListener, OutboundTrafficPolicy,
    ServerTlsSettings, Sidecar, SidecarPort,
};

use crate::finding::Report;
use crate::kind::address::{self, check_ip, check_unix_path};
use crate::kind::gateway::check_full_host;
use crate::kind::{destination, selector, tls, traffic_policy};
use crate::labels::is_dns_label;
use crate::protocol::Protocol;
use crate::resource::Metadata;
use crate::{host, port};

/// Hosts by which a listener may reach its application.
const LOCAL_HOSTS: [&str; 5] = ["", "127.0.0.1", "0.0.0.0", "::1", "::"];

/// Reports what is wrong.
pub(super) fn check(spec: &Sidecar, meta: &Metadata, report: &mut Report) {
    selector::check_workload(spec.workload_selector.as_ref(), report);
    if spec.egress.is_empty()
        && spec.ingress.is_empty()
        && spec.outbound_traffic_policy.is_none()
        && spec.inbound_connection_pool.is_none()
    {
        report.error("the sidecar says nothing: give ingress, egress, outboundTrafficPolicy or inboundConnectionPool");
        return;
    }
    let mut ports = HashSet::new();
    report.each("ingress", &spec.ingress, |report, listener| {
        check_ingress(listener, &mut ports, report);
    });
    if let Some(pool) = &spec.inbound_connection_pool {
        report.at("inboundConnectionPool", |report| {
            traffic_policy::check_connection_pool(pool, report);
        });
    }
    check_egress_ports(&spec.egress, report);
    report.each("egress", &spec.egress, |report, listener| {
        check_egress(listener, meta, report);
    });
    if let Some(policy) = &spec.outbound_traffic_policy {
        report.at("outboundTrafficPolicy", |report| {
            check_outbound(policy, report);
        });
    }
}

fn check_ingress(listener: &IstioIngressListener, ports: &mut HashSet<u32>, report: &mut Report) {
    let Some(sidecar_port) = &listener.port else {
        report.error_at("port", "the port is missing");
        return;
    };
    report.at("port", |report| {
        check_port(sidecar_port, report);
        report.require_at("number", port::check_number(sidecar_port.number));
        if !ports.insert(sidecar_port.number) {
            report.error_at(
                "number",
                format!("there are two listeners on port {}", sidecar_port.number),
            );
        }
    });
    if !listener.bind.is_empty() {
        report.require_at("bind", check_ip(&listener.bind));
    }
    if !listener.default_endpoint.is_empty() {
        report.require_at(
            "defaultEndpoint",
            check_default_endpoint(&listener.default_endpoint),
        );
    }
    let protocol = Protocol::parse(&sidecar_port.protocol);
    if let Some(settings) = &listener.tls {
        report.at("tls", |report| {
            check_ingress_tls(settings, protocol, report);
        });
    }
    if let Some(pool) = &listener.connection_pool {
        report.at("connectionPool", |report| {
            traffic_policy::check_connection_pool(pool, report);
            if pool.http.is_some() && !protocol.is_http() {
                report.warning_at(
                    "http",
                    format!("the port's protocol is {protocol}: settings for HTTP do nothing"),
                );
            }
        });
    }
}

fn check_port(sidecar_port: &SidecarPort, report: &mut Report) {
    if !sidecar_port.name.is_empty() {
        report.require_at("name", port::check_name(&sidecar_port.name));
    }
    if !sidecar_port.protocol.is_empty() && Protocol::parse(&sidecar_port.protocol).is_unsupported()
    {
        report.error_at(
            "protocol",
            format!("{:?} is no protocol", sidecar_port.protocol),
        );
    }
    if target_port(sidecar_port) > 0 {
        report.error_at(
            "targetPort",
            "sidecars have no target port: use defaultEndpoint",
        );
    }
}

#[allow(deprecated, reason = "the field is refused")]
fn target_port(port: &SidecarPort) -> u32 {
    port.target_port
}

fn check_default_endpoint(endpoint: &str) -> Result<(), String> {
    if let Some(path) = endpoint.strip_prefix(address::UNIX) {
        return check_unix_path(path);
    }
    let form = || {
        format!(
            "{endpoint:?} is no endpoint of the workload: give 127.0.0.1:PORT, [::1]:PORT, 0.0.0.0:PORT, [::]:PORT or unix:///PATH"
        )
    };
    let (host, number) = match endpoint.strip_prefix('[') {
        Some(rest) => rest.split_once("]:"),
        None => endpoint.split_once(':'),
    }
    .ok_or_else(form)?;
    if !LOCAL_HOSTS.contains(&host) {
        return Err(form());
    }
    port::check_number(number.parse().map_err(|_| form())?)
}

fn check_ingress_tls(settings: &ServerTlsSettings, protocol: Protocol, report: &mut Report) {
    for (field, is_given) in [
        ("subjectAltNames", !settings.subject_alt_names.is_empty()),
        ("httpsRedirect", settings.https_redirect),
        ("credentialName", !settings.credential_name.is_empty()),
        ("credentialNames", !settings.credential_names.is_empty()),
        ("tlsCertificates", !settings.tls_certificates.is_empty()),
    ] {
        if is_given {
            report.error_at(
                field,
                format!("sidecars do not support {field}: leave it out"),
            );
        }
    }
    if matches!(
        settings.mode(),
        TlSmode::IstioMutual | TlSmode::AutoPassthrough
    ) {
        report.error_at("mode", "sidecars end TLS with SIMPLE or MUTUAL; mutual TLS of the mesh is PeerAuthentication's");
    }
    if !protocol.is_tls() {
        report.error(format!(
            "{protocol} has no TLS: use the protocol TLS or HTTPS, or leave tls out"
        ));
    }
    tls::check_server(settings, report);
}

/// Only the last egress listener may do without a port; ports and sockets are used once.
fn check_egress_ports(listeners: &[IstioEgressListener], report: &mut Report) {
    let (mut ports, mut sockets) = (HashSet::new(), HashSet::new());
    for (index, listener) in listeners.iter().enumerate() {
        let field = format!("egress[{index}].port");
        let Some(port) = &listener.port else {
            if index + 1 < listeners.len() {
                report.error_at(&field, "the listener without a port takes all that is left: it must be the last, and the only one");
            }
            continue;
        };
        let (is_new, place) = if port.number == 0 {
            (sockets.insert(&listener.bind), listener.bind.clone())
        } else {
            (ports.insert(port.number), format!("port {}", port.number))
        };
        if !is_new {
            report.error_at(&field, format!("there are two listeners on {place}"));
        }
    }
}

fn check_egress(listener: &IstioEgressListener, meta: &Metadata, report: &mut Report) {
    if let Some(sidecar_port) = &listener.port {
        report.at("port", |report| check_port(sidecar_port, report));
        if sidecar_port.number == 0 {
            check_socket(listener, report);
        } else {
            report.require_at("port.number", port::check_number(sidecar_port.number));
            if !listener.bind.is_empty() {
                report.require_at("bind", check_ip(&listener.bind));
            }
        }
    }
    if listener.hosts.is_empty() {
        report.error_at(
            "hosts",
            "the listener has no hosts: give at least one, as namespace/host",
        );
    }
    report.each("hosts", &listener.hosts, |report, text| {
        check_egress_host(text, report);
    });
    warn_of_repeated_hosts(&listener.hosts, &meta.namespace, report);
}

fn check_socket(listener: &IstioEgressListener, report: &mut Report) {
    match listener.bind.strip_prefix(address::UNIX) {
        Some(path) => report.require_at("bind", check_unix_path(path)),
        None => report.error_at(
            "bind",
            "a listener with port 0 needs the address of a Unix socket",
        ),
    }
    if !matches!(
        listener.capture_mode(),
        CaptureMode::Default | CaptureMode::None
    ) {
        report.error_at(
            "captureMode",
            "nothing can be captured for a Unix socket: give DEFAULT or NONE",
        );
    }
}

/// A host with its namespace. A namespace after `~` excludes.
fn check_egress_host(text: &str, report: &mut Report) {
    let Some((namespace, name)) = text.split_once('/') else {
        report.error(format!("{text:?} has no namespace: write namespace/host"));
        return;
    };
    let excluded = namespace.strip_prefix('~').unwrap_or(namespace);
    let is_word = ["*", ".", "~", "~."].contains(&namespace);
    if !is_word && !is_dns_label(excluded) {
        report.error(format!(
            "{namespace:?} is no namespace: give a name, `.` (this one), `*` (any) or `~` (none)"
        ));
    }
    if name.is_empty() {
        report.error("the host is missing: write namespace/host");
        return;
    }
    check_full_host(name, report);
}

fn warn_of_repeated_hosts(hosts: &[String], own: &str, report: &mut Report) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (index, text) in hosts.iter().enumerate() {
        let Some((namespace, name)) = text.split_once('/') else {
            continue;
        };
        let namespace = if namespace == "." { own } else { namespace };
        let is_repeated = |(other, other_name): &(&str, &str)| {
            *other == namespace
                && (*other_name == name || *other_name == host::ANY || name == host::ANY)
        };
        if seen.iter().any(is_repeated) {
            report.warning_at(
                &format!("hosts[{index}]"),
                format!("{text:?} is covered by another host of the list"),
            );
        }
        seen.push((namespace, name));
    }
    if seen.contains(&("*", "*"))
        && seen
            .iter()
            .any(|(namespace, _)| *namespace != "*" && !namespace.starts_with('~'))
    {
        report.warning_at(
            "hosts",
            "`*/*` covers everything: the other hosts do nothing",
        );
    }
}

fn check_outbound(policy: &OutboundTrafficPolicy, report: &mut Report) {
    if policy.mode() == Mode::AllowAnyDynamicDns {
        report.error_at("mode", "ALLOW_ANY_DYNAMIC_DNS is a setting of the mesh: a sidecar has ALLOW_ANY or REGISTRY_ONLY");
    }
    let Some(proxy) = &policy.egress_proxy else {
        return;
    };
    report.at("egressProxy", |report| {
        if policy.mode() != Mode::AllowAny {
            report.error("an egress proxy takes the traffic that ALLOW_ANY lets through: set mode to ALLOW_ANY");
            return;
        }
        report.require_at("host", host::check_name(&proxy.host));
        if proxy.port.is_none() {
            report.error_at("port", "the port is missing");
        }
        destination::check(proxy, report);
    });
}
