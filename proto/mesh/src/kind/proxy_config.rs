//! Rules of ProxyConfig.

use proto::istio::networking::v1beta1::ProxyConfig;

use crate::finding::Report;
use crate::kind::selector;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(spec: &ProxyConfig, _meta: &Metadata, report: &mut Report) {
    selector::check(spec.selector.as_ref(), report);
    if spec.concurrency.is_some_and(|threads| threads < 0) {
        report.error_at(
            "concurrency",
            "the number of threads is negative; 0 means one for each core",
        );
    }
}
