//! Which streams are reset when memory runs out (`envoy.overload_actions.reset_high_memory_stream`): those that hold most, by
//! classes of powers of two, the largest class first.

use std::ops::RangeInclusive;

/// As many classes as Envoy has; the last one has no upper bound.
const CLASSES: u32 = 8;

/// The classes of streams by what they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamClasses {
    smallest: u32,
}

impl StreamClasses {
    /// As many streams as a worker resets at once.
    pub(crate) const MOST_RESET: usize = 50;
    /// The powers of two that may be the first class's.
    pub(super) const POWERS: RangeInclusive<u32> = 10..=56;

    /// Classes of which the first begins at two to the power of `smallest` bytes.
    pub(crate) fn new(smallest: u32) -> Self {
        Self { smallest }
    }

    /// The class of a stream that holds so much; none for those that are never reset.
    pub(crate) fn class_of(self, held: usize) -> Option<u32> {
        let power = held.checked_ilog2()?;
        Some(power.checked_sub(self.smallest)?.min(CLASSES - 1))
    }

    /// The smallest class that is concerned when the action is so far in force; the larger ones are too.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the value is between 0 and 1"
    )]
    pub(crate) fn least_class(value: f64) -> u32 {
        let concerned = (value * f64::from(CLASSES)) as u32 + 1;
        CLASSES - concerned.min(CLASSES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_classed_by_powers_of_two() {
        let classes = StreamClasses::new(20);
        for (held, class) in [
            (0, None),
            ((1 << 20) - 1, None),
            (1 << 20, Some(0)),
            ((1 << 21) - 1, Some(0)),
            (1 << 21, Some(1)),
            (127 << 20, Some(6)),
            (128 << 20, Some(7)),
            (1 << 40, Some(7)),
        ] {
            assert_eq!(classes.class_of(held), class, "{held}");
        }
    }

    #[test]
    fn the_further_in_force_the_smaller_are_those_concerned() {
        for (value, least) in [(0.01, 7), (0.125, 6), (0.5, 3), (0.9, 0), (1.0, 0)] {
            assert_eq!(StreamClasses::least_class(value), least, "{value}");
        }
    }
}
