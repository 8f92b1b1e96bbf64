//! Rules of PeerAuthentication.

use proto::istio::security::v1beta1::PeerAuthentication;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(_spec: &PeerAuthentication, _meta: &Metadata, _report: &mut Report) {}
