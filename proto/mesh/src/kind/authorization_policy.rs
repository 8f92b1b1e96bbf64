//! Rules of AuthorizationPolicy.

use proto::istio::security::v1beta1::AuthorizationPolicy;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(_spec: &AuthorizationPolicy, _meta: &Metadata, _report: &mut Report) {}
