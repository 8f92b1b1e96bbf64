//! Rules of Sidecar.

use proto::istio::networking::v1alpha3::Sidecar;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(_spec: &Sidecar, _meta: &Metadata, _report: &mut Report) {}
