//! Traffic policies: what a DestinationRule says about the connections to a host or a subset.

use prost_types::Duration;
use proto::istio::networking::v1alpha3::connection_pool_settings::http_settings::H2UpgradePolicy;
use proto::istio::networking::v1alpha3::connection_pool_settings::{HttpSettings, TcpSettings};
use proto::istio::networking::v1alpha3::traffic_policy::{RetryBudget, TunnelSettings};
use proto::istio::networking::v1alpha3::{
    ClientTlsSettings, ConnectionPoolSettings, LoadBalancerSettings, OutlierDetection,
    TrafficPolicy,
};

use crate::finding::Report;
use crate::kind::address::is_ip;
use crate::kind::{duration, tls};
use crate::{host, port};

mod load_balancer;

pub(crate) use load_balancer::{check_locality, check_zones};

/// How many ports may have a policy of their own.
const MAX_PORTS: usize = 4096;

/// The four groups of settings that a host and each of its ports have.
struct Groups<'a> {
    load_balancer: Option<&'a LoadBalancerSettings>,
    connection_pool: Option<&'a ConnectionPoolSettings>,
    outlier_detection: Option<&'a OutlierDetection>,
    tls: Option<&'a ClientTlsSettings>,
}

impl Groups<'_> {
    fn is_empty(&self) -> bool {
        self.load_balancer.is_none()
            && self.connection_pool.is_none()
            && self.outlier_detection.is_none()
            && self.tls.is_none()
    }

    fn check(&self, report: &mut Report) {
        if let Some(outlier) = self.outlier_detection {
            report.at("outlierDetection", |report| {
                check_outlier_detection(outlier, report);
            });
        }
        if let Some(pool) = self.connection_pool {
            report.at("connectionPool", |report| {
                check_connection_pool(pool, report);
            });
        }
        if let Some(balancer) = self.load_balancer {
            let ejects = self.outlier_detection.is_some();
            report.at("loadBalancer", |report| {
                load_balancer::check(balancer, ejects, report);
            });
        }
        if let Some(settings) = self.tls {
            report.at("tls", |report| tls::check_client(settings, report));
        }
    }
}

/// Reports what is wrong with `trafficPolicy`.
pub(super) fn check(policy: Option<&TrafficPolicy>, report: &mut Report) {
    if let Some(policy) = policy {
        report.at("trafficPolicy", |report| check_policy(policy, report));
    }
}

fn check_policy(policy: &TrafficPolicy, report: &mut Report) {
    let groups = Groups {
        load_balancer: policy.load_balancer.as_ref(),
        connection_pool: policy.connection_pool.as_ref(),
        outlier_detection: policy.outlier_detection.as_ref(),
        tls: policy.tls.as_ref(),
    };
    if groups.is_empty()
        && policy.port_level_settings.is_empty()
        && policy.tunnel.is_none()
        && policy.proxy_protocol.is_none()
        && policy.retry_budget.is_none()
    {
        report.error("the traffic policy is empty: set something, or leave it out");
        return;
    }
    if policy.tunnel.is_some() && policy.proxy_protocol.is_some() {
        report.error("give either tunnel or proxyProtocol, not both");
    }
    groups.check(report);
    if policy.port_level_settings.len() > MAX_PORTS {
        report.error_at(
            "portLevelSettings",
            format!("at most {MAX_PORTS} ports can have settings"),
        );
    }
    report.each(
        "portLevelSettings",
        &policy.port_level_settings,
        |report, settings| {
            if settings.port.is_none() {
                report.error_at("port", "the port is missing");
            }
            let groups = Groups {
                load_balancer: settings.load_balancer.as_ref(),
                connection_pool: settings.connection_pool.as_ref(),
                outlier_detection: settings.outlier_detection.as_ref(),
                tls: settings.tls.as_ref(),
            };
            if groups.is_empty() {
                report.error("the port's policy is empty: set something, or leave it out");
            }
            groups.check(report);
        },
    );
    if let Some(tunnel) = &policy.tunnel {
        report.at("tunnel", |report| check_tunnel(tunnel, report));
    }
    if let Some(version) = policy.proxy_protocol.map(|protocol| protocol.version)
        && !(0..=1).contains(&version)
    {
        report.error_at("proxyProtocol.version", "the version is neither V1 nor V2");
    }
    if let Some(budget) = &policy.retry_budget {
        report.at("retryBudget", |report| check_retry_budget(budget, report));
    }
}

fn check_tunnel(tunnel: &TunnelSettings, report: &mut Report) {
    if !["", "CONNECT", "POST"].contains(&tunnel.protocol.as_str()) {
        report.error_at(
            "protocol",
            format!(
                "{:?} is no way to tunnel: give CONNECT or POST",
                tunnel.protocol
            ),
        );
    }
    if !is_ip(&tunnel.target_host) {
        report.require_at("targetHost", host::check_name(&tunnel.target_host));
    }
    report.require_at("targetPort", port::check_number(tunnel.target_port));
}

fn check_retry_budget(budget: &RetryBudget, report: &mut Report) {
    if let Some(percent) = budget.percent
        && !(0.0..=100.0).contains(&percent)
    {
        report.error_at(
            "percent",
            format!("the percentage {percent} is not in 0..=100"),
        );
    }
}

fn check_outlier_detection(outlier: &OutlierDetection, report: &mut Report) {
    require_duration(
        "baseEjectionTime",
        outlier.base_ejection_time.as_ref(),
        report,
    );
    if consecutive_errors(outlier) != 0 {
        report.warning_at(
            "consecutiveErrors",
            "consecutiveErrors is the old form: use consecutiveGatewayErrors or consecutive5xxErrors",
        );
    }
    if !outlier.split_external_local_origin_errors
        && outlier
            .consecutive_local_origin_failures
            .unwrap_or_default()
            > 0
    {
        report.error_at(
            "consecutiveLocalOriginFailures",
            "local failures are counted apart only with splitExternalLocalOriginErrors: set it",
        );
    }
    require_duration("interval", outlier.interval.as_ref(), report);
    for (field, percent) in [
        ("maxEjectionPercent", outlier.max_ejection_percent),
        ("minHealthPercent", outlier.min_health_percent),
    ] {
        if !(0..=100).contains(&percent) {
            report.error_at(field, format!("the percentage {percent} is not in 0..=100"));
        }
    }
    report.each(
        "outlierDetectionHttpErrorCodes",
        &outlier.outlier_detection_http_error_codes,
        |report, code| {
            if !(100..=599).contains(code) {
                report.error(format!("the HTTP status {code} is not in 100..=599"));
            }
        },
    );
}

#[allow(deprecated, reason = "the old field is still read")]
fn consecutive_errors(outlier: &OutlierDetection) -> i32 {
    outlier.consecutive_errors
}

/// Reports what is wrong with a connection pool.
pub(super) fn check_connection_pool(pool: &ConnectionPoolSettings, report: &mut Report) {
    if pool.http.is_none() && pool.tcp.is_none() {
        report.error("the connection pool is empty: give tcp or http");
    }
    if let Some(http) = &pool.http {
        report.at("http", |report| check_http(http, report));
    }
    if let Some(tcp) = &pool.tcp {
        report.at("tcp", |report| check_tcp(tcp, report));
    }
}

fn check_http(http: &HttpSettings, report: &mut Report) {
    for (field, count) in [
        ("http1MaxPendingRequests", http.http1_max_pending_requests),
        ("http2MaxRequests", http.http2_max_requests),
        ("maxRequestsPerConnection", http.max_requests_per_connection),
        ("maxRetries", http.max_retries),
        ("maxConcurrentStreams", http.max_concurrent_streams),
    ] {
        refuse_negative(field, count, report);
    }
    require_duration("idleTimeout", http.idle_timeout.as_ref(), report);
    if http.h2_upgrade_policy() == H2UpgradePolicy::Upgrade && http.use_client_protocol {
        report.error_at(
            "useClientProtocol",
            "give either h2UpgradePolicy UPGRADE or useClientProtocol, not both",
        );
    }
    if let Some(keep_alive) = &http.http2_keep_alive {
        report.at("http2KeepAlive", |report| {
            require_duration("interval", keep_alive.interval.as_ref(), report);
            require_duration("timeout", keep_alive.timeout.as_ref(), report);
        });
    }
}

fn check_tcp(tcp: &TcpSettings, report: &mut Report) {
    refuse_negative("maxConnections", tcp.max_connections, report);
    require_duration("connectTimeout", tcp.connect_timeout.as_ref(), report);
    require_duration(
        "maxConnectionDuration",
        tcp.max_connection_duration.as_ref(),
        report,
    );
    require_duration("idleTimeout", tcp.idle_timeout.as_ref(), report);
    if let Some(keepalive) = &tcp.tcp_keepalive {
        report.at("tcpKeepalive", |report| {
            require_duration("time", keepalive.time.as_ref(), report);
            require_duration("interval", keepalive.interval.as_ref(), report);
        });
    }
}

fn refuse_negative(field: &str, count: i32, report: &mut Report) {
    if count < 0 {
        report.error_at(field, format!("{count} is negative"));
    }
}

fn require_duration(field: &str, value: Option<&Duration>, report: &mut Report) {
    if let Some(value) = value {
        report.require_at(field, duration::check(value));
    }
}
