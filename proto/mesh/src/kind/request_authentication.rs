//! Rules of RequestAuthentication.

use proto::istio::security::v1beta1::RequestAuthentication;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(_spec: &RequestAuthentication, _meta: &Metadata, _report: &mut Report) {}
