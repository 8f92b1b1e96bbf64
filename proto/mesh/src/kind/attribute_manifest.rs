//! Rules of AttributeManifest.

use proto::istio::policy::v1beta1::AttributeManifest;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(_spec: &AttributeManifest, _meta: &Metadata, _report: &mut Report) {}
