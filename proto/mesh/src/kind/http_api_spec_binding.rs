//! Rules of HttpapiSpecBinding.

use proto::istio::mixer::v1::config::client::HttpapiSpecBinding;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(_spec: &HttpapiSpecBinding, _meta: &Metadata, _report: &mut Report) {}
