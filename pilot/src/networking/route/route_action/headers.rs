//! Changes of headers. An Envoy refuses those of its own, which are left out as in Istio; the authority has a field of its own.

use proto::envoy::config::core::v3::HeaderValueOption;
use proto::istio::networking::v1alpha3::headers::HeaderOperations;

use crate::networking::wire::header_option;

/// Header operations on the wire.
#[derive(Default)]
pub(super) struct HeaderChanges {
    pub(super) add: Vec<HeaderValueOption>,
    pub(super) remove: Vec<String>,
    pub(super) authority: Option<String>,
}

impl HeaderChanges {
    pub(super) fn new(operations: Option<&HeaderOperations>) -> Self {
        let Some(operations) = operations else {
            return HeaderChanges::default();
        };
        let mut changes = HeaderChanges::default();
        // What is set goes before what is added.
        for (operation, is_added) in [(&operations.add, true), (&operations.set, false)] {
            let authority = operation.iter().filter(|(name, _)| is_authority(name));
            changes.authority = authority
                .map(|(_, value)| value.clone())
                .next_back()
                .or(changes.authority);
            let others = operation.iter().filter(|(name, _)| !is_internal(name));
            let others = others.map(|(name, value)| header_option(name, value, is_added));
            changes.add.splice(0..0, others);
        }
        let removed = operations.remove.iter();
        changes
            .remove
            .extend(removed.filter(|name| !is_internal(name)).cloned());
        changes
    }
}

fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case(":authority") || name.eq_ignore_ascii_case("host")
}

fn is_internal(name: &str) -> bool {
    name.starts_with(':') || is_authority(name)
}
