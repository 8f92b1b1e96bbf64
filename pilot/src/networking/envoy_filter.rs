//! EnvoyFilter patches, applied to what the generators have made: [`listener`], [`route`], [`cluster`].
//!
//! Follows Istio: LISTENER, FILTER_CHAIN, NETWORK_FILTER, HTTP_FILTER and LISTENER_FILTER on listeners; ROUTE_CONFIGURATION,
//! VIRTUAL_HOST and HTTP_ROUTE on routes (inline ones too); CLUSTER. EXTENSION_CONFIG and BOOTSTRAP are resources of their own
//! ([`super::extension`], [`super::bootstrap`]). What is added is not patched itself, nor is what is inside it; filters are
//! inserted and removed in the order of the patches, and merged after that.

use proto::envoy::config::core::v3::{SocketAddress, address, socket_address::PortSpecifier};
use proto::istio::networking::v1alpha3::envoy_filter::patch::Operation;

pub(super) mod cluster;
pub(super) mod listener;
mod merge;
pub(super) mod route;

use self::merge::merge;
use crate::networking::View;
use crate::push_context::envoy_filters::Patch;

/// Inserts into a list, removes from it, replaces in it, as `patch` says; merging is the caller's. `is_target` tells the element
/// that the condition names, if it names one, and `end` is where an added one belongs.
fn patch_list<T: Clone>(
    list: &mut Vec<T>,
    patch: &Patch,
    value: Option<&T>,
    end: usize,
    is_target: Option<impl Fn(&T) -> bool>,
) {
    let position = || list.iter().position(is_target.as_ref()?);
    let index = match patch.operation {
        Operation::Add => Some(end),
        Operation::InsertFirst => Some(0),
        Operation::InsertBefore if is_target.is_none() => Some(0),
        Operation::InsertBefore => position(),
        Operation::InsertAfter if is_target.is_none() => Some(end),
        Operation::InsertAfter => position().map(|index| index + 1),
        Operation::Replace => {
            if let (Some(index), Some(value)) = (position(), value) {
                list[index] = value.clone();
            }
            None
        }
        Operation::Remove => {
            if let Some(is_target) = is_target {
                list.retain(|element| !is_target(element));
            }
            None
        }
        Operation::Merge | Operation::MergeAndReplaceList | Operation::Invalid => None,
    };
    if let (Some(index), Some(value)) = (index, value) {
        list.insert(index, value.clone());
    }
}

/// Merges into `target`, which is part of `what`, if `patch` is to be merged.
fn merge_into<T: prost::Message + prost::Name + Default>(
    view: &View<'_>,
    patch: &Patch,
    target: &mut T,
    what: &str,
) {
    if let (true, Some(value)) = (patch.is_merge(), &patch.merge)
        && !merge(target, value, patch.replaces_lists())
    {
        view.record_patch(what);
    }
}

/// The port of an address.
fn port_of(address: Option<&proto::envoy::config::core::v3::Address>) -> Option<u32> {
    match address?.address.as_ref()? {
        address::Address::SocketAddress(SocketAddress {
            port_specifier: Some(PortSpecifier::PortValue(port)),
            ..
        }) => Some(*port),
        _ => None,
    }
}
