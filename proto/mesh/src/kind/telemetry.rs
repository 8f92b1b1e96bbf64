//! Rules of Telemetry.

use proto::istio::telemetry::v1alpha1::Telemetry;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(_spec: &Telemetry, _meta: &Metadata, _report: &mut Report) {}
