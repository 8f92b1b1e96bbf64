//! Ketama-like ring hash, as Envoy builds it: each host has points by its weight, hashed from `<key>_<n>` with xxHash64.

use super::{Hashing, Host, hash_key, policy::RingOptions};
use std::sync::Arc;
use xxhash_rust::xxh64::xxh64;

/// Sorted points of the ring and the host each leads to.
#[expect(clippy::cast_precision_loss, reason = "ring sizes are far below 2^52")]
pub(super) fn build(
    hosts: &[Arc<Host>],
    weights: &[f64],
    options: &RingOptions,
    hashing: Hashing,
) -> Box<[(u64, u32)]> {
    let total: f64 = weights.iter().sum();
    if hosts.is_empty() || total <= 0.0 {
        return Box::default();
    }
    let least = weights
        .iter()
        .map(|weight| weight / total)
        .fold(1.0, f64::min);
    // The lightest host gets whole points, unless the ring would be too large.
    let scale = ((least * options.minimum as f64).ceil() / least).min(options.maximum as f64);
    let mut points = Vec::new();
    let (mut wanted, mut made) = (0.0, 0.0);
    for (index, (host, weight)) in hosts.iter().zip(weights).enumerate() {
        wanted += scale * weight / total;
        let mut number = 0_u64;
        while made < wanted {
            let key = format!("{}_{number}", hash_key(host, hashing));
            points.push((
                options.hash(key.as_bytes()),
                u32::try_from(index).unwrap_or(0),
            ));
            number += 1;
            made += 1.0;
        }
    }
    points.sort_unstable();
    points.into()
}

/// The host of the first point at or after `hash`; of a later one when that host is not wanted.
pub(super) fn pick(points: &[(u64, u32)], hash: u64, attempt: u32) -> Option<usize> {
    if points.is_empty() {
        return None;
    }
    let at = points.partition_point(|(point, _)| *point < hash) + attempt as usize;
    Some(points[at % points.len()].1 as usize)
}

impl RingOptions {
    fn hash(&self, key: &[u8]) -> u64 {
        if self.is_murmur {
            murmur2(key, 0xc70f_6907)
        } else {
            xxh64(key, 0)
        }
    }
}

/// MurmurHash2 (64 bit), what `std::hash` of libstdc++ uses; older configurations ask for it.
fn murmur2(key: &[u8], seed: u64) -> u64 {
    const M: u64 = 0xc6a4_a793_5bd1_e995;
    let mut hash = seed ^ (key.len() as u64).wrapping_mul(M);
    let (chunks, rest) = key.as_chunks::<8>();
    for chunk in chunks {
        let mut word = u64::from_le_bytes(*chunk).wrapping_mul(M);
        word ^= word >> 47;
        hash = (hash ^ word.wrapping_mul(M)).wrapping_mul(M);
    }
    if !rest.is_empty() {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        hash = (hash ^ u64::from_le_bytes(last)).wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 47)).wrapping_mul(M);
    hash ^ (hash >> 47)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::host::testing::host;

    #[test]
    fn a_removed_host_moves_few_keys_of_the_others() {
        let options = RingOptions {
            minimum: 1024,
            maximum: 8 << 20,
            is_murmur: false,
        };
        let hosts: Vec<_> = (1..=5).map(|last| host(last, true)).collect();
        let built = |count: usize| {
            build(
                &hosts[..count],
                &[1.0; 5][..count],
                &options,
                Hashing::default(),
            )
        };
        let (all, fewer) = (built(5), built(4));
        let hashes = (0..1000_u64).map(|number| xxh64(&number.to_le_bytes(), 0));
        // The others get more points when one goes, so that a few keys move between them.
        let moved = hashes
            .filter(|hash| {
                pick(&all, *hash, 0) != Some(4) && pick(&all, *hash, 0) != pick(&fewer, *hash, 0)
            })
            .count();
        assert!(moved < 200, "{moved}");
    }
}
