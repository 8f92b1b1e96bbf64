//! Sampling: a rule's telemetry of some of its requests only. Drawn by chance, it is drawn alike for all requests of a trace,
//! by their `x-request-id`, as the mesh's proxies do; a rate lets the first of each span of time through, then every nth.

use std::time::Duration;

use parking_lot::Mutex;
use proto::istio::policy::v1beta1 as wire;
use proto::istio::policy::v1beta1::fractional_percent::DenominatorType;
use proto_mesh::attribute::{ValueRef, ValueType};
use tokio::time::Instant;

use crate::attributes::{Bag, Slot, Unrecorded, Vocabulary};
use crate::lang::{self, Expression, Val};

/// Which requests a rule is carried out for, of those that it matches: those that all strategies choose.
#[derive(Debug)]
pub(crate) struct Sampling {
    random: Option<Random>,
    rate: Option<Rate>,
}

#[derive(Debug)]
struct Random {
    /// In the place of the numerator.
    share: Option<Expression>,
    numerator: u32,
    denominator: u32,
    /// The headers; none when each request is drawn on its own.
    headers: Option<Slot>,
}

#[derive(Debug)]
struct Rate {
    span: Duration,
    /// How many of a span are chosen before any is not.
    unsampled: u64,
    /// Of the others every one of so many; 0: none.
    one_of: u64,
    /// When the span began, and the requests since then.
    state: Mutex<(Instant, u64)>,
}

impl Sampling {
    /// Reads a configuration; the error is the field and what is wrong in it.
    pub(crate) fn new(
        config: &wire::Sampling,
        vocabulary: &Vocabulary,
    ) -> Result<Self, (&'static str, String)> {
        let random = config.random.as_ref();
        let rate = config.rate_limit.as_ref();
        if random.is_none() && rate.is_none() {
            return Err(("sampling", "random or rateLimit is needed".to_owned()));
        }
        Ok(Self {
            random: random
                .map(|random| Random::new(random, vocabulary))
                .transpose()?,
            rate: rate.map(Rate::new).transpose()?,
        })
    }

    /// Whether a request is chosen.
    pub(super) fn chooses(&self, bag: &Bag<'_>) -> bool {
        self.random
            .as_ref()
            .is_none_or(|random| random.chooses(bag))
            && self.rate.as_ref().is_none_or(Rate::chooses)
    }
}

impl Random {
    fn new(
        config: &wire::RandomSampling,
        vocabulary: &Vocabulary,
    ) -> Result<Self, (&'static str, String)> {
        let share = match config.attribute_expression.as_str() {
            "" => None,
            text => {
                let field = "sampling.random.attributeExpression";
                let share = lang::compile(text, vocabulary);
                let share = share.map_err(|error| (field, error.to_string()))?;
                if !matches!(share.value_type(), ValueType::Int64 | ValueType::Double) {
                    let problem = format!("is of type {}, not a number", share.value_type());
                    return Err((field, problem));
                }
                Some(share)
            }
        };
        let percent = config.percent_sampled.unwrap_or_default();
        let denominator = match DenominatorType::try_from(percent.denominator) {
            Ok(DenominatorType::Hundred) => 100,
            Ok(DenominatorType::TenThousand) => 10_000,
            Err(_) => {
                let field = "sampling.random.percentSampled.denominator";
                return Err((field, "must be HUNDRED or TEN_THOUSAND".to_owned()));
            }
        };
        let headers = vocabulary.find("request.headers");
        let headers = headers.filter(|found| found.value_type == ValueType::StringMap);
        Ok(Self {
            share,
            numerator: percent.numerator,
            denominator,
            headers: headers
                .map(|found| found.slot)
                .filter(|_| !config.use_independent_randomness),
        })
    }

    fn chooses(&self, bag: &Bag<'_>) -> bool {
        let share = match &self.share {
            None => f64::from(self.numerator),
            Some(share) => match share.eval(bag, &mut Unrecorded) {
                #[allow(
                    clippy::cast_precision_loss,
                    reason = "it is compared with at most 10,000"
                )]
                Ok(Val::Int64(share)) => share as f64,
                Ok(Val::Double(share)) => share,
                // Nobody is chosen by a share that is not there.
                _ => return false,
            },
        };
        let drawn = self.trace(bag).unwrap_or_else(rand::random::<u32>);
        f64::from(drawn % self.denominator) < share
    }

    /// What the requests of a trace have in common: the first digits of their id.
    fn trace(&self, bag: &Bag<'_>) -> Option<u32> {
        let ValueRef::StringMap(headers) = bag.get(self.headers?)? else {
            return None;
        };
        let id = headers.get("x-request-id")?;
        u32::from_str_radix(id.get(..8)?, 16).ok()
    }
}

impl Rate {
    fn new(config: &wire::RateLimitSampling) -> Result<Self, (&'static str, String)> {
        let span = config.sampling_duration.map(Duration::try_from);
        let span = span.and_then(Result::ok).filter(|span| !span.is_zero());
        let number = |field, number: i64| {
            u64::try_from(number).map_err(|_| (field, "must not be below 0".to_owned()))
        };
        Ok(Self {
            span: span.ok_or((
                "sampling.rateLimit.samplingDuration",
                "must be above 0".to_owned(),
            ))?,
            unsampled: number(
                "sampling.rateLimit.maxUnsampledEntries",
                config.max_unsampled_entries,
            )?,
            one_of: number("sampling.rateLimit.samplingRate", config.sampling_rate)?,
            state: Mutex::new((Instant::now(), 0)),
        })
    }

    fn chooses(&self) -> bool {
        let now = Instant::now();
        let mut state = self.state.lock();
        let (begun, count) = &mut *state;
        if now.saturating_duration_since(*begun) >= self.span {
            (*begun, *count) = (now, 0);
        }
        *count += 1;
        match count.checked_sub(self.unsampled) {
            None | Some(0) => true,
            Some(more) => self.one_of > 0 && more.is_multiple_of(self.one_of),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto_mesh::attribute::MapRef;

    fn vocabulary() -> Vocabulary {
        Vocabulary::new(
            &[
                ("request.headers".to_owned(), ValueType::StringMap),
                ("request.size".to_owned(), ValueType::Int64),
                ("request.path".to_owned(), ValueType::String),
            ]
            .into(),
        )
    }

    fn random(expression: &str, numerator: u32) -> wire::Sampling {
        wire::Sampling {
            random: Some(wire::RandomSampling {
                attribute_expression: expression.into(),
                percent_sampled: Some(wire::FractionalPercent {
                    numerator,
                    denominator: 0,
                }),
                use_independent_randomness: false,
            }),
            rate_limit: None,
        }
    }

    #[test]
    fn a_trace_is_drawn_as_one() {
        let vocabulary = vocabulary();
        let sampling = Sampling::new(&random("", 26), &vocabulary).unwrap();
        let headers = vocabulary.find("request.headers").unwrap().slot;
        // 0x...19 is 25 of 100, 0x...1a is 26.
        for (id, want) in [("00000019-ab", true), ("0000001a-ab", false)] {
            let id = [("x-request-id".into(), id.to_owned())];
            let mut bag = Bag::new(&vocabulary);
            bag.set(headers, ValueRef::StringMap(MapRef::Plain(&id)));
            assert!((0..20).all(|_| sampling.chooses(&bag) == want), "{id:?}");
        }
        // Without an id each is drawn on its own.
        let bag = Bag::new(&vocabulary);
        let chosen = (0..10_000).filter(|_| sampling.chooses(&bag)).count();
        assert!((2_000..3_200).contains(&chosen), "{chosen}");
    }

    #[test]
    fn an_attribute_may_say_the_share() {
        let vocabulary = vocabulary();
        let sampling = Sampling::new(&random("request.size", 100), &vocabulary).unwrap();
        let size = vocabulary.find("request.size").unwrap().slot;
        let mut bag = Bag::new(&vocabulary);
        assert!(!sampling.chooses(&bag));
        bag.set(size, ValueRef::Int64(100));
        assert!(sampling.chooses(&bag));
        let wrong = Sampling::new(&random("request.path", 1), &vocabulary).unwrap_err();
        assert_eq!(wrong.0, "sampling.random.attributeExpression");
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_lets_the_first_through_then_every_nth() {
        let vocabulary = vocabulary();
        let mut config = wire::Sampling {
            random: None,
            rate_limit: Some(wire::RateLimitSampling {
                sampling_duration: Some(prost_types::Duration {
                    seconds: 1,
                    nanos: 0,
                }),
                max_unsampled_entries: 2,
                sampling_rate: 3,
            }),
        };
        let sampling = Sampling::new(&config, &vocabulary).unwrap();
        let bag = Bag::new(&vocabulary);
        for _ in 0..2 {
            let chosen: Vec<_> = (1..=8).filter(|_| sampling.chooses(&bag)).collect();
            assert_eq!(chosen, [1, 2, 5, 8]);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        config.rate_limit.as_mut().unwrap().sampling_duration = None;
        let (field, _) = Sampling::new(&config, &vocabulary).unwrap_err();
        assert_eq!(field, "sampling.rateLimit.samplingDuration");
        assert!(Sampling::new(&wire::Sampling::default(), &vocabulary).is_err());
    }
}
