//! Parameters of adapters and templates: `google.protobuf.Struct` → JSON → a struct with unknown fields refused. The messages
//! behind them are the adapters' own, so they have no proto type here.

use std::time::Duration;

use prost_types::{Struct, Value, value::Kind};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Number, Value as Json};

use crate::lang::time_text;

/// Reads parameters; the error begins with the path of the field.
pub(crate) fn read<T: DeserializeOwned>(params: &Json) -> Result<T, String> {
    // Absent parameters are empty ones.
    let empty = Json::Object(Map::new());
    let params = if params.is_null() { &empty } else { params };
    serde_path_to_error::deserialize(params).map_err(|error| {
        let path = error.path().to_string();
        match (path.as_str(), error.into_inner().to_string()) {
            (".", problem) => problem,
            (path, problem) => format!("{path}: {problem}"),
        }
    })
}

/// The JSON form of a struct; whole numbers become integers again.
pub(crate) fn to_json(params: Option<&Struct>) -> Json {
    params.map_or(Json::Null, struct_json)
}

fn struct_json(params: &Struct) -> Json {
    Json::Object(
        params
            .fields
            .iter()
            .map(|(name, value)| (name.clone(), value_json(value)))
            .collect(),
    )
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "checked to be whole and within the exact range of a double"
)]
fn value_json(value: &Value) -> Json {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::NumberValue(number)) if number.fract() == 0.0 && number.abs() < 9e15 => {
            Json::Number(Number::from(*number as i64))
        }
        Some(Kind::NumberValue(number)) => {
            Number::from_f64(*number).map_or(Json::Null, Json::Number)
        }
        Some(Kind::StringValue(text)) => Json::String(text.clone()),
        Some(Kind::BoolValue(flag)) => Json::Bool(*flag),
        Some(Kind::StructValue(inner)) => struct_json(inner),
        Some(Kind::ListValue(list)) => Json::Array(list.values.iter().map(value_json).collect()),
    }
}

/// A duration: Go's form (`10m`) or proto3's (`600s`, `0.5s`); neither is negative here.
pub(crate) fn duration<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(input)?;
    time_text::parse_duration(&text)
        .and_then(|nanos| u64::try_from(nanos).ok())
        .map(Duration::from_nanos)
        .ok_or_else(|| {
            D::Error::custom(format!("{text:?} is not a duration; write e.g. 10m or 30s"))
        })
}

/// A duration that may be left out.
pub(crate) fn some_duration<'de, D: Deserializer<'de>>(
    input: D,
) -> Result<Option<Duration>, D::Error> {
    duration(input).map(Some)
}

/// A 64-bit integer: proto3 JSON writes it as text.
pub(crate) fn int64<'de, D: Deserializer<'de>>(input: D) -> Result<i64, D::Error> {
    match Json::deserialize(input)? {
        Json::Number(number) if number.is_i64() => Ok(number.as_i64().unwrap_or_default()),
        Json::String(text) => text
            .parse()
            .map_err(|_| D::Error::custom(format!("{text:?} is not an integer"))),
        other => Err(D::Error::custom(format!("{other} is not an integer"))),
    }
}
