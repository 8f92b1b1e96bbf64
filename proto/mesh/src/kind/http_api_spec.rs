//! Rules of HttpapiSpec.

use proto::istio::mixer::v1::config::client::HttpapiSpec;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(_spec: &HttpapiSpec, _meta: &Metadata, _report: &mut Report) {}
