//! What an answer depended on: attributes, and keys of string maps, that were read or missed. A request that agrees in all of
//! them gets the same answer; its values in them are the answer's key.

use proto::istio::mixer::v1::ReferencedAttributes;
use proto::istio::mixer::v1::referenced_attributes::Condition;
use proto_mesh::attribute::codec::Words;
use proto_mesh::attribute::{Attributes, MapRef, Value, ValueRef};

/// The shape of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Referenced {
    absent: Vec<Name>,
    exact: Vec<Name>,
}

/// An attribute, or a key of one that is a string map.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Name {
    attribute: String,
    key: Option<String>,
}

/// A request's values in a shape. The values themselves, not a hash of them: part of them comes from whoever sends requests.
pub(super) type Signature = Box<[u8]>;

impl Referenced {
    /// The shape that the server tells, read against the request it was told for; `None` when it cannot be used again.
    pub(super) fn decode(message: &ReferencedAttributes, attributes: &Attributes) -> Option<Self> {
        let words = Words::new(&message.words);
        let mut referenced = Self::default();
        for found in &message.attribute_matches {
            let attribute = words.get(found.name)?.to_owned();
            // QUIRK: key 0 means none, and a key counts only for an attribute that is a map here.
            let is_map = matches!(attributes.get(&attribute), Some(Value::StringMap(_)));
            let key = if is_map && found.map_key != 0 {
                Some(words.get(found.map_key)?.to_owned())
            } else {
                None
            };
            let name = Name { attribute, key };
            if found.condition == i32::from(Condition::Absence) {
                referenced.absent.push(name);
            } else if found.condition == i32::from(Condition::Exact) {
                referenced.exact.push(name);
            } else {
                return None;
            }
        }
        for names in [&mut referenced.absent, &mut referenced.exact] {
            names.sort();
            names.dedup();
        }
        Some(referenced)
    }

    /// The request's key in this shape; `None` when it is of another shape.
    pub(super) fn signature(&self, attributes: &Attributes, extra: &str) -> Option<Signature> {
        if self
            .absent
            .iter()
            .any(|name| name.find(attributes).is_some())
        {
            return None;
        }
        let mut signature = Vec::with_capacity(256);
        for name in &self.exact {
            let value = name.find(attributes)?;
            push(&mut signature, name.attribute.as_bytes());
            if let Some(key) = &name.key {
                push(&mut signature, key.as_bytes());
            }
            push_value(&mut signature, value);
        }
        push(&mut signature, extra.as_bytes());
        Some(signature.into())
    }
}

impl Name {
    fn find<'a>(&self, attributes: &'a Attributes) -> Option<ValueRef<'a>> {
        let value = attributes.get(&self.attribute)?.as_ref();
        match (&self.key, value) {
            (None, value) => Some(value),
            (Some(key), ValueRef::StringMap(map)) => map.get(key).map(ValueRef::String),
            (Some(_), _) => None,
        }
    }
}

/// Length first, so that no two lists of parts look alike.
fn push(signature: &mut Vec<u8>, part: &[u8]) {
    signature.extend_from_slice(&(part.len() as u64).to_le_bytes());
    signature.extend_from_slice(part);
}

fn push_value(signature: &mut Vec<u8>, value: ValueRef<'_>) {
    match value {
        ValueRef::String(text) => push(signature, text.as_bytes()),
        ValueRef::Int64(number) => push(signature, &number.to_le_bytes()),
        ValueRef::Double(number) => push(signature, &number.to_bits().to_le_bytes()),
        ValueRef::Bool(flag) => push(signature, &[u8::from(flag)]),
        ValueRef::Bytes(bytes) => push(signature, bytes),
        ValueRef::Timestamp(time) => {
            push(signature, &time.seconds.to_le_bytes());
            push(signature, &time.nanos.to_le_bytes());
        }
        ValueRef::Duration(duration) => {
            push(signature, &duration.seconds.to_le_bytes());
            push(signature, &duration.nanos.to_le_bytes());
        }
        ValueRef::StringMap(map) => push_map(signature, map),
    }
}

fn push_map(signature: &mut Vec<u8>, map: MapRef<'_>) {
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_unstable();
    push(signature, &(entries.len() as u64).to_le_bytes());
    for (key, value) in entries {
        push(signature, key.as_bytes());
        push(signature, value.as_bytes());
    }
}
