//! Rules of RbacConfig.

use proto::istio::rbac::v1alpha1::RbacConfig;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(_spec: &RbacConfig, _meta: &Metadata, _report: &mut Report) {}
