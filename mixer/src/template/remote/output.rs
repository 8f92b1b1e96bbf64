//! Outputs out of process: the fields of the template's `OutputMsg`, which header operations of the rule may use where it is
//! a check's, and bindings where it is a generator's.

use std::borrow::Cow;
use std::sync::Arc;

use prost_reflect::{
    DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage as _,
    Value as Wire,
};
use proto_mesh::attribute::{Value, ValueType};

use super::POLICY;
use crate::attributes::Vocabulary;

/// The message of the outputs, and the types of those that can be used.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    message: MessageDescriptor,
    fields: Vec<(FieldDescriptor, ValueType)>,
}

impl Output {
    /// Reads the declaration; every field must be of a type that attributes have.
    pub(super) fn new(message: MessageDescriptor) -> Result<Self, String> {
        let mut fields = Vec::new();
        for field in message.fields() {
            let value_type = value_type(&field).ok_or_else(|| {
                let name = field.name();
                format!("has an OutputMsg whose field {name} is of a type that no attribute has")
            })?;
            fields.push((field, value_type));
        }
        Ok(Self { message, fields })
    }

    /// Names and types.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&str, ValueType)> {
        let fields = self.fields.iter();
        fields.map(|(field, value_type)| (field.name(), *value_type))
    }

    /// The same as bindings name them.
    pub(in crate::template) fn vocabulary(&self) -> Arc<Vocabulary> {
        let fields = self.fields();
        let declared = fields.map(|(name, value_type)| (format!("output.{name}"), value_type));
        Arc::new(Vocabulary::new(&declared.collect()))
    }

    /// The fields that a message has.
    pub(crate) fn read(&self, message: &[u8]) -> Result<Vec<(String, Value)>, prost::DecodeError> {
        let message = DynamicMessage::decode(self.message.clone(), message)?;
        let given = self
            .fields
            .iter()
            .filter(|(field, _)| message.has_field(field));
        Ok(given
            .filter_map(|(field, _)| {
                let value = value(&message.get_field(field))?;
                Some((field.name().to_owned(), value))
            })
            .collect())
    }
}

fn value_type(field: &FieldDescriptor) -> Option<ValueType> {
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else {
            return None;
        };
        let is_text = |field: FieldDescriptor| field.kind() == Kind::String;
        let is_text_map =
            is_text(entry.map_entry_key_field()) && is_text(entry.map_entry_value_field());
        return is_text_map.then_some(ValueType::StringMap);
    }
    if field.is_list() {
        return None;
    }
    Some(match field.kind() {
        Kind::String => ValueType::String,
        Kind::Int64 => ValueType::Int64,
        Kind::Double => ValueType::Double,
        Kind::Bool => ValueType::Bool,
        Kind::Message(message) => match message.full_name().strip_prefix(POLICY)? {
            "IPAddress" => ValueType::IpAddress,
            "TimeStamp" => ValueType::Timestamp,
            "Duration" => ValueType::Duration,
            "DNSName" => ValueType::DnsName,
            "EmailAddress" => ValueType::EmailAddress,
            "Uri" => ValueType::Uri,
            "StringMap" => ValueType::StringMap,
            _ => return None,
        },
        _ => return None,
    })
}

fn value(wire: &Wire) -> Option<Value> {
    Some(match wire {
        Wire::String(text) => Value::String(Cow::Owned(text.clone())),
        Wire::I64(number) => Value::Int64(*number),
        Wire::F64(number) => Value::Double(*number),
        Wire::Bool(flag) => Value::Bool(*flag),
        Wire::Bytes(bytes) => Value::Bytes(bytes.to_vec()),
        Wire::Map(entries) => Value::StringMap(
            entries
                .iter()
                .filter_map(|(key, value)| match (key, value) {
                    (MapKey::String(key), Wire::String(value)) => {
                        Some((Cow::Owned(key.clone()), value.clone()))
                    }
                    _ => None,
                })
                .collect(),
        ),
        Wire::Message(message) => match message.descriptor().full_name() {
            "google.protobuf.Timestamp" => Value::Timestamp(message.transcode_to().ok()?),
            "google.protobuf.Duration" => Value::Duration(message.transcode_to().ok()?),
            // A wrapper of the policy API.
            _ => return value(message.get_field_by_name("value")?.as_ref()),
        },
        _ => return None,
    })
}
