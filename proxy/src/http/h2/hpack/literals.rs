//! Literals that come again. Some senders keep no table and others keep only some fields in theirs, but say the same in head after
//! head: what such a literal stands for is kept by its bytes, so that it need not be read, checked and given memory each time.

use super::field::Field;
use foldhash::fast::FixedState;
use std::{cell::RefCell, hash::BuildHasher as _};

/// Places of a thread, which all its connections share; a literal that was read later takes the place of an earlier one.
const PLACES: usize = 64;
/// Longer ones are not kept.
const LONGEST: usize = 62;

#[derive(Clone)]
struct Place {
    /// Of the literal that was read last.
    hash: u64,
    /// The literal that is kept, and what it stands for.
    bytes: [u8; LONGEST],
    field: Option<Field>,
}

thread_local! {
    static KEPT: RefCell<Vec<Place>> = const { RefCell::new(Vec::new()) };
}

/// What is known of a literal.
pub(super) enum Known {
    /// What it stands for.
    Field(Field),
    /// It was read before, and should be kept at this place.
    Again(usize),
    /// Nothing.
    No,
}

/// Looks a literal up, which is noted: one that comes a second time is worth its place.
pub(super) fn find(literal: &[u8]) -> Known {
    if literal.len() > LONGEST {
        return Known::No;
    }
    let hash = FixedState::with_seed(0).hash_one(literal);
    #[allow(clippy::cast_possible_truncation, reason = "any bits of it will do")]
    let number = (hash >> 20) as usize % PLACES;
    KEPT.with_borrow_mut(|kept| {
        if kept.is_empty() {
            let empty = Place {
                hash: 0,
                bytes: [0; LONGEST],
                field: None,
            };
            kept.resize(PLACES, empty);
        }
        let place = &mut kept[number];
        if place.hash != hash {
            place.hash = hash;
            return Known::No;
        }
        match &place.field {
            // A literal says itself how long it is: what comes behind it there does not matter.
            Some(field) if place.bytes[..literal.len()] == *literal => Known::Field(field.clone()),
            _ => Known::Again(number),
        }
    })
}

/// Keeps what a literal stands for at the place that [`find`] has told.
pub(super) fn keep(place: usize, literal: &[u8], field: &Field) {
    KEPT.with_borrow_mut(|kept| {
        if let Some(place) = kept.get_mut(place) {
            place.bytes[..literal.len()].copy_from_slice(literal);
            place.field = Some(field.clone());
        }
    });
}
