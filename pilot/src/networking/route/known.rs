//! A sidecar's route configuration, encoded anew out of virtual hosts that are as they were and those that are not.
//!
//! A route configuration holds the virtual hosts of a thousand services, and a changed virtual service steers one of them: the
//! others are taken over as bytes.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint};
use proto::istio::networking::v1alpha3::envoy_filter::ApplyTo;
use xxhash_rust::xxh64::xxh64;

use super::sidecar::{Planned, plan};
use super::{build, without_hosts};
use crate::networking::View;
use crate::networking::view::Trouble;
use crate::push_context::virtual_services::VirtualService;

/// Field of a route configuration.
const VIRTUAL_HOSTS: u32 = 2;

/// The virtual hosts of one route configuration, as they were made last for one class of proxies. They hold as long as nothing
/// but virtual services changes.
#[derive(Debug, Default)]
pub struct KnownHosts {
    by_name: HashMap<String, KnownHost>,
    /// The configuration in which they stand.
    encoded: Bytes,
}

#[derive(Debug)]
struct KnownHost {
    /// The virtual service that it was made of.
    steering: Option<Arc<VirtualService>>,
    /// Hashes of its domains as Envoy compares them.
    domains: Box<[u64]>,
    /// Where its bytes are; empty when nothing of it is for these proxies.
    place: Range<usize>,
    troubles: Vec<Trouble>,
}

impl KnownHosts {
    /// Notes where the configuration that was encoded last is kept.
    pub fn keep_in(&mut self, encoded: Bytes) {
        self.encoded = encoded;
    }
}

impl KnownHost {
    /// Makes `planned` and writes it to the end of `to`.
    fn make(view: &View<'_>, planned: &Planned<'_>, to: &mut Vec<u8>) -> Self {
        let begin = to.len();
        let (made, troubles) = view.recording(|| planned.build(view));
        let mut domains = Vec::new();
        if let Some(host) = made {
            let lowered = host
                .domains
                .iter()
                .map(|domain| domain.to_ascii_lowercase());
            domains.extend(lowered.map(|domain| xxh64(domain.as_bytes(), 0)));
            encode_key(VIRTUAL_HOSTS, WireType::LengthDelimited, to);
            encode_varint(host.encoded_len() as u64, to);
            host.encode_raw(to);
        }
        KnownHost {
            steering: planned.steering.cloned(),
            domains: domains.into(),
            place: begin..to.len(),
            troubles,
        }
    }

    /// True when making `planned` would give the same.
    fn is(&self, planned: &Planned<'_>) -> bool {
        match (&self.steering, planned.steering) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

/// The route configuration `name` as [`build`] makes it, encoded. Hosts in `known` that are still right are not made again; the
/// others replace them there.
#[must_use]
pub fn encode(view: &View<'_>, name: &str, known: &mut KnownHosts) -> Vec<u8> {
    const PATCHED: [ApplyTo; 3] = [
        ApplyTo::RouteConfiguration,
        ApplyTo::VirtualHost,
        ApplyTo::HttpRoute,
    ];
    let old = std::mem::take(known);
    if view.proxy.is_router() || view.patches.has_any(&PATCHED) {
        return build(view, name).encode_to_vec();
    }
    let mut by_name = old.by_name;
    let mut encoded = Vec::with_capacity(old.encoded.len() + 1024);
    let (head, tail) = without_hosts(name);
    head.encode_raw(&mut encoded);
    let mut domains: HashSet<u64> = HashSet::with_capacity(8 * by_name.len());
    let mut is_contested = false;
    for planned in plan(view, name) {
        let host = match by_name.remove(&planned.name) {
            Some(mut host) if host.is(&planned) && host.place.end <= old.encoded.len() => {
                let begin = encoded.len();
                encoded.extend_from_slice(&old.encoded[host.place.clone()]);
                host.place = begin..encoded.len();
                view.record_again(&host.troubles);
                host
            }
            _ => KnownHost::make(view, &planned, &mut encoded),
        };
        is_contested |= !host.domains.iter().all(|domain| domains.insert(*domain));
        known.by_name.insert(planned.name, host);
    }
    tail.encode_raw(&mut encoded);
    if is_contested {
        // Whoever comes first has the domain, and the others are made without it.
        known.by_name.clear();
        return build(view, name).encode_to_vec();
    }
    encoded
}
