//! Rules of VirtualService.

use proto::istio::networking::v1alpha3::VirtualService;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(_spec: &VirtualService, _meta: &Metadata, _report: &mut Report) {}
