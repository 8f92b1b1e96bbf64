//! Rules of ServiceEntry.

use proto::istio::networking::v1alpha3::ServiceEntry;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(_spec: &ServiceEntry, _meta: &Metadata, _report: &mut Report) {}
