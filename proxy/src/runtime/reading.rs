//! Settings that the runtime may change while the proxy runs: flags, numbers, fractions. Each has a default and a key; a
//! worker reads the values of now from its own thread, so that filters need not carry the runtime about.

use super::RuntimeView;
use crate::matcher::Fraction;
use prost_types::{Struct, Value, value::Kind};
use proto::envoy::{
    config::core::v3::{RuntimeFeatureFlag, RuntimeFractionalPercent, RuntimeUInt32},
    r#type::v3::{FractionalPercent, fractional_percent::DenominatorType},
};
use std::cell::RefCell;

thread_local! {
    /// The values that this thread's worker reads.
    static CURRENT: RefCell<Option<RuntimeView>> = const { RefCell::new(None) };
}

/// Something that can be set in the runtime.
pub(crate) trait Setting: Clone {
    /// A runtime's value as one of these; `None` when it is of another kind.
    fn of(value: &Value) -> Option<Self>;
}

/// A setting with its default and the key of what goes before it.
#[derive(Debug, Clone)]
pub(crate) struct Reading<T> {
    default: T,
    key: Option<Box<str>>,
}

/// A feature that is on or off.
pub(crate) type RuntimeFlag = Reading<bool>;
/// A share of requests.
pub(crate) type RuntimeFraction = Reading<Fraction>;
/// A number.
pub(crate) type RuntimeNumber = Reading<u64>;

/// This thread reads `values` from now on.
pub(super) fn enter(values: &RuntimeView) {
    CURRENT.with_borrow_mut(|current| *current = Some(values.clone()));
}

impl<T: Setting> Reading<T> {
    /// A setting that always is this.
    pub(crate) const fn fixed(default: T) -> Self {
        Self { default, key: None }
    }

    /// A setting with a key; an empty one is none.
    pub(crate) fn new(key: &str, default: T) -> Self {
        let key = (!key.is_empty()).then(|| key.into());
        Self { default, key }
    }

    /// What it is now.
    pub(crate) fn now(&self) -> T {
        self.key
            .as_deref()
            .and_then(current)
            .unwrap_or_else(|| self.default.clone())
    }
}

/// What the runtime of this thread's worker says under `key`, if it is of that kind.
pub(crate) fn current<T: Setting>(key: &str) -> Option<T> {
    CURRENT.with_borrow(|current| current.as_ref()?.get(key))
}

impl RuntimeView {
    /// What is under `key` now, if it is of that kind.
    pub(crate) fn get<T: Setting>(&self, key: &str) -> Option<T> {
        T::of(self.0.load().by_key.get(key)?)
    }

    /// Whether there are keys that begin with `family` and a dot; mostly there are none, which is quickly told.
    pub(crate) fn has(&self, family: &str) -> bool {
        self.0.load().families.contains(family)
    }
}

impl RuntimeFraction {
    /// One throw of the dice.
    pub(crate) fn draw(&self) -> bool {
        self.now().draw()
    }

    /// The share of a message, `absent` where there is none.
    pub(crate) fn or(wire: Option<&RuntimeFractionalPercent>, absent: Fraction) -> Self {
        wire.map_or(Self::fixed(absent), Self::from)
    }
}

impl From<&RuntimeFractionalPercent> for RuntimeFraction {
    fn from(wire: &RuntimeFractionalPercent) -> Self {
        Self::new(&wire.runtime_key, Fraction::from(wire))
    }
}

impl RuntimeFlag {
    /// The flag of a message; on where there is none.
    pub(crate) fn or_on(wire: Option<&RuntimeFeatureFlag>) -> Self {
        wire.map_or(Self::fixed(true), |wire| {
            Self::new(&wire.runtime_key, wire.default_value.unwrap_or(true))
        })
    }

    /// The flag of a message; off where there is none.
    pub(crate) fn or_off(wire: Option<&RuntimeFeatureFlag>) -> Self {
        wire.map_or(Self::fixed(false), |wire| {
            Self::new(&wire.runtime_key, wire.default_value.unwrap_or(false))
        })
    }
}

impl From<&RuntimeUInt32> for RuntimeNumber {
    fn from(wire: &RuntimeUInt32) -> Self {
        Self::new(&wire.runtime_key, u64::from(wire.default_value))
    }
}

impl Setting for bool {
    fn of(value: &Value) -> Option<Self> {
        match value.kind.as_ref()? {
            Kind::BoolValue(is) => Some(*is),
            _ => None,
        }
    }
}

impl Setting for u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "only whole numbers in range get there"
    )]
    fn of(value: &Value) -> Option<Self> {
        match value.kind.as_ref()? {
            Kind::NumberValue(number)
                if *number >= 0.0 && number.fract() == 0.0 && *number <= f64::from(u32::MAX) =>
            {
                Some(*number as u64)
            }
            _ => None,
        }
    }
}

impl Setting for f64 {
    fn of(value: &Value) -> Option<Self> {
        match value.kind.as_ref()? {
            Kind::NumberValue(number) => Some(*number),
            _ => None,
        }
    }
}

impl Setting for Fraction {
    /// A number is a percentage, a struct a `FractionalPercent`.
    fn of(value: &Value) -> Option<Self> {
        let Some(Kind::StructValue(fields)) = &value.kind else {
            let percent = u64::of(value)?;
            return Some(Fraction::from(&FractionalPercent {
                numerator: u32::try_from(percent).ok()?,
                denominator: DenominatorType::Hundred.into(),
            }));
        };
        let numerator = fields.fields.get("numerator").and_then(u64::of);
        Some(Fraction::from(&FractionalPercent {
            numerator: u32::try_from(numerator.unwrap_or(0)).ok()?,
            denominator: denominator(fields)?.into(),
        }))
    }
}

fn denominator(fields: &Struct) -> Option<DenominatorType> {
    let Some(value) = fields.fields.get("denominator") else {
        return Some(DenominatorType::Hundred);
    };
    match value.kind.as_ref()? {
        Kind::StringValue(name) => DenominatorType::from_str_name(name),
        _ => DenominatorType::try_from(i32::try_from(u64::of(value)?).ok()?).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{runtime::Runtime, stats::Store};
    use proto::envoy::config::bootstrap::v3::LayeredRuntime;
    use std::sync::Arc;

    #[test]
    fn a_setting_is_what_the_runtime_says_and_else_its_default() {
        let runtime = Runtime::new(&Arc::new(Store::default()).root());
        let wire: LayeredRuntime = proto::yaml::from_str(
            "layers: [{name: base, static_layer: {flag: false, half: 50, tenth: {numerator: 1000, denominator: TEN_THOUSAND}, many: 7}}, {name: hand, admin_layer: {}}]",
        )
        .unwrap();
        runtime.configure(Some(&wire)).unwrap();
        let share = |key: &str| RuntimeFraction::new(key, Fraction::ALWAYS);
        // Before a thread has a runtime its settings are their defaults.
        assert_eq!(share("half").now(), Fraction::ALWAYS);
        runtime.enter();
        let percent = |numerator, denominator: DenominatorType| {
            Fraction::from(&FractionalPercent {
                numerator,
                denominator: denominator.into(),
            })
        };
        assert_eq!(share("half").now(), percent(50, DenominatorType::Hundred));
        assert_eq!(share("tenth").now(), percent(10, DenominatorType::Hundred));
        assert_eq!(share("other").now(), Fraction::ALWAYS);
        // A value of another kind is none.
        assert_eq!(share("flag").now(), Fraction::ALWAYS);
        assert!(!RuntimeFlag::new("flag", true).now());
        assert!(RuntimeFlag::new("many", true).now());
        let many = RuntimeNumber::new("many", 1);
        assert_eq!(many.now(), 7);
        runtime.modify([("many", "9")].into_iter()).unwrap();
        assert_eq!(many.now(), 9);
    }
}
