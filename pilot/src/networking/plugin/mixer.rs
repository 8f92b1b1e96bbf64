//! The Mixer filter: checks before, reports after. Only for proxies that say they have it, and only where Mixer is configured.

use std::collections::BTreeMap;

use prost_types::Any;
use proto::envoy::config::listener::v3::Filter;
use proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use proto::istio::mixer::v1::config::client::{
    HttpClientConfig, NetworkFailPolicy, QuotaSpec, ServiceConfig, TcpClientConfig,
    TransportConfig, network_fail_policy::FailPolicy,
};
use proto::istio::mixer::v1::{
    Attributes,
    attributes::{AttributeValue, attribute_value::Value},
};

use crate::model::name::{BLACK_HOLE, PASSTHROUGH};
use crate::model::{ClusterName, Service};
use crate::networking::View;
use crate::networking::wire::{any, http_filter, network_filter, seconds};

/// Name of the filter, and its key in routes.
const NAME: &str = "mixer";

/// Whether a workload wants to be checked, from its pod's annotation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CheckMode {
    ByMesh,
    Enable,
    Disable,
    AllowOnError,
}

/// Before the proxy's own workload: check and report.
#[must_use]
pub fn http_inbound(view: &View<'_>, port: u32) -> Option<HttpFilter> {
    let attributes = inbound_attributes(view, port);
    let service = ServiceConfig {
        disable_check_calls: !is_checked(view, Side::Server),
        disable_report_calls: !is_reported(view),
        ..ServiceConfig::default()
    };
    http(view, attributes, None, service)
}

/// Beside a client: report; check at gateways, or if the mesh says so.
#[must_use]
pub fn http_outbound(view: &View<'_>) -> Option<HttpFilter> {
    let attributes = outbound_attributes(view);
    let forward = Attributes {
        attributes: BTreeMap::from([text("source.uid", view.proxy.uid())]),
    };
    let service = ServiceConfig {
        disable_check_calls: !is_checked(view, Side::Client),
        disable_report_calls: !is_reported(view),
        ..ServiceConfig::default()
    };
    http(view, attributes, Some(forward), service)
}

/// Connections to the proxy's own workload.
#[must_use]
pub fn tcp_inbound(view: &View<'_>, port: u32) -> Option<Filter> {
    tcp(
        view,
        inbound_attributes(view, port),
        !is_checked(view, Side::Server),
    )
}

/// Connections to `service`, or to something that nobody declared.
#[must_use]
pub fn tcp_outbound(view: &View<'_>, service: Option<&Service>, cluster: &str) -> Option<Filter> {
    let mut attributes = outbound_attributes(view);
    attributes.attributes.extend(match service {
        Some(service) => destination(service),
        None => unknown(cluster),
    });
    tcp(view, attributes, !is_checked(view, Side::Client))
}

/// What an inbound route adds: its service.
#[must_use]
pub fn inbound_route(view: &View<'_>, service: Option<&Service>) -> Option<(String, Any)> {
    let quotas = service.map(|service| view.push.quotas.of(&service.host));
    route(
        view,
        service.map(destination).unwrap_or_default(),
        Side::Server,
        quotas.unwrap_or_default(),
    )
}

/// What an outbound route adds: its service, which is also told to the server's side.
#[must_use]
pub fn outbound_route(view: &View<'_>, service: Option<&Service>) -> Option<(String, Any)> {
    route(view, service.map(destination)?, Side::Client, Vec::new())
}

/// What a route to undeclared destinations adds.
#[must_use]
pub fn unknown_route(view: &View<'_>, cluster: &str) -> Option<(String, Any)> {
    route(view, unknown(cluster), Side::Client, Vec::new())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

type Map = BTreeMap<String, AttributeValue>;

/// True when the proxy has the filter and the mesh has a Mixer.
#[must_use]
pub fn is_enabled(view: &View<'_>) -> bool {
    let mixer = &view.push.mesh.mixer;
    view.proxy.has_mixer && !(mixer.check_server.is_empty() && mixer.report_server.is_empty())
}

fn check_mode(view: &View<'_>) -> CheckMode {
    match view.proxy.metadata_text("policy.istio.io/check") {
        Some("enable") => CheckMode::Enable,
        Some("disable") => CheckMode::Disable,
        Some("allow-on-error") => CheckMode::AllowOnError,
        _ => CheckMode::ByMesh,
    }
}

fn is_checked(view: &View<'_>, side: Side) -> bool {
    let mixer = &view.push.mesh.mixer;
    if mixer.check_server.is_empty() {
        return false;
    }
    match check_mode(view) {
        CheckMode::Disable => false,
        CheckMode::Enable | CheckMode::AllowOnError => true,
        CheckMode::ByMesh if mixer.is_check_disabled => false,
        CheckMode::ByMesh => {
            side == Side::Server || view.proxy.is_router() || mixer.is_client_check_enabled
        }
    }
}

/// Whether HTTP requests are reported.
fn is_reported(view: &View<'_>) -> bool {
    let mixer = &view.push.mesh.mixer;
    !mixer.is_http_report_disabled && !mixer.report_server.is_empty()
}

fn http(
    view: &View<'_>,
    attributes: Attributes,
    forward: Option<Attributes>,
    service: ServiceConfig,
) -> Option<HttpFilter> {
    is_enabled(view).then(|| {
        let config = HttpClientConfig {
            transport: Some(transport(view)),
            service_configs: BTreeMap::from([("default".to_owned(), service)]),
            default_destination_service: "default".to_owned(),
            mixer_attributes: Some(attributes),
            forward_attributes: forward,
            // Clients outside of the mesh must not speak for others.
            ignore_forwarded_attributes: view.proxy.is_router(),
        };
        http_filter(NAME, &config)
    })
}

fn tcp(view: &View<'_>, attributes: Attributes, is_check_disabled: bool) -> Option<Filter> {
    is_enabled(view).then(|| {
        let config = TcpClientConfig {
            transport: Some(transport(view)),
            mixer_attributes: Some(attributes),
            disable_check_calls: is_check_disabled,
            disable_report_calls: view.push.mesh.mixer.report_server.is_empty(),
            connection_quota_spec: None,
            report_interval: Some(seconds(10)),
        };
        network_filter(NAME, &config)
    })
}

fn route(
    view: &View<'_>,
    attributes: Map,
    side: Side,
    quota_spec: Vec<QuotaSpec>,
) -> Option<(String, Any)> {
    is_enabled(view).then(|| {
        let attributes = Attributes { attributes };
        let config = ServiceConfig {
            disable_check_calls: !is_checked(view, side),
            disable_report_calls: !is_reported(view),
            forward_attributes: (side == Side::Client).then(|| attributes.clone()),
            mixer_attributes: Some(attributes),
            quota_spec,
            ..ServiceConfig::default()
        };
        (NAME.to_owned(), any(&config))
    })
}

fn transport(view: &View<'_>) -> TransportConfig {
    let mixer = &view.push.mesh.mixer;
    let metadata = |key| view.proxy.metadata_text(key);
    let is_open = mixer.is_fail_open || check_mode(view) == CheckMode::AllowOnError;
    let policy = if is_open {
        FailPolicy::FailOpen
    } else {
        FailPolicy::FailClose
    };
    TransportConfig {
        check_cluster: cluster(&mixer.check_server, &view.push.domain),
        report_cluster: cluster(&mixer.report_server, &view.push.domain),
        disable_report_batch: mixer.is_batch_disabled,
        report_batch_max_entries: mixer.batch_entries,
        report_batch_max_time: mixer.batch_time,
        network_fail_policy: Some(NetworkFailPolicy {
            policy: policy as i32,
            max_retry: metadata("policy.istio.io/checkRetries")
                .and_then(|text| text.parse().ok())
                .unwrap_or(0),
            base_retry_wait: metadata("policy.istio.io/checkBaseRetryWaitTime")
                .and_then(duration)
                .or(Some(crate::networking::wire::millis(80))),
            max_retry_wait: metadata("policy.istio.io/checkMaxRetryWaitTime")
                .and_then(duration)
                .or(Some(seconds(1))),
        }),
        ..TransportConfig::default()
    }
}

/// `host:port` as the name of the outbound cluster.
fn cluster(server: &str, domain: &str) -> String {
    let (host, port) = server.rsplit_once(':').unwrap_or((server, "9091"));
    // `istio-policy.istio-system.svc` is the short form that charts write.
    let host = if host.ends_with(".svc") {
        format!("{host}.{domain}")
    } else {
        host.to_owned()
    };
    match port.parse() {
        Ok(port) if !host.is_empty() => ClusterName::outbound(port, "", &host).to_string(),
        _ => String::new(),
    }
}

/// `80ms`, `1s`, `1.5s`.
fn duration(text: &str) -> Option<prost_types::Duration> {
    let (number, factor) = match text.strip_suffix("ms") {
        Some(number) => (number, 1.0),
        None => (text.strip_suffix('s')?, 1000.0),
    };
    let value = number
        .parse::<f64>()
        .ok()
        .filter(|value| value.is_finite() && (0.0..1e9).contains(value))?;
    #[allow(
        clippy::cast_possible_truncation,
        reason = "checked to be below 10⁹ seconds"
    )]
    Some(crate::networking::wire::millis((value * factor) as i64))
}

fn inbound_attributes(view: &View<'_>, port: u32) -> Attributes {
    let proxy = view.proxy;
    let address = match proxy.ip() {
        std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped().octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let mut attributes = Map::from([
        text("destination.uid", proxy.uid()),
        text("destination.namespace", proxy.namespace.clone()),
        value("destination.ip", Value::BytesValue(address)),
        value("destination.port", Value::Int64Value(i64::from(port))),
        text("context.reporter.uid", proxy.uid()),
        text("context.reporter.kind", "inbound".to_owned()),
    ]);
    attributes.extend(common(view));
    Attributes { attributes }
}

fn outbound_attributes(view: &View<'_>) -> Attributes {
    let proxy = view.proxy;
    let mut attributes = Map::from([
        text("source.uid", proxy.uid()),
        text("source.namespace", proxy.namespace.clone()),
        text("context.reporter.uid", proxy.uid()),
        text("context.reporter.kind", "outbound".to_owned()),
    ]);
    attributes.extend(common(view));
    Attributes { attributes }
}

fn common(view: &View<'_>) -> Map {
    let mut attributes = Map::new();
    if let Some(version) = view.proxy.metadata_text("ISTIO_VERSION") {
        attributes.extend([text("context.proxy_version", version.to_owned())]);
    }
    if !view.push.mesh.mesh_id.is_empty() {
        attributes.extend([text("destination.mesh.id", view.push.mesh.mesh_id.clone())]);
    }
    attributes
}

fn destination(service: &Service) -> Map {
    let uid = format!("istio://{}/services/{}", service.namespace, service.name);
    Map::from([
        text("destination.service.host", service.host.clone()),
        text("destination.service.name", service.name.clone()),
        text("destination.service.namespace", service.namespace.clone()),
        text("destination.service.uid", uid),
    ])
}

fn unknown(cluster: &str) -> Map {
    let name = if cluster == BLACK_HOLE {
        BLACK_HOLE
    } else {
        PASSTHROUGH
    };
    Map::from([text("destination.service.name", name.to_owned())])
}

fn text(name: &str, text: String) -> (String, AttributeValue) {
    value(name, Value::StringValue(text))
}

fn value(name: &str, value: Value) -> (String, AttributeValue) {
    (name.to_owned(), AttributeValue { value: Some(value) })
}
