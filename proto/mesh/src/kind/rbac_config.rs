//! Rules of the 1.4 line's ClusterRbacConfig and its elder RbacConfig.

use proto::istio::rbac::v1alpha1::RbacConfig;
use proto::istio::rbac::v1alpha1::rbac_config::Mode;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(spec: &RbacConfig, meta: &Metadata, report: &mut Report) {
    if meta.name != "default" {
        report.error(format!(
            "there is one such object, called \"default\"; this one is called {:?}",
            meta.name
        ));
    }
    if spec.mode() == Mode::OnWithInclusion && spec.inclusion.is_none() {
        report.error_at(
            "inclusion",
            "ON_WITH_INCLUSION needs inclusion; `{}` includes nothing",
        );
    }
    if spec.mode() == Mode::OnWithExclusion && spec.exclusion.is_none() {
        report.error_at(
            "exclusion",
            "ON_WITH_EXCLUSION needs exclusion; `{}` excludes nothing",
        );
    }
}
