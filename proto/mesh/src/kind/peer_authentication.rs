//! Rules of PeerAuthentication.

use proto::istio::security::v1beta1::PeerAuthentication;

use crate::finding::Report;
use crate::kind::selector;
use crate::port;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(spec: &PeerAuthentication, _meta: &Metadata, report: &mut Report) {
    let is_for_all = spec
        .selector
        .as_ref()
        .is_none_or(|selector| selector.match_labels.is_empty());
    if is_for_all && !spec.port_level_mtls.is_empty() {
        report.error_at(
            "portLevelMtls",
            "ports differ from workload to workload: give a selector, or leave portLevelMtls out",
        );
    }
    report.entries(
        "portLevelMtls",
        &spec.port_level_mtls,
        |report, number, _| {
            report.require(port::check_number(*number));
        },
    );
    selector::check(spec.selector.as_ref(), report);
}
