//! Words as records hold them, shared by all records that have them. A word is looked for once, when it is collected; a message
//! that is written asks the word itself for its place.

use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher as _, Hasher as _};
use std::rc::Rc;

use super::name::Known;

/// A word of a record.
#[derive(Clone, Debug)]
pub struct Word(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    text: Box<str>,
    /// The same, if it is of the global list.
    known: Option<Known>,
    /// Where the message that had it last has it: a hint, for the message to look at first.
    place: Cell<usize>,
}

/// The words that came last, for those that come again. As words come from requests, it is bounded, and its seed is new in every
/// process.
#[derive(Debug)]
pub struct Vocabulary {
    seed: foldhash::fast::RandomState,
    /// Each set keeps the last words that belong into it, newest first.
    sets: RefCell<Box<[Set]>>,
}

type Set = [Option<Word>; WAYS];

/// Hundreds of words are in use at a time: the names of headers, and the values that most requests share.
const SETS: usize = 128;
/// With several, neither two common words of one set nor the words of single requests drive a common word out.
const WAYS: usize = 4;
/// What is longer is not kept: the whole of it takes 1 MiB at the most.
const MAX_LENGTH: usize = 2 << 10;

impl Word {
    /// A word that is no other's.
    pub(super) fn new(text: &str) -> Self {
        Self(Rc::new(Inner {
            text: text.into(),
            known: Known::find(text),
            place: Cell::new(0),
        }))
    }

    /// As text.
    #[must_use]
    #[inline]
    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    /// The same, if it is of the global list.
    #[inline]
    pub(super) fn known(&self) -> Option<Known> {
        self.0.known
    }

    /// Whether they are one, not only of one text.
    #[inline]
    pub(super) fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// Where a message might have it.
    #[inline]
    pub(super) fn place(&self) -> usize {
        self.0.place.get()
    }

    /// Remembers where a message has it.
    pub(super) fn set_place(&self, place: usize) {
        self.0.place.set(place);
    }
}

impl Default for Vocabulary {
    fn default() -> Self {
        Self {
            seed: foldhash::fast::RandomState::default(),
            sets: RefCell::new(vec![const { [const { None }; WAYS] }; SETS].into()),
        }
    }
}

impl Vocabulary {
    /// The word for a text. Bytes that are none are replaced.
    #[must_use]
    pub fn word(&self, text: &[u8]) -> Word {
        let set = &mut self.sets.borrow_mut()[self.set(text)];
        let mut known = set.iter().flatten();
        if let Some(word) = known.find(|word| word.as_str().as_bytes() == text) {
            return word.clone();
        }
        let word = match std::str::from_utf8(text) {
            Ok(text) => Word::new(text),
            Err(_) => Word::new(&String::from_utf8_lossy(text)),
        };
        if text.len() <= MAX_LENGTH {
            set.rotate_right(1);
            set[0] = Some(word.clone());
        }
        word
    }

    #[allow(clippy::cast_possible_truncation, reason = "any bits will do")]
    #[inline]
    fn set(&self, text: &[u8]) -> usize {
        let mut hasher = self.seed.build_hasher();
        hasher.write(text);
        hasher.finish() as usize % SETS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_comes_again_is_the_same() {
        let vocabulary = Vocabulary::default();
        for text in ["", "GET", "/a", "é", "no such word"] {
            let word = vocabulary.word(text.as_bytes());
            assert_eq!(word.as_str(), text);
            assert!(word.is(&vocabulary.word(text.as_bytes())), "{text}");
            assert_eq!(word.known(), Known::find(text));
        }
        assert_eq!(vocabulary.word(b"a\xff").as_str(), "a\u{fffd}");
    }

    #[test]
    fn words_of_single_requests_leave_room_for_others() {
        let vocabulary = Vocabulary::default();
        let mut common = vocabulary.word(b"common");
        let mut lost = 0;
        for number in 0..100 * SETS * WAYS {
            let single = vocabulary.word(number.to_string().as_bytes());
            assert_eq!(single.as_str(), number.to_string());
            let again = vocabulary.word(b"common");
            lost += usize::from(!common.is(&again));
            common = again;
        }
        assert!(lost < 200, "{lost}");
        let long = "x".repeat(MAX_LENGTH + 1);
        let words = [(); 2].map(|()| vocabulary.word(long.as_bytes()));
        assert_eq!(words[0].as_str(), long);
        assert!(!words[0].is(&words[1]));
    }
}
