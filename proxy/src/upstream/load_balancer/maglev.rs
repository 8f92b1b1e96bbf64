//! Maglev: a table of prime size filled by each host's own permutation; heavier hosts take more turns.

use super::{Hashing, Host, hash_key};
use std::sync::Arc;
use xxhash_rust::xxh64::xxh64;

struct Entry {
    offset: u64,
    skip: u64,
    next: u64,
    weight: f64,
    target: f64,
}

/// A host for each slot of the table.
pub(super) fn build(
    hosts: &[Arc<Host>],
    weights: &[f64],
    size: u64,
    hashing: Hashing,
) -> Box<[u32]> {
    const EMPTY: u32 = u32::MAX;
    let heaviest = weights.iter().copied().fold(0.0, f64::max);
    let mut entries: Vec<Entry> = hosts
        .iter()
        .zip(weights)
        .map(|(host, weight)| {
            let key = hash_key(host, hashing).as_bytes();
            Entry {
                offset: xxh64(key, 0) % size,
                skip: xxh64(key, 1) % (size - 1) + 1,
                next: 0,
                weight: *weight,
                target: 0.0,
            }
        })
        .collect();
    if entries.is_empty() {
        return Box::default();
    }
    let mut table = vec![EMPTY; usize::try_from(size).unwrap_or(65_537)];
    let (mut filled, mut round) = (0, 0.0);
    loop {
        round += 1.0;
        for (index, entry) in entries.iter_mut().enumerate() {
            // A host of half the weight has a turn every second round.
            if round * entry.weight < entry.target {
                continue;
            }
            entry.target += heaviest;
            loop {
                let slot =
                    usize::try_from((entry.offset + entry.skip * entry.next) % size).unwrap_or(0);
                entry.next += 1;
                if table[slot] == EMPTY {
                    table[slot] = u32::try_from(index).unwrap_or(0);
                    break;
                }
            }
            filled += 1;
            if filled == table.len() {
                return table.into();
            }
        }
    }
}

/// The host of the slot of `hash`; of another slot when the host found first is not wanted.
pub(super) fn pick(table: &[u32], hash: u64, attempt: u32) -> Option<usize> {
    let hash = if attempt > 0 {
        // Most bits change, so that the slot is far away: as Envoy does it.
        hash ^ (u64::MAX - u64::from(attempt) + 1)
    } else {
        hash
    };
    let slot = hash.checked_rem(table.len() as u64)?;
    table
        .get(usize::try_from(slot).ok()?)
        .map(|host| *host as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::host::testing::host;

    #[test]
    fn slots_follow_the_weights() {
        let hosts = vec![host(1, true), host(2, true)];
        let table = build(&hosts, &[1.0, 3.0], 65_537, Hashing::default());
        let first = table.iter().filter(|host| **host == 0).count();
        assert!((15_000..18_000).contains(&first), "{first}");
    }
}
