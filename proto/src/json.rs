//! Proto3 JSON both ways, strictly: an unknown field, a wrong type or an unknown enum value is refused with its path
//! (`http[0].route[0].destination.subst`). camelCase and snake_case names are accepted, as the proto3 mapping demands; durations
//! may be Go's (`1m30s`), as Istio's users write them.

use prost::{Message, Name};
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use prost_types::Any;
use serde_json::Value;

use crate::{descriptor, type_url};

mod go_duration;

/// Why a message and its JSON form do not convert.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// A field that is unknown or holds something it can't.
    #[error("{path}: {problem}")]
    Field {
        /// Where, from the message's root; `.` for the root itself.
        path: String,
        /// What is wrong there.
        problem: String,
    },
    /// No message of this name is known.
    #[error("unknown message {0}")]
    UnknownMessage(String),
    /// The bytes are not a message of the wanted type.
    #[error("the bytes are not a {0}")]
    Decode(String, #[source] prost::DecodeError),
    /// The message holds an `Any` that cannot be written as JSON.
    #[error("{0} has no JSON form: {1}")]
    Encode(String, String),
}

impl JsonError {
    /// The path of the offending field, if the error is about one.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        match self {
            JsonError::Field { path, .. } => Some(path),
            _ => None,
        }
    }

    /// What is wrong, without the path.
    #[must_use]
    pub fn problem(&self) -> String {
        match self {
            JsonError::Field { problem, .. } => problem.clone(),
            other => other.to_string(),
        }
    }
}

/// How field names are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldNames {
    /// `httpFilters`, the proto3 JSON default; Istio's resources.
    Json,
    /// `http_filters`, as Envoy's admin interface writes.
    Proto,
}

/// Reads a message from its JSON form.
///
/// # Errors
/// [`JsonError::Field`] with the path of the first field that does not fit.
pub fn from_value<T: Message + Name + Default>(value: &Value) -> Result<T, JsonError> {
    let dynamic = dynamic_from_value(&T::full_name(), value)?;
    T::decode(dynamic.encode_to_vec().as_slice())
        .map_err(|error| JsonError::Decode(T::full_name(), error))
}

/// As [`from_value`], but fields that no message has are left out: whoever wrote it may know a newer API.
///
/// # Errors
/// As [`from_value`].
pub fn lenient_from_value<T: Message + Name + Default>(value: &Value) -> Result<T, JsonError> {
    let dynamic = read(message_descriptor(&T::full_name())?, value, false)?;
    T::decode(dynamic.encode_to_vec().as_slice())
        .map_err(|error| JsonError::Decode(T::full_name(), error))
}

/// Reads the message called `full_name` from its JSON form. `null` is the empty message.
///
/// # Errors
/// When no such message is known, or a field does not fit.
pub fn dynamic_from_value(full_name: &str, value: &Value) -> Result<DynamicMessage, JsonError> {
    read(message_descriptor(full_name)?, value, true)
}

/// As [`dynamic_from_value`], with every extension of Envoy known: also those for which there are no Rust types.
///
/// # Errors
/// As [`dynamic_from_value`].
pub fn extension_from_value(full_name: &str, value: &Value) -> Result<DynamicMessage, JsonError> {
    read(extension_descriptor(full_name)?, value, true)
}

/// As [`extension_from_value`], but fields that no message has are left out: whoever reads it may know a newer API.
///
/// # Errors
/// As [`dynamic_from_value`].
pub fn lenient_extension_from_value(
    full_name: &str,
    value: &Value,
) -> Result<DynamicMessage, JsonError> {
    read(extension_descriptor(full_name)?, value, false)
}

fn read(
    descriptor: MessageDescriptor,
    value: &Value,
    is_strict: bool,
) -> Result<DynamicMessage, JsonError> {
    if value.is_null() {
        return Ok(DynamicMessage::new(descriptor));
    }
    let rewritten = go_duration::rewrite(&descriptor, value);
    let value = rewritten.as_ref().unwrap_or(value);
    let options = DeserializeOptions::new().deny_unknown_fields(is_strict);
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
    DynamicMessage::deserialize_with_options(descriptor, deserializer, &options)
        .map_err(|error| field_error(track.path().to_string(), error.to_string()))
}

/// The reader reports an unknown field at its parent; the path that helps ends in the field itself.
fn field_error(path: String, problem: String) -> JsonError {
    let unknown = problem
        .strip_prefix("unrecognized field name '")
        .and_then(|rest| rest.split_once('\''));
    match unknown {
        Some((field, _)) if path == "." => JsonError::Field {
            path: field.to_owned(),
            problem: "unknown field".into(),
        },
        Some((field, _)) => JsonError::Field {
            path: format!("{path}.{field}"),
            problem: "unknown field".into(),
        },
        None => JsonError::Field { path, problem },
    }
}

/// Reads the message called `full_name` from JSON and packs it into an `Any`.
///
/// # Errors
/// As [`dynamic_from_value`].
pub fn any_from_value(full_name: &str, value: &Value) -> Result<Any, JsonError> {
    let message = dynamic_from_value(full_name, value)?;
    Ok(Any {
        type_url: format!("{}{full_name}", type_url::PREFIX),
        value: message.encode_to_vec(),
    })
}

/// The JSON form of a message: camelCase names, fields at their default left out.
///
/// # Errors
/// When it holds an `Any` of an unknown type.
pub fn to_value<T: Message + Name>(message: &T) -> Result<Value, JsonError> {
    to_value_with(message, FieldNames::Json)
}

/// The JSON form of a message, with the field names of your choice.
///
/// # Errors
/// When it holds an `Any` of an unknown type.
pub fn to_value_with<T: Message + Name>(
    message: &T,
    names: FieldNames,
) -> Result<Value, JsonError> {
    let bytes = message.encode_to_vec();
    bytes_to_value(message_descriptor(&T::full_name())?, &bytes, names)
        .or_else(|_| bytes_to_value(extension_descriptor(&T::full_name())?, &bytes, names))
}

/// The JSON form of what is in an `Any`, without `@type`.
///
/// # Errors
/// When its type is unknown or the bytes are not of that type.
pub fn any_to_value(any: &Any, names: FieldNames) -> Result<Value, JsonError> {
    let name = type_url::message_name(&any.type_url);
    message_descriptor(name)
        .and_then(|descriptor| bytes_to_value(descriptor, &any.value, names))
        .or_else(|_| bytes_to_value(extension_descriptor(name)?, &any.value, names))
}

/// Checks that an `Any` can be decoded, whatever message it carries.
///
/// # Errors
/// When its type is unknown or the bytes are not of that type.
pub fn decode_any(any: &Any) -> Result<DynamicMessage, JsonError> {
    let name = type_url::message_name(&any.type_url);
    decode(message_descriptor(name)?, &any.value)
}

fn bytes_to_value(
    descriptor: MessageDescriptor,
    bytes: &[u8],
    names: FieldNames,
) -> Result<Value, JsonError> {
    let options = SerializeOptions::new()
        .use_proto_field_name(names == FieldNames::Proto)
        .skip_default_fields(true);
    let full_name = descriptor.full_name().to_owned();
    decode(descriptor, bytes)?
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|error| JsonError::Encode(full_name, error.to_string()))
}

fn decode(descriptor: MessageDescriptor, bytes: &[u8]) -> Result<DynamicMessage, JsonError> {
    let full_name = descriptor.full_name().to_owned();
    DynamicMessage::decode(descriptor, bytes).map_err(|error| JsonError::Decode(full_name, error))
}

fn extension_descriptor(full_name: &str) -> Result<MessageDescriptor, JsonError> {
    descriptor::extension(full_name).ok_or_else(|| JsonError::UnknownMessage(full_name.to_owned()))
}

fn message_descriptor(full_name: &str) -> Result<MessageDescriptor, JsonError> {
    descriptor::message(full_name).ok_or_else(|| JsonError::UnknownMessage(full_name.to_owned()))
}
