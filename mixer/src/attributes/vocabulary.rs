//! The union of all manifests. Every attribute gets a slot: expressions read slots, a request's values are put into them once.

use std::collections::{BTreeMap, HashMap};

use proto_mesh::attribute::{ValueType, dictionary};

/// The place of an attribute in every [`super::Bag`] of this vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Slot(pub(super) u16);

impl Slot {
    /// A slot that every vocabulary has.
    pub(crate) const FIRST: Slot = Slot(0);
}

/// A declared attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attribute {
    pub(crate) slot: Slot,
    pub(crate) value_type: ValueType,
}

/// Every declared attribute.
#[derive(Clone, Debug)]
pub(crate) struct Vocabulary {
    by_name: HashMap<Box<str>, Attribute, foldhash::quality::RandomState>,
    names: Vec<Box<str>>,
    /// By slot: the position in the global list.
    global_words: Vec<Option<usize>>,
    /// Slot of every word of the global list that is an attribute.
    by_global_word: Vec<Option<Slot>>,
}

impl Vocabulary {
    /// What a request's namespace is told from; always there, even if no manifest declares it.
    const IDENTITY: [&'static str; 3] = [
        "context.reporter.kind",
        "destination.namespace",
        "source.namespace",
    ];

    /// Slots for `declared`, in the order of their names. Attributes beyond 65,535 are left out.
    pub(crate) fn new(declared: &BTreeMap<String, ValueType>) -> Self {
        let mut vocabulary = Self {
            by_name: HashMap::default(),
            names: Vec::new(),
            global_words: Vec::new(),
            by_global_word: vec![None; dictionary::WORDS.len()],
        };
        for (name, value_type) in declared {
            vocabulary.add(name, *value_type);
        }
        for name in Self::IDENTITY {
            if !declared.contains_key(name) {
                vocabulary.add(name, ValueType::String);
            }
        }
        vocabulary
    }

    /// The same and more: what is here keeps its slot.
    pub(crate) fn extended(&self, more: &BTreeMap<String, ValueType>) -> Self {
        let mut extended = self.clone();
        for (name, value_type) in more {
            extended.add(name, *value_type);
        }
        extended
    }

    /// The slots from that of another vocabulary's end on.
    pub(crate) fn slots_beyond(&self, other: &Vocabulary) -> impl Iterator<Item = Slot> + use<> {
        let numbers = other.len()..self.len();
        numbers.filter_map(|number| u16::try_from(number).ok().map(Slot))
    }

    fn add(&mut self, name: &str, value_type: ValueType) {
        // One less than there are numbers: a bag counts its places from 1.
        let position = u16::try_from(self.names.len());
        let Some(position) = position.ok().filter(|position| *position < u16::MAX) else {
            return;
        };
        let slot = Slot(position);
        self.names.push(name.into());
        self.by_name
            .insert(name.into(), Attribute { slot, value_type });
        let global_word = dictionary::index_of(name);
        self.global_words.push(global_word);
        if let Some(position) = global_word {
            self.by_global_word[position] = Some(slot);
        }
    }

    /// The attribute called `name`.
    pub(crate) fn find(&self, name: &str) -> Option<Attribute> {
        self.by_name.get(name).copied()
    }

    /// The name of a slot.
    pub(crate) fn name(&self, slot: Slot) -> &str {
        &self.names[usize::from(slot.0)]
    }

    /// The position of a slot's name in the global list.
    pub(super) fn global_word(&self, slot: Slot) -> Option<usize> {
        self.global_words[usize::from(slot.0)]
    }

    /// How many slots there are.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// The slot of a word of the global list.
    pub(super) fn of_global_word(&self, position: usize) -> Option<Slot> {
        self.by_global_word.get(position).copied().flatten()
    }
}
