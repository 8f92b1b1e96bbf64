//! Rules of DestinationRule.

use proto::istio::networking::v1alpha3::DestinationRule;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(_spec: &DestinationRule, _meta: &Metadata, _report: &mut Report) {}
