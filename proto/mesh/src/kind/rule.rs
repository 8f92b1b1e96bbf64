//! Rules of Rule.

use proto::istio::policy::v1beta1::Rule;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(_spec: &Rule, _meta: &Metadata, _report: &mut Report) {}
