//! Rules of WorkloadEntry.

use proto::istio::networking::v1alpha3::WorkloadEntry;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(_spec: &WorkloadEntry, _meta: &Metadata, _report: &mut Report) {}
