//! Names of attributes: those of the global list are known by their position, which is quicker to compare than text.

use super::dictionary::{self, WORDS};

/// A name of the global list, by its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Known(u8);

/// The name of an attribute.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Name {
    /// Of the global list.
    Known(Known),
    /// Any other.
    Own(Box<str>),
}

impl Known {
    /// The name `word`, which must be in the list: for constants.
    ///
    /// # Panics
    /// When it is not.
    #[must_use]
    pub const fn new(word: &str) -> Self {
        let mut position = 0;
        while position < WORDS.len() {
            if is_same(WORDS[position].as_bytes(), word.as_bytes()) {
                #[allow(clippy::cast_possible_truncation, reason = "the list is shorter")]
                return Known(position as u8);
            }
            position += 1;
        }
        panic!("the global list has no such name")
    }

    /// The name `word`, if the list has it.
    #[must_use]
    pub fn find(word: &str) -> Option<Self> {
        let position = u8::try_from(dictionary::index_of(word)?).ok()?;
        Some(Known(position))
    }

    /// Its position.
    #[must_use]
    pub fn position(self) -> usize {
        usize::from(self.0)
    }

    /// As text.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        WORDS[self.position()]
    }
}

const fn is_same(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    let mut position = 0;
    while position < one.len() {
        if one[position] != other[position] {
            return false;
        }
        position += 1;
    }
    true
}

impl Name {
    /// The name `word`.
    #[must_use]
    pub fn new(word: &str) -> Self {
        match Known::find(word) {
            Some(known) => Name::Known(known),
            None => Name::Own(word.into()),
        }
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Name::Known(known) => known.as_str(),
            Name::Own(word) => word,
        }
    }
}
