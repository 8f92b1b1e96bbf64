//! Weights: the order of turns for round robin, cumulative weights for random choice.

/// Above this the order of turns is drawn from coarser weights.
const MOST_TURNS: u64 = 4096;
/// Weights that are not whole (of hosts that are still new) are counted in hundredths.
const FINE: f64 = 100.0;

/// The smooth order of turns: `2 1` becomes `a b a`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "weights are 32 bits wide and not negative, turns are few"
)]
pub(super) fn turns(weights: &[f64]) -> Box<[u32]> {
    let scale = if weights.iter().all(|weight| weight.fract() == 0.0) {
        1.0
    } else {
        FINE
    };
    let whole: Vec<u64> = weights
        .iter()
        .map(|weight| ((weight * scale).round() as u64).max(1))
        .collect();
    let divisor = whole.iter().copied().fold(0, gcd).max(1);
    let total: u64 = whole.iter().map(|weight| weight / divisor).sum();
    let reduced: Vec<i64> = whole
        .iter()
        .map(|weight| {
            let weight = weight / divisor;
            let coarse = if total > MOST_TURNS {
                (weight * MOST_TURNS / total).max(1)
            } else {
                weight
            };
            coarse as i64
        })
        .collect();
    let total: i64 = reduced.iter().sum();
    let mut credit = vec![0_i64; reduced.len()];
    let mut order = Vec::with_capacity(total as usize);
    for _ in 0..total {
        for (credit, weight) in credit.iter_mut().zip(&reduced) {
            *credit += weight;
        }
        let next = credit
            .iter()
            .enumerate()
            .rev()
            .max_by_key(|(_, credit)| **credit)
            .map_or(0, |(index, _)| index);
        credit[next] -= total;
        order.push(next as u32);
    }
    order.into()
}

/// Cumulative weights.
pub(super) fn cumulative(weights: &[f64]) -> Box<[f64]> {
    weights
        .iter()
        .scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        })
        .collect()
}

/// An index by cumulative weights, which are not empty.
pub(super) fn pick(sums: &[f64], random: u64) -> usize {
    let total = sums.last().copied().unwrap_or(0.0);
    let at = fraction(random) * total;
    sums.partition_point(|sum| *sum <= at).min(sums.len() - 1)
}

/// A number below `count`.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the remainder is below a count of hosts"
)]
pub(super) fn below(random: u64, count: usize) -> usize {
    (random % count as u64) as usize
}

/// A number in `0..1`.
#[expect(clippy::cast_precision_loss, reason = "53 bits are what fits")]
pub(crate) fn fraction(random: u64) -> f64 {
    (random >> 11) as f64 / (1_u64 << 53) as f64
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

    #[test]
    fn turns_are_spread_by_weight() {
        assert_eq!(&*turns(&[20.0, 10.0]), &[0, 1, 0]);
        assert_eq!(&*turns(&[0.5, 1.0]), &[1, 0, 1]);
        let sums = cumulative(&[20.0, 10.0]);
        assert_eq!(pick(&sums, u64::MAX), 1);
        assert_eq!(pick(&sums, 0), 0);
    }
}
