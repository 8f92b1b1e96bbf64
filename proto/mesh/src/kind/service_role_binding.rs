//! Rules of ServiceRoleBinding.

use proto::istio::rbac::v1alpha1::ServiceRoleBinding;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(_spec: &ServiceRoleBinding, _meta: &Metadata, _report: &mut Report) {}
