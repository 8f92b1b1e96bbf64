//! Weights: the order of turns for round robin, cumulative weights for random choice.

use super::Host;
use std::sync::Arc;

/// Above this the order of turns is drawn from coarser weights.
const MOST_TURNS: u64 = 4096;

/// The smooth order of turns (`a a b` becomes `a b a`), or nothing when all weigh the same.
pub(super) fn turns(hosts: &[Arc<Host>]) -> Option<Box<[u32]>> {
    let weights = reduced(hosts)?;
    let total: i64 = weights.iter().sum();
    let mut credit = vec![0_i64; weights.len()];
    let mut order = Vec::with_capacity(usize::try_from(total).unwrap_or(0));
    for _ in 0..total {
        for (credit, weight) in credit.iter_mut().zip(&weights) {
            *credit += weight;
        }
        let (next, _) = credit
            .iter()
            .enumerate()
            .rev()
            .max_by_key(|(_, credit)| **credit)?;
        credit[next] -= total;
        order.push(u32::try_from(next).unwrap_or(0));
    }
    Some(order.into())
}

/// Cumulative weights, or nothing when all weigh the same.
pub(super) fn cumulative(hosts: &[Arc<Host>]) -> Option<Box<[u64]>> {
    if are_equal(hosts) {
        return None;
    }
    let mut sum = 0;
    Some(
        hosts
            .iter()
            .map(|host| {
                sum += u64::from(host.weight());
                sum
            })
            .collect(),
    )
}

/// An index below `count`, by weight.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the remainder is below a count of hosts"
)]
pub(super) fn pick(weights: Option<&[u64]>, count: usize, random: u64) -> usize {
    match weights {
        None => (random % count as u64) as usize,
        Some(weights) => {
            let total = weights.last().copied().unwrap_or(1).max(1);
            weights
                .partition_point(|sum| *sum <= random % total)
                .min(count - 1)
        }
    }
}

fn are_equal(hosts: &[Arc<Host>]) -> bool {
    hosts
        .windows(2)
        .all(|pair| pair[0].weight() == pair[1].weight())
}

fn reduced(hosts: &[Arc<Host>]) -> Option<Vec<i64>> {
    if are_equal(hosts) {
        return None;
    }
    let divisor = hosts
        .iter()
        .map(|host| u64::from(host.weight()))
        .reduce(gcd)?;
    let total: u64 = hosts
        .iter()
        .map(|host| u64::from(host.weight()) / divisor)
        .sum();
    let scale = |weight: u64| {
        if total > MOST_TURNS {
            (weight * MOST_TURNS / total).max(1)
        } else {
            weight
        }
    };
    Some(
        hosts
            .iter()
            .map(|host| i64::try_from(scale(u64::from(host.weight()) / divisor)).unwrap_or(1))
            .collect(),
    )
}

fn gcd(left: u64, right: u64) -> u64 {
    if right == 0 {
        left
    } else {
        gcd(right, left % right)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::host::testing::host;

    #[test]
    fn turns_are_spread_by_weight() {
        let hosts = vec![host(1, true), host(2, true)];
        assert!(turns(&hosts).is_none());
        hosts[0].set_weight(20);
        hosts[1].set_weight(10);
        assert_eq!(&*turns(&hosts).unwrap(), &[0, 1, 0]);
        assert_eq!(pick(cumulative(&hosts).as_deref(), 2, 29), 1);
        assert_eq!(pick(cumulative(&hosts).as_deref(), 2, 19), 0);
    }
}
