//! Rules of WorkloadGroup: the template of its entries and the probe of their health.

use proto::istio::networking::v1alpha3::readiness_probe::HealthCheckMethod;
use proto::istio::networking::v1alpha3::{ReadinessProbe, WorkloadGroup};

use crate::finding::Report;
use crate::kind::{header, selector};
use crate::port;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(spec: &WorkloadGroup, _meta: &Metadata, report: &mut Report) {
    if spec.template.is_none() {
        report.error_at("template", "the template is missing");
    }
    if let Some(metadata) = &spec.metadata {
        report.at("metadata", |report| {
            selector::check_assigned("labels", &metadata.labels, report);
        });
    }
    if let Some(probe) = &spec.probe {
        report.at("probe", |report| check_probe(probe, report));
    }
}

fn check_probe(probe: &ReadinessProbe, report: &mut Report) {
    for (field, value) in [
        ("periodSeconds", probe.period_seconds),
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        if value < 0 {
            report.error_at(field, format!("{value} is negative"));
        }
    }
    match &probe.health_check_method {
        Some(HealthCheckMethod::HttpGet(get)) => report.at("httpGet", |report| {
            report.require_at("port", port::check_number(get.port));
            if !["", "HTTP", "HTTPS"].contains(&get.scheme.as_str()) {
                report.error_at(
                    "scheme",
                    format!("{:?} is no scheme: give HTTP or HTTPS", get.scheme),
                );
            }
            report.each("httpHeaders", &get.http_headers, |report, field| {
                report.require_at("name", header::check_name(&field.name));
            });
        }),
        Some(HealthCheckMethod::TcpSocket(socket)) => {
            report.require_at("tcpSocket.port", port::check_number(socket.port));
        }
        Some(HealthCheckMethod::Exec(exec)) => {
            if exec.command.is_empty() {
                report.error_at("exec.command", "the command is missing");
            }
        }
        Some(HealthCheckMethod::Grpc(grpc)) => {
            report.require_at("grpc.port", port::check_number(grpc.port));
        }
        None => report.error("the probe does nothing: give httpGet, tcpSocket, exec or grpc"),
    }
}
