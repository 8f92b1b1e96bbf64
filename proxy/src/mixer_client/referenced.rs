//! What an answer depended on: attributes, and keys of string maps, that were read or missed. A request that agrees in all of
//! them gets the same answer; its values in them are the answer's key.

use proto::istio::mixer::v1::ReferencedAttributes;
use proto::istio::mixer::v1::referenced_attributes::Condition;
use proto_mesh::attribute::codec::Words;
use proto_mesh::attribute::record::{Record, RecordRef};
use proto_mesh::attribute::{Name, TextMap as _, ValueRef};

/// The shape of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Referenced {
    absent: Vec<Place>,
    exact: Vec<Place>,
}

/// An attribute, or a key of one that is a string map.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Place {
    attribute: Name,
    key: Option<Box<str>>,
}

/// A request's values in a shape. The values themselves, not a hash of them: part of them comes from whoever sends requests.
pub(super) type Signature = Box<[u8]>;

impl Referenced {
    /// The shape that the server tells, read against the request it was told for; `None` when it cannot be used again.
    pub(super) fn decode(message: &ReferencedAttributes, record: &Record) -> Option<Self> {
        let words = Words::new(&message.words);
        let mut referenced = Self::default();
        for found in &message.attribute_matches {
            let attribute = Name::new(words.get(found.name)?);
            // QUIRK: key 0 means none, and a key counts only for an attribute that is a map here.
            let is_map = matches!(record.get(&attribute), Some(ValueRef::StringMap(_)));
            let key = if is_map && found.map_key != 0 {
                Some(words.get(found.map_key)?.into())
            } else {
                None
            };
            let place = Place { attribute, key };
            if found.condition == i32::from(Condition::Absence) {
                referenced.absent.push(place);
            } else if found.condition == i32::from(Condition::Exact) {
                referenced.exact.push(place);
            } else {
                return None;
            }
        }
        for places in [&mut referenced.absent, &mut referenced.exact] {
            places.sort();
            places.dedup();
        }
        Some(referenced)
    }

    /// Writes the request's key in this shape, which is the one at `position`; false when it is of another shape.
    pub(super) fn sign(&self, position: usize, record: &Record, signature: &mut Vec<u8>) -> bool {
        signature.clear();
        signature.extend_from_slice(&position.to_le_bytes());
        for place in &self.exact {
            let Some(value) = place.find(record) else {
                return false;
            };
            push_value(signature, value);
        }
        self.absent.iter().all(|place| place.find(record).is_none())
    }

    /// The same key, to be kept.
    pub(super) fn signature(&self, position: usize, record: &Record) -> Option<Signature> {
        let mut signature = Vec::new();
        self.sign(position, record, &mut signature)
            .then(|| signature.into())
    }
}

impl Place {
    fn find<'a>(&self, record: &'a Record) -> Option<RecordRef<'a>> {
        let value = record.get(&self.attribute)?;
        match (&self.key, value) {
            (None, value) => Some(value),
            (Some(key), ValueRef::StringMap(map)) => map.get(key).map(ValueRef::String),
            (Some(_), _) => None,
        }
    }
}

/// Length and type first, so that no two lists of parts look alike: an attribute may have another type in another request.
fn push(signature: &mut Vec<u8>, rank: u8, part: &[u8]) {
    let head = (part.len() as u64) << 8 | u64::from(rank);
    signature.extend_from_slice(&head.to_le_bytes());
    signature.extend_from_slice(part);
}

fn push_value(signature: &mut Vec<u8>, value: RecordRef<'_>) {
    let rank = value.rank();
    let mut push = |part: &[u8]| push(signature, rank, part);
    match value {
        ValueRef::String(text) => push(text.as_bytes()),
        ValueRef::Int64(number) => push(&number.to_le_bytes()),
        ValueRef::Double(number) => push(&number.to_bits().to_le_bytes()),
        ValueRef::Bool(flag) => push(&[u8::from(flag)]),
        ValueRef::Bytes(bytes) => push(bytes),
        ValueRef::Timestamp(time) => {
            push(&time.seconds.to_le_bytes());
            push(&time.nanos.to_le_bytes());
        }
        ValueRef::Duration(duration) => {
            push(&duration.seconds.to_le_bytes());
            push(&duration.nanos.to_le_bytes());
        }
        ValueRef::StringMap(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_unstable();
            push(&(entries.len() as u64).to_le_bytes());
            for (key, value) in entries {
                push(key.as_bytes());
                push(value.as_bytes());
            }
        }
    }
}
