//! Rules of QuotaSpecBinding.

use proto::istio::mixer::v1::config::client::QuotaSpecBinding;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(_spec: &QuotaSpecBinding, _meta: &Metadata, _report: &mut Report) {}
