//! Rules of WorkloadGroup.

use proto::istio::networking::v1alpha3::WorkloadGroup;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(_spec: &WorkloadGroup, _meta: &Metadata, _report: &mut Report) {}
