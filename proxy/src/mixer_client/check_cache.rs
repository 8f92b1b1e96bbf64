//! Answers that may be used again. A lookup tries every shape of key that answers so far had; those that were not used for
//! longest make room.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use proto::istio::mixer::v1::check_response::PreconditionResult;
use proto_mesh::attribute::record::Record;
use tokio::time::Instant;

use super::referenced::{Referenced, Signature};

const CAPACITY: usize = 10_000;
/// How many answers go at a time.
const ROOM: usize = CAPACITY / 8;
/// Shapes come from rules, so there are few; more would make every lookup slow.
const MAX_SHAPES: usize = 64;

/// The cache.
#[derive(Debug)]
pub(super) struct CheckCache {
    is_enabled: bool,
    shapes: Vec<Referenced>,
    /// Seeded anew in every process: part of the keys comes from whoever sends requests.
    entries: HashMap<Signature, Entry, foldhash::quality::RandomState>,
    next_use: u64,
    /// The key that is looked for.
    signature: Vec<u8>,
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
            entries: HashMap::default(),
            next_use: 0,
            signature: Vec::new(),
        }
    }

    /// The answer for a request like this one.
    pub(super) fn get(&mut self, record: &Record, now: Instant) -> Option<Rc<PreconditionResult>> {
        for (position, shape) in self.shapes.iter().enumerate() {
            if !shape.sign(position, record, &mut self.signature) {
                continue;
            }
            let Some(entry) = self.entries.get_mut(self.signature.as_slice()) else {
                continue;
            };
            if entry.left == 0 || entry.expires.is_some_and(|expires| expires <= now) {
                self.entries.remove(self.signature.as_slice());
                continue;
            }
            if entry.left > 0 {
                entry.left -= 1;
            }
            entry.used = self.next_use;
            self.next_use += 1;
            return Some(entry.answer.clone());
        }
        None
    }

    /// Keeps an answer, if it may be used again.
    pub(super) fn put(&mut self, record: &Record, answer: &Rc<PreconditionResult>, now: Instant) {
        if !self.is_enabled {
            return;
        }
        let Some(referenced) = answer.referenced_attributes.as_ref() else {
            return;
        };
        let Some(shape) = Referenced::decode(referenced, record) else {
            return;
        };
        let known = self.shapes.iter().position(|known| *known == shape);
        if known.is_none() && self.shapes.len() >= MAX_SHAPES {
            // New rules have new shapes: what the old ones remember goes with them.
            *self = Self::new(true);
        }
        let position = known.unwrap_or(self.shapes.len());
        // An answer that does not fit its own request is of no use.
        let Some(signature) = shape.signature(position, record) else {
            return;
        };
        if known.is_none() {
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
        self.entries.insert(signature, entry);
        if self.entries.len() > CAPACITY {
            self.make_room();
        }
    }

    fn make_room(&mut self) {
        let mut used: Vec<u64> = self.entries.values().map(|entry| entry.used).collect();
        let (_, limit, _) = used.select_nth_unstable(ROOM);
        let limit = *limit;
        self.entries.retain(|_, entry| entry.used >= limit);
    }
}
