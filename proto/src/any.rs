//! Packing messages into `google.protobuf.Any` and back, with the type URL checked.

use prost::{Message, Name};
use prost_types::Any;

use crate::type_url::{self, PREFIX};

/// Why an `Any` could not be turned into a message.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The `Any` carries another message.
    #[error("expected {expected}, found {found:?}")]
    Type {
        /// Full name of the wanted message.
        expected: String,
        /// The type URL that was found.
        found: String,
    },
    /// The bytes are not a message of that type.
    #[error("the bytes of {0} cannot be decoded")]
    Decode(String, #[source] prost::DecodeError),
}

/// Encodes `message` into an `Any` with the usual `type.googleapis.com/` type URL.
pub fn pack<T: Message + Name>(message: &T) -> Any {
    Any {
        type_url: format!("{PREFIX}{}", T::full_name()),
        value: message.encode_to_vec(),
    }
}

/// Decodes the message in `any`.
///
/// # Errors
/// When `any` carries another message, or bytes that are not a `T`.
pub fn unpack<T: Message + Name + Default>(any: &Any) -> Result<T, UnpackError> {
    if type_url::message_name(&any.type_url) != T::full_name() {
        return Err(UnpackError::Type {
            expected: T::full_name(),
            found: any.type_url.clone(),
        });
    }
    T::decode(any.value.as_ref()).map_err(|error| UnpackError::Decode(T::full_name(), error))
}

/// True when `any` carries a `T`.
pub fn is<T: Name>(any: &Any) -> bool {
    type_url::message_name(&any.type_url) == T::full_name()
}
