//! Rules of QuotaSpecBinding, and of the services that it and HTTPAPISpecBinding name.

use proto::istio::mixer::v1::config::client::{IstioService, QuotaSpecBinding};

use crate::finding::Report;
use crate::host;
use crate::kind::selector;
use crate::labels::is_dns_label;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(spec: &QuotaSpecBinding, _meta: &Metadata, report: &mut Report) {
    check_services(&spec.services, report);
    if spec.quota_specs.is_empty() {
        report.error_at("quotaSpecs", "no QuotaSpec is bound: name at least one");
    }
    report.each("quotaSpecs", &spec.quota_specs, |report, reference| {
        check_reference(&reference.name, &reference.namespace, report);
    });
}

/// Checks the services that something is bound to.
pub(super) fn check_services(services: &[IstioService], report: &mut Report) {
    if services.is_empty() {
        report.error_at("services", "it is bound to no service: name at least one");
    }
    report.each("services", services, check_service);
}

fn check_service(report: &mut Report, service: &IstioService) {
    match (service.name.is_empty(), service.service.is_empty()) {
        (true, true) => report.error("the service's name is missing: give name or service"),
        (false, false) => report.error("give either name or service, not both"),
        _ => {}
    }
    let has_parts = !service.namespace.is_empty() || !service.domain.is_empty();
    if !service.service.is_empty() && has_parts {
        report.error_at(
            "service",
            "service is a full name: leave namespace and domain out",
        );
    }
    if !service.name.is_empty() && !is_dns_label(&service.name) {
        report.error_at(
            "name",
            format!("{:?} is no short name of a service", service.name),
        );
    }
    check_namespace(&service.namespace, report);
    if !service.domain.is_empty() {
        report.require_at("domain", host::check_name(&service.domain));
    }
    selector::check_assigned("labels", &service.labels, report);
}

/// Checks the name of an object that is bound.
pub(super) fn check_reference(name: &str, namespace: &str, report: &mut Report) {
    if name.is_empty() {
        report.error_at("name", "the name is missing");
    } else if !name.split('.').all(is_dns_label) {
        report.error_at("name", format!("{name:?} is no object's name"));
    }
    check_namespace(namespace, report);
}

fn check_namespace(namespace: &str, report: &mut Report) {
    if !namespace.is_empty() && !is_dns_label(namespace) {
        report.error_at("namespace", format!("{namespace:?} is no namespace"));
    }
}
