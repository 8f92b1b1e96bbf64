//! Rules of ServiceRole.

use proto::istio::rbac::v1alpha1::ServiceRole;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(_spec: &ServiceRole, _meta: &Metadata, _report: &mut Report) {}
