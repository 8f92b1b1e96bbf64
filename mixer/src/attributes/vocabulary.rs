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
#[derive(Debug)]
pub(crate) struct Vocabulary {
    by_name: HashMap<Box<str>, Attribute>,
    names: Vec<Box<str>>,
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
            by_name: HashMap::new(),
            names: Vec::new(),
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

    fn add(&mut self, name: &str, value_type: ValueType) {
        let Ok(position) = u16::try_from(self.names.len()) else {
            return;
        };
        let slot = Slot(position);
        self.names.push(name.into());
        self.by_name
            .insert(name.into(), Attribute { slot, value_type });
        if let Some(position) = dictionary::index_of(name) {
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

    /// How many slots there are.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// The slot of a word of the global list.
    pub(super) fn of_global_word(&self, position: usize) -> Option<Slot> {
        self.by_global_word.get(position).copied().flatten()
    }
}
