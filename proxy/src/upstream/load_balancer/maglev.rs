//! Maglev: a table of prime size filled by each host's own permutation; heavier hosts take more turns.

use super::{Host, hash_key};
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
#[expect(
    clippy::cast_precision_loss,
    reason = "weights and the table's size are far below 2^52"
)]
pub(super) fn build(hosts: &[Arc<Host>], size: u64) -> Box<[u32]> {
    const EMPTY: u32 = u32::MAX;
    let heaviest = hosts
        .iter()
        .map(|host| f64::from(host.weight()))
        .fold(0.0, f64::max);
    let mut entries: Vec<Entry> = hosts
        .iter()
        .map(|host| {
            let key = hash_key(host).as_bytes();
            Entry {
                offset: xxh64(key, 0) % size,
                skip: xxh64(key, 1) % (size - 1) + 1,
                next: 0,
                weight: f64::from(host.weight()),
                target: 0.0,
            }
        })
        .collect();
    if entries.is_empty() {
        return Box::default();
    }
    let mut table = vec![EMPTY; usize::try_from(size).unwrap_or(65_537)];
    let (mut filled, mut round) = (0, 0_u64);
    loop {
        round += 1;
        for (index, entry) in entries.iter_mut().enumerate() {
            // A host of half the weight has a turn every second round.
            if (round as f64) * entry.weight < entry.target {
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

/// The host of the slot of `hash`.
pub(super) fn pick(table: &[u32], hash: u64) -> Option<usize> {
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
        hosts[1].set_weight(3);
        let table = build(&hosts, 65_537);
        let first = table.iter().filter(|host| **host == 0).count();
        assert!((15_000..18_000).contains(&first), "{first}");
    }
}
