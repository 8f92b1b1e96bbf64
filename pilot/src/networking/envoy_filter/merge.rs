//! Merging as patches want it: what is set replaces what was there; messages are merged field by field, lists appended (or
//! replaced), and what is packed into an `Any` is merged inside of it.

use prost::{Message, Name};
use prost_reflect::{DynamicMessage, FieldDescriptor, MapKey, ReflectMessage as _, Value};

const ANY: &str = "google.protobuf.Any";
/// Messages that are one value: `false` in a wrapper is a value too.
const SCALARS: &[&str] = &[
    "google.protobuf.Duration",
    "google.protobuf.Timestamp",
    "google.protobuf.BoolValue",
    "google.protobuf.UInt32Value",
    "google.protobuf.UInt64Value",
    "google.protobuf.Int32Value",
    "google.protobuf.Int64Value",
    "google.protobuf.DoubleValue",
    "google.protobuf.FloatValue",
    "google.protobuf.StringValue",
    "google.protobuf.BytesValue",
];
/// How deep messages may lie in each other.
const DEPTH: usize = 64;

/// Merges `patch` into `message`; false when the result is no such message any more, and nothing was changed.
pub(super) fn merge<T: Message + Name + Default>(
    message: &mut T,
    patch: &DynamicMessage,
    replaces_lists: bool,
) -> bool {
    let bytes = message.encode_to_vec();
    let Ok(mut dynamic) = DynamicMessage::decode(patch.descriptor(), bytes.as_slice()) else {
        return false;
    };
    merge_message(&mut dynamic, patch, replaces_lists, DEPTH);
    match T::decode(dynamic.encode_to_vec().as_slice()) {
        Ok(merged) => {
            *message = merged;
            true
        }
        Err(_) => false,
    }
}

fn merge_message(
    into: &mut DynamicMessage,
    patch: &DynamicMessage,
    replaces_lists: bool,
    depth: usize,
) {
    if depth == 0 {
        return;
    }
    for (field, value) in patch.fields() {
        if field.is_list() {
            merge_list(into, &field, value, replaces_lists);
        } else if field.is_map() {
            merge_map(into, &field, value);
        } else if let Value::Message(inner) = value {
            merge_inner(into, &field, inner, replaces_lists, depth);
        } else {
            into.set_field(&field, value.clone());
        }
    }
}

fn merge_list(
    into: &mut DynamicMessage,
    field: &FieldDescriptor,
    value: &Value,
    replaces_lists: bool,
) {
    match (into.get_field_mut(field), value) {
        (Value::List(old), Value::List(new)) if !replaces_lists => old.extend(new.iter().cloned()),
        (old, new) => *old = new.clone(),
    }
}

fn merge_map(into: &mut DynamicMessage, field: &FieldDescriptor, value: &Value) {
    match (into.get_field_mut(field), value) {
        (Value::Map(old), Value::Map(new)) => {
            let entries = new.iter();
            old.extend(entries.map(|(key, value): (&MapKey, &Value)| (key.clone(), value.clone())));
        }
        (old, new) => *old = new.clone(),
    }
}

fn merge_inner(
    into: &mut DynamicMessage,
    field: &FieldDescriptor,
    patch: &DynamicMessage,
    replaces_lists: bool,
    depth: usize,
) {
    let name = patch.descriptor().full_name().to_owned();
    if !into.has_field(field) || SCALARS.contains(&name.as_str()) {
        into.set_field(field, Value::Message(patch.clone()));
        return;
    }
    let Value::Message(old) = into.get_field_mut(field) else {
        return;
    };
    if name != ANY {
        merge_message(old, patch, replaces_lists, depth - 1);
        return;
    }
    // Of another type or of one that nobody knows: the patch's takes its place.
    *old = merge_any(old, patch, replaces_lists, depth).unwrap_or_else(|| patch.clone());
}

fn merge_any(
    old: &DynamicMessage,
    patch: &DynamicMessage,
    replaces_lists: bool,
    depth: usize,
) -> Option<DynamicMessage> {
    let (old_type, old_bytes) = parts(old)?;
    let (new_type, new_bytes) = parts(patch)?;
    if old_type != new_type {
        return None;
    }
    let descriptor = proto::descriptor::extension(proto::type_url::message_name(&old_type))?;
    let mut message = DynamicMessage::decode(descriptor.clone(), old_bytes.as_slice()).ok()?;
    let inner = DynamicMessage::decode(descriptor, new_bytes.as_slice()).ok()?;
    merge_message(&mut message, &inner, replaces_lists, depth - 1);
    let mut merged = old.clone();
    merged.set_field_by_name("value", Value::Bytes(message.encode_to_vec().into()));
    Some(merged)
}

/// Type URL and bytes of an `Any`.
fn parts(any: &DynamicMessage) -> Option<(String, Vec<u8>)> {
    let type_url = any.get_field_by_name("type_url")?.as_str()?.to_owned();
    let value = any.get_field_by_name("value")?.as_bytes()?.to_vec();
    Some((type_url, value))
}
