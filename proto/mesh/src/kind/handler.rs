//! Rules of Handler.

use proto::istio::policy::v1beta1::Handler;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(_spec: &Handler, _meta: &Metadata, _report: &mut Report) {}
