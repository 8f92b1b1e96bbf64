//! Rules of ProxyConfig.

use proto::istio::networking::v1beta1::ProxyConfig;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(_spec: &ProxyConfig, _meta: &Metadata, _report: &mut Report) {}
