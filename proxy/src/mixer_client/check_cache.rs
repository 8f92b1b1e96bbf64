//! Answers that may be used again. A lookup tries every shape of key that answers so far had; the oldest answer makes room.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::Duration;

use proto::istio::mixer::v1::check_response::PreconditionResult;
use proto_mesh::attribute::Attributes;
use tokio::time::Instant;

use super::referenced::{Referenced, Signature};

const CAPACITY: usize = 10_000;
/// Shapes come from rules, so there are few; more would make every lookup slow.
const MAX_SHAPES: usize = 64;

/// The cache.
#[derive(Debug)]
pub(super) struct CheckCache {
    is_enabled: bool,
    shapes: Vec<Referenced>,
    entries: HashMap<Signature, Entry>,
    /// Last use → entry.
    uses: BTreeMap<u64, Signature>,
    next_use: u64,
}

#[derive(Debug)]
struct Entry {
    answer: Rc<PreconditionResult>,
    /// None: for ever.
    expires: Option<Instant>,
    /// Uses left; negative: any number.
    left: i32,
    used: u64,
}

impl CheckCache {
    pub(super) fn new(is_enabled: bool) -> Self {
        Self {
            is_enabled,
            shapes: Vec::new(),
            entries: HashMap::new(),
            uses: BTreeMap::new(),
            next_use: 0,
        }
    }

    /// The answer for a request like this one.
    pub(super) fn get(
        &mut self,
        attributes: &Attributes,
        now: Instant,
    ) -> Option<Rc<PreconditionResult>> {
        for position in 0..self.shapes.len() {
            let Some(signature) = self.shapes[position].signature(attributes, "") else {
                continue;
            };
            let Some(entry) = self.entries.get_mut(&signature) else {
                continue;
            };
            if entry.left == 0 || entry.expires.is_some_and(|expires| expires <= now) {
                let used = entry.used;
                self.uses.remove(&used);
                self.entries.remove(&signature);
                continue;
            }
            if entry.left > 0 {
                entry.left -= 1;
            }
            self.uses.remove(&entry.used);
            entry.used = self.next_use;
            self.next_use += 1;
            let answer = entry.answer.clone();
            self.uses.insert(entry.used, signature);
            return Some(answer);
        }
        None
    }

    /// Keeps an answer, if it may be used again.
    pub(super) fn put(
        &mut self,
        attributes: &Attributes,
        answer: &Rc<PreconditionResult>,
        now: Instant,
    ) {
        if !self.is_enabled {
            return;
        }
        let Some(referenced) = answer.referenced_attributes.as_ref() else {
            return;
        };
        let Some(shape) = Referenced::decode(referenced, attributes) else {
            return;
        };
        // An answer that does not fit its own request is of no use.
        let Some(signature) = shape.signature(attributes, "") else {
            return;
        };
        if !self.shapes.contains(&shape) {
            if self.shapes.len() >= MAX_SHAPES {
                // New rules have new shapes: what the old ones remember goes with them.
                *self = Self::new(true);
            }
            self.shapes.push(shape);
        }
        let valid = answer
            .valid_duration
            .map(|duration| Duration::try_from(duration).unwrap_or_default());
        let entry = Entry {
            answer: answer.clone(),
            expires: valid.and_then(|valid| now.checked_add(valid)),
            left: answer.valid_use_count,
            used: self.next_use,
        };
        self.next_use += 1;
        self.uses.insert(entry.used, signature.clone());
        if let Some(old) = self.entries.insert(signature, entry) {
            self.uses.remove(&old.used);
        }
        while self.entries.len() > CAPACITY {
            let Some((_, oldest)) = self.uses.pop_first() else {
                return;
            };
            self.entries.remove(&oldest);
        }
    }
}
