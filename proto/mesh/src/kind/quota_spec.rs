//! Rules of QuotaSpec.

use proto::istio::mixer::v1::config::client::QuotaSpec;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(_spec: &QuotaSpec, _meta: &Metadata, _report: &mut Report) {}
