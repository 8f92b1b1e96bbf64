//! Rules of the mesh's settings: ports, addresses, durations, trust domains, providers, networks.

use std::collections::HashSet;

use prost_types::Duration;
use proto::istio::mesh::v1alpha1::network::istio_network_gateway::Gw;
use proto::istio::mesh::v1alpha1::network::network_endpoints::Ne;
use proto::istio::mesh::v1alpha1::tracing::Tracer;
use proto::istio::mesh::v1alpha1::{
    AuthenticationPolicy, MeshConfig, MeshNetworks, ProxyConfig, Tracing,
};

use crate::finding::{Findings, Report};
use crate::kind::{check_locality, check_range, check_zones};
use crate::labels::is_dns_label;
use crate::{host, port};

/// Longest time that a connection may take to come about.
const MAX_CONNECT_TIMEOUT: i64 = 3600;

/// Everything in the mesh's settings that is wrong or suspicious.
#[must_use]
pub fn check(mesh: &MeshConfig) -> Findings {
    let mut report = Report::default();
    for (field, number) in [
        ("proxyListenPort", mesh.proxy_listen_port),
        ("proxyInboundListenPort", mesh.proxy_inbound_listen_port),
    ] {
        report.require_at(field, check_port(number));
    }
    if let Some(timeout) = &mesh.connect_timeout {
        report.require_at("connectTimeout", check_connect_timeout(timeout));
    }
    if let Some(timeout) = &mesh.protocol_detection_timeout
        && (timeout.seconds < 0 || timeout.nanos % 1_000_000 != 0)
    {
        report.error_at(
            "protocolDetectionTimeout",
            "the timeout must be whole milliseconds; 0s switches it off",
        );
    }
    for (field, address) in [
        ("mixerCheckServer", &mesh.mixer_check_server),
        ("mixerReportServer", &mesh.mixer_report_server),
    ] {
        if !address.is_empty() {
            report.require_at(field, check_address(address));
        }
    }
    match &mesh.default_config {
        Some(proxy) => report.at("defaultConfig", |report| check_proxy(proxy, report)),
        None => report.error_at("defaultConfig", "the settings of proxies are missing"),
    }
    if let Some(setting) = &mesh.locality_lb_setting {
        report.at("localityLbSetting", |report| {
            check_locality(setting, true, report);
        });
    }
    if let Some(setting) = &mesh.zone_aware_lb_setting {
        report.at("zoneAwareLbSetting", |report| {
            check_zones(setting, true, report);
        });
    }
    report.each(
        "serviceSettings",
        &mesh.service_settings,
        |report, settings| {
            report.each("hosts", &settings.hosts, |report, name| {
                report.require(host::check(name));
            });
        },
    );
    report.require_at("trustDomain", check_trust_domain(&mesh.trust_domain));
    report.each(
        "trustDomainAliases",
        &mesh.trust_domain_aliases,
        |report, alias| {
            report.require(check_trust_domain(alias));
        },
    );
    check_providers(mesh, &mut report);
    report.into_findings()
}

/// Everything in the mesh's networks that is wrong.
#[must_use]
pub fn check_networks(networks: &MeshNetworks) -> Findings {
    let mut report = Report::default();
    report.entries("networks", &networks.networks, |report, _, network| {
        report.each(
            "endpoints",
            &network.endpoints,
            |report, endpoints| match &endpoints.ne {
                Some(Ne::FromCidr(range)) => report.require_at("fromCidr", check_range(range)),
                Some(Ne::FromRegistry(registry)) if !is_dns_label(registry) => {
                    report.error_at(
                        "fromRegistry",
                        format!("{registry:?} is no registry's name"),
                    );
                }
                Some(Ne::FromRegistry(_)) => {}
                None => report.error("the endpoints are missing: give fromCidr or fromRegistry"),
            },
        );
        report.each("gateways", &network.gateways, |report, gateway| {
            match &gateway.gw {
                Some(Gw::RegistryServiceName(name)) => {
                    report.require_at("registryServiceName", host::check_name(name));
                }
                Some(Gw::Address(address)) => report.require_at("address", check_host(address)),
                None => report.error("the gateway is missing: give registryServiceName or address"),
            }
            report.require_at("port", port::check_number(gateway.port));
        });
    });
    report.into_findings()
}

fn check_proxy(proxy: &ProxyConfig, report: &mut Report) {
    for (field, number) in [
        ("proxyAdminPort", proxy.proxy_admin_port),
        ("statusPort", proxy.status_port),
    ] {
        report.require_at(field, check_port(number));
    }
    if let Some(drain) = &proxy.drain_duration
        && (drain.seconds < 1 || drain.nanos != 0)
    {
        report.error_at(
            "drainDuration",
            "the duration must be whole seconds, at least one",
        );
    }
    if proxy.discovery_address.is_empty() {
        report.error_at("discoveryAddress", "the address of Pilot is missing");
    }
    let services = [
        ("envoyMetricsService.address", &proxy.envoy_metrics_service),
        (
            "envoyAccessLogService.address",
            &proxy.envoy_access_log_service,
        ),
    ];
    let remote = services
        .into_iter()
        .filter_map(|(field, service)| Some((field, service.as_ref()?.address.as_str())));
    let plain = [
        ("discoveryAddress", proxy.discovery_address.as_str()),
        ("statsdUdpAddress", proxy.statsd_udp_address.as_str()),
    ];
    for (field, address) in plain.into_iter().chain(remote) {
        if !address.is_empty() {
            report.require_at(field, check_address(address));
        }
    }
    if proxy.control_plane_auth_policy() == AuthenticationPolicy::Inherit {
        report.error_at(
            "controlPlaneAuthPolicy",
            "there is nothing to inherit from: give NONE or MUTUAL_TLS",
        );
    }
    if proxy.concurrency.is_some_and(|threads| threads < 0) {
        report.error_at(
            "concurrency",
            "the number of threads is negative; 0 means one for each core",
        );
    }
    if let Some(tracing) = &proxy.tracing {
        report.at("tracing", |report| check_tracing(tracing, report));
    }
}

fn check_tracing(tracing: &Tracing, report: &mut Report) {
    if !(0.0..=100.0).contains(&tracing.sampling) {
        report.error_at(
            "sampling",
            format!("the percentage {} is not in 0..=100", tracing.sampling),
        );
    }
    let (field, address) = match &tracing.tracer {
        Some(Tracer::Zipkin(zipkin)) => ("zipkin.address", &zipkin.address),
        Some(Tracer::Lightstep(lightstep)) => ("lightstep.address", &lightstep.address),
        Some(Tracer::Datadog(datadog)) => ("datadog.address", &datadog.address),
        Some(Tracer::Stackdriver(_) | Tracer::OpenCensusAgent(_)) | None => return,
    };
    // The agent knows the host's address.
    report.require_at(
        field,
        check_address(&address.replacen("$(HOST_IP)", "127.0.0.1", 1)),
    );
}

fn check_providers(mesh: &MeshConfig, report: &mut Report) {
    let mut names = HashSet::new();
    report.each(
        "extensionProviders",
        &mesh.extension_providers,
        |report, provider| {
            if provider.name.is_empty() {
                report.error_at("name", "the provider's name is missing");
            } else if !names.insert(provider.name.clone()) {
                report.error_at(
                    "name",
                    format!("there are two providers {:?}", provider.name),
                );
            }
            if provider.provider.is_none() {
                report.error("the provider does nothing: say of which type it is");
            }
        },
    );
    let Some(defaults) = &mesh.default_providers else {
        return;
    };
    for (field, list) in [
        ("defaultProviders.tracing", &defaults.tracing),
        ("defaultProviders.metrics", &defaults.metrics),
        ("defaultProviders.accessLogging", &defaults.access_logging),
    ] {
        report.each(field, list, |report, name: &String| {
            if !names.contains(name) {
                report.warning(format!(
                    "there is no provider {name:?} in extensionProviders"
                ));
            }
        });
    }
}

fn check_port(number: i32) -> Result<(), String> {
    port::check_number(u32::try_from(number).unwrap_or_default())
}

fn check_connect_timeout(timeout: &Duration) -> Result<(), String> {
    crate::kind::check_duration(timeout)?;
    if timeout.seconds > MAX_CONNECT_TIMEOUT {
        return Err("the timeout must be at most an hour".into());
    }
    Ok(())
}

/// Checks `host:port`.
fn check_address(address: &str) -> Result<(), String> {
    let (host, number) = match address.strip_prefix('[') {
        Some(rest) => rest.split_once("]:"),
        None => address.rsplit_once(':'),
    }
    .ok_or_else(|| format!("{address:?} is no address: write host:port"))?;
    let number = number
        .parse()
        .map_err(|_| format!("{address:?} is no address: {number:?} is no port"))?;
    port::check_number(number)?;
    check_host(host)
}

fn check_host(host: &str) -> Result<(), String> {
    if host.parse::<std::net::IpAddr>().is_ok() {
        Ok(())
    } else {
        host::check_name(host)
    }
}

/// Checks a trust domain: labels with dots between, and perhaps one at the end.
fn check_trust_domain(domain: &str) -> Result<(), String> {
    let labels = domain.strip_suffix('.').unwrap_or(domain);
    if labels.split('.').all(is_dns_label) {
        return Ok(());
    }
    Err(format!("{domain:?} is no trust domain: give a DNS name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(findings: &Findings) -> Vec<&str> {
        findings
            .iter()
            .map(|finding| finding.path.as_str())
            .collect()
    }

    #[test]
    fn the_defaults_obey_the_rules() {
        assert_eq!(paths(&check(&super::super::defaults())), Vec::<&str>::new());
    }

    #[test]
    fn settings_are_checked() {
        let mesh = super::super::from_yaml(
            "proxyListenPort: 0\nconnectTimeout: 2h\ntrustDomain: a_b\nmixerCheckServer: istio-policy\n\
             defaultConfig: {drainDuration: 1.5s, tracing: {zipkin: {address: 'zipkin:x'}}}\n\
             extensionProviders: [{name: a}, {name: a, prometheus: {}}]\ndefaultProviders: {metrics: [b]}\n",
        )
        .unwrap();
        assert_eq!(
            paths(&check(&mesh)),
            [
                "proxyListenPort",
                "connectTimeout",
                "mixerCheckServer",
                "defaultConfig.drainDuration",
                "defaultConfig.tracing.zipkin.address",
                "trustDomain",
                "extensionProviders[0]",
                "extensionProviders[1].name",
                "defaultProviders.metrics[0]",
            ]
        );
    }

    #[test]
    fn networks_are_checked() {
        let networks: MeshNetworks = proto::yaml::from_str(
            "networks: {one: {endpoints: [{fromCidr: 10.0.0.0/33}, {}], gateways: [{address: 1.1.1.1, port: 443}, {port: 0}]}}",
        )
        .unwrap();
        assert_eq!(
            paths(&check_networks(&networks)),
            [
                "networks.one.endpoints[0].fromCidr",
                "networks.one.endpoints[1]",
                "networks.one.gateways[1]",
                "networks.one.gateways[1].port"
            ]
        );
    }
}
