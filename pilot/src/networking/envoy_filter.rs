//! EnvoyFilter patches, applied to what the generators have made: [`listener`], [`route`], [`cluster`].
//!
//! Follows Istio: LISTENER, FILTER_CHAIN, NETWORK_FILTER, HTTP_FILTER and LISTENER_FILTER on listeners; ROUTE_CONFIGURATION,
//! VIRTUAL_HOST and HTTP_ROUTE on routes (inline ones too); CLUSTER. EXTENSION_CONFIG and BOOTSTRAP are resources of their own
//! ([`super::extension`], [`super::bootstrap`]).

use proto::envoy::config::core::v3::{SocketAddress, address, socket_address::PortSpecifier};
use proto::istio::networking::v1alpha3::envoy_filter::patch::Operation;

pub(super) mod cluster;
pub(super) mod listener;
mod merge;
pub(super) mod route;

use crate::push_context::envoy_filters::Patch;

/// Does what `patch` says to a list of named things: inserts, removes, replaces, merges. `is_target` says whether the condition
/// names an element, `value` is the new element, `merge` merges into one.
fn patch_list<T: Clone>(
    list: &mut Vec<T>,
    patch: &Patch,
    has_target: bool,
    is_target: impl Fn(&T) -> bool,
    value: Option<&T>,
    merge: impl Fn(&mut T),
) {
    let position = list.iter().position(&is_target);
    match (patch.operation, value) {
        (Operation::Add, Some(value)) => list.push(value.clone()),
        (Operation::InsertFirst, Some(value)) => list.insert(0, value.clone()),
        (Operation::InsertBefore, Some(value)) => match position {
            Some(index) => list.insert(index, value.clone()),
            None if !has_target => list.insert(0, value.clone()),
            None => {}
        },
        (Operation::InsertAfter, Some(value)) => match position {
            Some(index) => list.insert(index + 1, value.clone()),
            None if !has_target => list.push(value.clone()),
            None => {}
        },
        (Operation::Replace, Some(value)) => {
            if let (Some(index), true) = (position, has_target) {
                list[index] = value.clone();
            }
        }
        (Operation::Remove, _) => list.retain(|element| !is_target(element)),
        (Operation::Merge | Operation::MergeAndReplaceList, _) => {
            for element in list.iter_mut().filter(|element| is_target(element)) {
                merge(element);
            }
        }
        _ => {}
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
