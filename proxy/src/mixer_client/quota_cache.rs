//! Quotas at hand: an amount is fetched ahead, as much as the last second needed, and requests are charged against it.
//!
//! As long as Mixer grants what it is asked for, an amount that has been asked for may be used before the answer comes; what is
//! granted less is then taken back from what is left. So a worker never passes more than was granted, but for what it has asked
//! for and not heard of yet: each time as much as the last second needed, and no less than [`MIN_PREFETCH`]. When Mixer grants
//! less than was asked, there is no credit, and nothing is asked for a while.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use proto::istio::mixer::v1::ReferencedAttributes;
use proto_mesh::attribute::record::Record;
use tokio::time::Instant;

use super::quota_spec::Requirement;
use super::referenced::{Referenced, Signature};

const CAPACITY: usize = 10_000;
const MAX_SHAPES: usize = 64;
/// What the last window needed is what the next will.
const WINDOW: Duration = Duration::from_millis(1000);
const SLOTS: u64 = 20;
const MIN_PREFETCH: i64 = 10;
/// Questions on their way for one cell.
const MAX_IN_FLIGHT: u32 = 10;
/// After an answer that granted less than was asked.
const CLOSE_WAIT: Duration = Duration::from_millis(500);
const MAX_GRANT_LIFE: Duration = Duration::from_secs(60);
const IDLE: Duration = Duration::from_secs(600);

/// The cache.
#[derive(Debug, Default)]
pub(super) struct QuotaCache {
    by_name: HashMap<Arc<str>, Quota>,
    next_id: u64,
    swept: Option<Instant>,
}

/// A charge's outcome.
#[derive(Debug)]
pub(super) struct Decision {
    pub(super) is_granted: bool,
    pub(super) prefetch: Option<Prefetch>,
}

/// An amount to ask Mixer for.
#[derive(Clone, Debug)]
pub(super) struct Prefetch {
    pub(super) name: Arc<str>,
    pub(super) amount: i64,
    /// The cell that asks.
    cell: u64,
    /// The grant that is used before it is given.
    credit: Option<u64>,
}

/// What Mixer answered to a prefetch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granted {
    pub(super) amount: i64,
    pub(super) valid: Duration,
}

#[derive(Debug, Default)]
struct Quota {
    shapes: Vec<Referenced>,
    /// By id.
    cells: HashMap<u64, Cell>,
    by_signature: HashMap<Signature, u64>,
    /// Serves everybody until the first answer tells what the quota depends on.
    pending: Option<u64>,
}

#[derive(Debug)]
struct Cell {
    grants: VecDeque<Grant>,
    next_grant: u64,
    /// The last answer granted less than was asked.
    is_closed: bool,
    in_flight: u32,
    asked: Option<Instant>,
    used: Instant,
    /// Passed in each slot of the window.
    passed: [i64; SLOTS as usize],
    slot: u64,
    begun: Instant,
}

#[derive(Debug)]
struct Grant {
    id: u64,
    amount: i64,
    expires: Instant,
}

impl QuotaCache {
    /// Charges a request for a quota.
    pub(super) fn charge(
        &mut self,
        requirement: &Requirement,
        record: &Record,
        now: Instant,
    ) -> Decision {
        self.sweep(now);
        let quota = self.by_name.entry(requirement.name.clone()).or_default();
        let id = quota.find(record).unwrap_or_else(|| {
            self.next_id += 1;
            quota.add(self.next_id, record, now);
            self.next_id
        });
        let Some(cell) = quota.cells.get_mut(&id) else {
            // The id was just found or added.
            return Decision {
                is_granted: true,
                prefetch: None,
            };
        };
        let prefetch = cell.wanted(requirement.amount, now);
        let is_granted = cell.take(requirement.amount, now);
        let prefetch = prefetch.map(|(amount, credit)| Prefetch {
            name: requirement.name.clone(),
            amount,
            cell: id,
            credit,
        });
        Decision {
            is_granted,
            prefetch,
        }
    }

    /// Takes an answer to a prefetch; `None` when Mixer could not be asked: then everything asked for is granted.
    pub(super) fn answered(
        &mut self,
        prefetch: &Prefetch,
        granted: Option<Granted>,
        referenced: Option<&ReferencedAttributes>,
        record: &Record,
        now: Instant,
    ) {
        let Some(quota) = self.by_name.get_mut(&prefetch.name) else {
            return;
        };
        if let Some(shape) = referenced.and_then(|message| Referenced::decode(message, record)) {
            quota.learn(shape, prefetch, record);
        }
        if let Some(cell) = quota.cells.get_mut(&prefetch.cell) {
            cell.answered(prefetch, granted, now);
        }
    }

    fn sweep(&mut self, now: Instant) {
        let cells: usize = self.by_name.values().map(|quota| quota.cells.len()).sum();
        let is_due = self
            .swept
            .is_none_or(|swept| now.saturating_duration_since(swept) >= IDLE / 10);
        if !is_due && cells < CAPACITY {
            return;
        }
        self.swept = Some(now);
        for quota in self.by_name.values_mut() {
            // Too many: half of them must go, whoever was used last stays.
            let patience = if cells >= CAPACITY { WINDOW } else { IDLE };
            quota
                .cells
                .retain(|_, cell| now.saturating_duration_since(cell.used) < patience);
            let cells = &quota.cells;
            quota.by_signature.retain(|_, id| cells.contains_key(id));
            quota.pending = quota.pending.filter(|id| cells.contains_key(id));
        }
        self.by_name.retain(|_, quota| !quota.cells.is_empty());
    }
}

impl Quota {
    fn find(&self, record: &Record) -> Option<u64> {
        let mut signatures = self.signatures(record);
        let known = signatures.find_map(|signature| self.by_signature.get(&signature).copied());
        known.or(if self.shapes.is_empty() {
            self.pending
        } else {
            None
        })
    }

    /// The request's keys in the shapes that it has.
    fn signatures(&self, record: &Record) -> impl Iterator<Item = Signature> {
        let shapes = self.shapes.iter().enumerate();
        shapes.filter_map(|(position, shape)| shape.signature(position, record))
    }

    fn add(&mut self, id: u64, record: &Record, now: Instant) {
        self.cells.insert(id, Cell::new(now));
        let fitting = self.signatures(record).next();
        match fitting {
            Some(signature) => {
                self.by_signature.insert(signature, id);
            }
            None => self.pending = Some(id),
        }
    }

    /// The cell that asked is the one for requests like the one it asked for.
    fn learn(&mut self, shape: Referenced, prefetch: &Prefetch, record: &Record) {
        let known = self.shapes.iter().position(|known| *known == shape);
        if known.is_none() && self.shapes.len() >= MAX_SHAPES {
            self.shapes.clear();
            self.by_signature.clear();
        }
        let position = known.unwrap_or(self.shapes.len());
        let Some(signature) = shape.signature(position, record) else {
            return;
        };
        if known.is_none() {
            self.shapes.push(shape);
        }
        self.by_signature.entry(signature).or_insert(prefetch.cell);
        self.pending = self.pending.filter(|id| *id != prefetch.cell);
    }
}

impl Cell {
    fn new(now: Instant) -> Self {
        Self {
            grants: VecDeque::new(),
            next_grant: 0,
            is_closed: false,
            in_flight: 0,
            asked: None,
            used: now,
            passed: [0; SLOTS as usize],
            slot: 0,
            begun: now,
        }
    }

    fn available(&mut self, now: Instant) -> i64 {
        self.grants
            .retain(|grant| grant.expires > now && grant.amount > 0);
        self.grants.iter().map(|grant| grant.amount).sum()
    }

    /// What is worth asking for now, and the grant of it that may be used at once.
    fn wanted(&mut self, amount: i64, now: Instant) -> Option<(i64, Option<u64>)> {
        if self.is_closed {
            let waits = self
                .asked
                .is_some_and(|asked| now.saturating_duration_since(asked) < CLOSE_WAIT);
            if waits || self.in_flight > 0 {
                return None;
            }
        }
        let available = self.available(now);
        let desired = self.passed_lately(now).max(MIN_PREFETCH);
        let is_low = available < desired / 2 && self.in_flight == 0;
        if !is_low && available >= amount || self.in_flight >= MAX_IN_FLIGHT {
            return None;
        }
        self.in_flight += 1;
        self.asked = Some(now);
        let asked = desired.max(amount);
        let has_credit = available == 0 && !self.is_closed;
        Some((
            asked,
            has_credit.then(|| self.add(asked, now + MAX_GRANT_LIFE)),
        ))
    }

    fn add(&mut self, amount: i64, expires: Instant) -> u64 {
        self.next_grant += 1;
        self.grants.push_back(Grant {
            id: self.next_grant,
            amount,
            expires,
        });
        self.next_grant
    }

    fn take(&mut self, amount: i64, now: Instant) -> bool {
        self.used = now;
        self.passed_lately(now);
        let slot = usize::try_from(self.slot % SLOTS).unwrap_or(0);
        self.passed[slot] = self.passed[slot].saturating_add(amount);
        if self.available(now) < amount {
            return false;
        }
        self.subtract(amount);
        true
    }

    /// Takes from the oldest grants, as far as they go.
    fn subtract(&mut self, amount: i64) {
        let mut left = amount;
        for grant in &mut self.grants {
            let taken = grant.amount.min(left);
            grant.amount -= taken;
            left -= taken;
        }
    }

    /// What was asked for in the window that ends now.
    fn passed_lately(&mut self, now: Instant) -> i64 {
        let slot_length = WINDOW / 20;
        let since = now.saturating_duration_since(self.begun);
        let current =
            u64::try_from(since.as_millis() / slot_length.as_millis()).unwrap_or(u64::MAX);
        let steps = current.saturating_sub(self.slot).min(SLOTS);
        for step in 0..steps {
            let gone = usize::try_from((current - step) % SLOTS).unwrap_or(0);
            self.passed[gone] = 0;
        }
        self.slot = self.slot.max(current);
        self.passed.iter().sum()
    }

    fn answered(&mut self, prefetch: &Prefetch, granted: Option<Granted>, now: Instant) {
        self.in_flight = self.in_flight.saturating_sub(1);
        // Mixer's absence must not stop traffic.
        let granted = granted.unwrap_or(Granted {
            amount: prefetch.amount,
            valid: WINDOW,
        });
        let missing = prefetch.amount.saturating_sub(granted.amount).max(0);
        self.is_closed = missing > 0;
        let expires = now + granted.valid.min(MAX_GRANT_LIFE);
        let Some(credit) = prefetch.credit else {
            if granted.amount > 0 {
                self.add(granted.amount, expires);
            }
            return;
        };
        let mut own = self.grants.iter_mut();
        let mut left = missing;
        if let Some(own) = own.find(|grant| grant.id == credit) {
            let taken = own.amount.min(missing);
            own.amount -= taken;
            left -= taken;
            own.expires = expires;
        }
        // What has been used of it already is taken from what other answers have granted.
        self.available(now);
        self.subtract(left);
    }
}

#[cfg(test)]
mod tests {
    use proto_mesh::attribute::Attributes;
    use proto_mesh::attribute::record::Base;

    use std::rc::Rc;

    use super::*;

    fn one() -> Requirement {
        Requirement {
            name: "rps".into(),
            amount: 1,
        }
    }

    /// Charges `count` requests; how many passed, and what was asked for.
    fn charge(cache: &mut QuotaCache, count: usize, now: Instant) -> (i64, Vec<Prefetch>) {
        let record = Record::new(Base::new(&Attributes::new(), &Rc::default()));
        let (mut passed, mut asked) = (0, Vec::new());
        for _ in 0..count {
            let decision = cache.charge(&one(), &record, now);
            passed += i64::from(decision.is_granted);
            asked.extend(decision.prefetch);
        }
        (passed, asked)
    }

    fn answer(cache: &mut QuotaCache, prefetch: &Prefetch, amount: i64, now: Instant) {
        let granted = Granted {
            amount,
            valid: Duration::from_secs(10),
        };
        let referenced = ReferencedAttributes::default();
        let record = Record::new(Base::new(&Attributes::new(), &Rc::default()));
        cache.answered(prefetch, Some(granted), Some(&referenced), &record, now);
    }

    #[test]
    fn what_passes_before_the_answer_is_charged_to_it() {
        let mut cache = QuotaCache::default();
        let now = Instant::now();
        let (passed, asked) = charge(&mut cache, 4, now);
        assert_eq!((passed, asked.len(), asked[0].amount), (4, 1, 10));
        answer(&mut cache, &asked[0], 6, now);
        let (passed, asked) = charge(&mut cache, 10, now);
        assert_eq!((passed, asked.len()), (2, 0), "four of the six were used");
    }

    #[test]
    fn a_burst_passes_on_credit_and_a_refusal_ends_it() {
        let mut cache = QuotaCache::default();
        let now = Instant::now();
        let (passed, asked) = charge(&mut cache, 100, now);
        assert_eq!(passed, 100);
        let granted: i64 = asked.iter().map(|prefetch| prefetch.amount).sum();
        assert!(granted >= 100 && asked.len() <= 10, "{asked:?}");
        // Mixer has a third of it; no more than what was on credit is too much.
        let mut left = granted / 3;
        for prefetch in &asked {
            let amount = prefetch.amount.min(left);
            left -= amount;
            answer(&mut cache, prefetch, amount, now);
        }
        let (passed, asked) = charge(&mut cache, 50, now);
        assert_eq!((passed, asked.len()), (0, 0));
        // Half a second later it is asked for again, and nothing passes before the answer.
        let later = now + CLOSE_WAIT;
        let (passed, asked) = charge(&mut cache, 5, later);
        assert_eq!((passed, asked.len()), (0, 1));
        assert!(asked[0].credit.is_none());
        answer(&mut cache, &asked[0], asked[0].amount, later);
        assert_eq!(charge(&mut cache, 5, later).0, 5);
    }

    #[test]
    fn a_bounded_number_of_questions_is_on_its_way() {
        let mut cache = QuotaCache::default();
        let (passed, asked) = charge(&mut cache, 100_000, Instant::now());
        let granted: i64 = asked.iter().map(|prefetch| prefetch.amount).sum();
        assert_eq!(asked.len(), 10);
        assert_eq!(passed, granted);
    }
}
