//! Rules of Instance.

use proto::istio::policy::v1beta1::Instance;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(_spec: &Instance, _meta: &Metadata, _report: &mut Report) {}
