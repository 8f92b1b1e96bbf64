//! Fractions of requests: `FractionalPercent` and `Percent`, and the default value of `RuntimeFractionalPercent`.

use proto::envoy::config::core::v3::RuntimeFractionalPercent;
use proto::envoy::r#type::v3::fractional_percent::DenominatorType;
use proto::envoy::r#type::v3::{FractionalPercent, Percent};
use rand::RngExt as _;

/// A share of requests, in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fraction(u32);

impl Fraction {
    /// Every request.
    pub(crate) const ALWAYS: Fraction = Fraction(1_000_000);
    /// No request.
    pub(crate) const NEVER: Fraction = Fraction(0);

    /// One throw of the dice.
    pub(crate) fn draw(self) -> bool {
        match self.0 {
            0 => false,
            1_000_000.. => true,
            share => rand::rng().random_range(0..1_000_000) < share,
        }
    }

    /// Whether a number that was drawn elsewhere (the same everywhere on a request's way) falls into the share; it counts
    /// modulo ten thousand.
    pub(crate) fn holds(self, drawn: u64) -> bool {
        drawn % 10_000 * 100 < u64::from(self.0)
    }

    /// The same share limited to `numerator` of this fraction's kind (percent); used by headers that lower it.
    pub(crate) fn min_percent(self, percent: u32) -> Fraction {
        Fraction(self.0.min(percent.saturating_mul(10_000)))
    }
}

impl From<&FractionalPercent> for Fraction {
    fn from(percent: &FractionalPercent) -> Self {
        let scale = match percent.denominator() {
            DenominatorType::Hundred => 10_000,
            DenominatorType::TenThousand => 100,
            DenominatorType::Million => 1,
        };
        Fraction(percent.numerator.saturating_mul(scale).min(1_000_000))
    }
}

impl From<&RuntimeFractionalPercent> for Fraction {
    fn from(percent: &RuntimeFractionalPercent) -> Self {
        // QUIRK: an absent default value of an existing message means zero of a hundred.
        percent
            .default_value
            .as_ref()
            .map_or(Fraction::NEVER, Fraction::from)
    }
}

impl From<&Percent> for Fraction {
    fn from(percent: &Percent) -> Self {
        let share = (percent.value.clamp(0.0, 100.0) * 10_000.0).round();
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to 0..=1_000_000"
        )]
        Fraction(share as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_scale_by_their_denominator() {
        let percent = |numerator, denominator: DenominatorType| {
            Fraction::from(&FractionalPercent {
                numerator,
                denominator: denominator.into(),
            })
        };
        assert_eq!(percent(50, DenominatorType::Hundred), Fraction(500_000));
        assert_eq!(percent(50, DenominatorType::TenThousand), Fraction(5_000));
        assert_eq!(percent(200, DenominatorType::Hundred), Fraction::ALWAYS);
        assert!(Fraction::ALWAYS.draw());
        assert!(!Fraction::NEVER.draw());
        assert_eq!(Fraction::from(&Percent { value: 0.5 }), Fraction(5_000));
    }
}
