//! Rules of HTTPAPISpecBinding.

use proto::istio::mixer::v1::config::client::HttpapiSpecBinding;

use crate::finding::Report;
use crate::kind::quota_spec_binding::{check_reference, check_services};
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(spec: &HttpapiSpecBinding, _meta: &Metadata, report: &mut Report) {
    check_services(&spec.services, report);
    if spec.api_specs.is_empty() {
        report.error_at("apiSpecs", "no HTTPAPISpec is bound: name at least one");
    }
    report.each("apiSpecs", &spec.api_specs, |report, reference| {
        check_reference(&reference.name, &reference.namespace, report);
    });
}
