//! Rules of Gateway.

use proto::istio::networking::v1alpha3::Gateway;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(_spec: &Gateway, _meta: &Metadata, _report: &mut Report) {}
