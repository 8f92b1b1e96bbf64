//! Rules of WasmPlugin.

use proto::istio::extensions::v1alpha1::WasmPlugin;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(_spec: &WasmPlugin, _meta: &Metadata, _report: &mut Report) {}
