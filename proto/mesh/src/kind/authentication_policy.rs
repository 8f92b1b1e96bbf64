//! Rules of Policy.

use proto::istio::authentication::v1alpha1::Policy;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(_spec: &Policy, _meta: &Metadata, _report: &mut Report) {}
