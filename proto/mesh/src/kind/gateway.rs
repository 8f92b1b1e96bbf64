//! Rules of Gateway: its servers.

use std::collections::HashSet;

use proto::istio::networking::v1alpha3::server_tls_settings::TlSmode;
use proto::istio::networking::v1alpha3::{Gateway, Port, Server, ServerTlsSettings};

use crate::finding::Report;
use crate::host::{self, NamespacedHost};
use crate::kind::address::{self, check_ip, check_unix_path, is_ip};
use crate::kind::tls;
use crate::labels::is_dns_label;
use crate::port;
use crate::protocol::Protocol;
use crate::resource::Metadata;

/// Annotation of gateways that were made of the Gateway API's.
const SEMANTICS: &str = "internal.istio.io/gateway-semantics";

/// Reports what is wrong.
pub(super) fn check(spec: &Gateway, meta: &Metadata, report: &mut Report) {
    let is_converted = meta.annotation(SEMANTICS) == Some("gateway");
    if !is_dns_label(&meta.name) && !is_converted {
        report.error(format!(
            "a gateway cannot be called {:?}: give letters, digits and `-`",
            meta.name
        ));
    }
    if spec.servers.is_empty() {
        report.error_at("servers", "the gateway has no servers: give at least one");
    }
    let mut names = HashSet::new();
    report.each("servers", &spec.servers, |report, server| {
        check_server(server, is_converted, report);
        if let Some(port) = &server.port
            && !names.insert(port.name.clone())
        {
            report.error_at(
                "port.name",
                format!(
                    "there are two ports {:?}: each needs a name of its own",
                    port.name
                ),
            );
        }
    });
}

fn check_server(server: &Server, is_converted: bool, report: &mut Report) {
    if server.hosts.is_empty() {
        report.error_at(
            "hosts",
            "the server has no hosts: give at least one, or `*`",
        );
    }
    report.each("hosts", &server.hosts, |report, host| {
        check_host(host, is_converted, report);
    });
    let port_fits = check_port(server, report);
    check_bind(server, report);
    if let Some(settings) = &server.tls {
        report.at("tls", |report| tls::check_server(settings, report));
    }
    if let (true, Some(port)) = (port_fits, &server.port) {
        check_tls_fits(Protocol::parse(&port.protocol), server.tls.as_ref(), report);
    }
}

/// A host of a gateway, perhaps after a namespace: a full DNS name, a wildcard, an IP address.
fn check_host(text: &str, is_converted: bool, report: &mut Report) {
    if let Some((namespace, name)) = text.split_once('/') {
        let is_nobody = namespace == "~" && is_converted;
        if !["*", "."].contains(&namespace) && !is_nobody && !is_dns_label(namespace) {
            report.error(format!(
                "{namespace:?} is no namespace: give a name, `.` (this one) or `*` (any)"
            ));
        }
        if name.is_empty() {
            report.error("the host is missing: write namespace/host");
            return;
        }
    }
    let NamespacedHost { host: name, .. } = NamespacedHost::parse(text);
    if is_ip(&name) {
        return;
    }
    check_full_host(&name, report);
}

/// Checks a host that must not be a short name, nor have a partial wildcard.
pub(super) fn check_full_host(name: &str, report: &mut Report) {
    if name != host::ANY && !name.contains('.') {
        report.error(format!("{name:?} is a short name: give the full DNS name"));
    }
    for result in [host::check(name), host::check_whole_wildcard(name)] {
        report.require(result);
    }
}

/// True when the port is all right.
fn check_port(server: &Server, report: &mut Report) -> bool {
    let Some(port) = &server.port else {
        report.error_at("port", "the port is missing");
        return false;
    };
    report.at("port", |report| {
        let mut fits = true;
        let mut error = |field: &str, message: String| {
            report.error_at(field, message);
            fits = false;
        };
        if Protocol::parse(&port.protocol).is_unsupported() {
            let protocol = &port.protocol;
            error(
                "protocol",
                format!("{protocol:?} is no protocol: give HTTP, HTTPS, HTTP2, GRPC, GRPC-WEB, MONGO, REDIS, MYSQL, TCP or TLS"),
            );
        }
        if (port.number > 0 || !server.bind.starts_with(address::UNIX))
            && let Err(message) = port::check_number(port.number) {
                error("number", message);
            }
        if target_port(port) > 0 {
            error("targetPort", "gateways have no target port: leave it out".into());
        }
        if port.name.is_empty() {
            error("name", "the port's name is missing".into());
        }
        fits
    })
}

#[allow(deprecated, reason = "the field is refused")]
fn target_port(port: &Port) -> u32 {
    port.target_port
}

fn check_bind(server: &Server, report: &mut Report) {
    if let Some(path) = server.bind.strip_prefix(address::UNIX) {
        report.require_at("bind", check_unix_path(path));
        if server.port.as_ref().is_some_and(|port| port.number != 0) {
            report.error_at("port.number", "a Unix socket has no port number: give 0");
        }
    } else if !server.bind.is_empty() {
        report.require_at("bind", check_ip(&server.bind));
    }
}

fn check_tls_fits(protocol: Protocol, settings: Option<&ServerTlsSettings>, report: &mut Report) {
    let Some(settings) = settings else {
        if protocol.is_tls() {
            report.error_at("tls", format!("the protocol {protocol} needs tls settings"));
        }
        return;
    };
    if settings.https_redirect && !protocol.is_http() {
        report.warning_at(
            "tls.httpsRedirect",
            format!("only HTTP can be redirected to HTTPS, not {protocol}"),
        );
    }
    if protocol.is_tls() {
        return;
    }
    let ends_tls = !matches!(
        settings.mode(),
        TlSmode::Passthrough | TlSmode::AutoPassthrough
    ) || [
        &settings.server_certificate,
        &settings.private_key,
        &settings.ca_certificates,
    ]
    .into_iter()
    .any(|file| !file.is_empty());
    if !protocol.is_http() {
        report.error_at(
            "tls",
            format!("{protocol} has no TLS: use the protocol TLS or HTTPS, or leave tls out"),
        );
    } else if ends_tls {
        report.error_at("tls", format!("{protocol} has no TLS but httpsRedirect: use the protocol HTTPS, or leave the rest out"));
    }
}
