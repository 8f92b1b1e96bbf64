//! Rules of EnvoyFilter.

use proto::istio::networking::v1alpha3::EnvoyFilter;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(_spec: &EnvoyFilter, _meta: &Metadata, _report: &mut Report) {}
