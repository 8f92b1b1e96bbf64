//! Durations as Go writes them (`1m30s`, `500ms`). Proto3 JSON knows seconds only (`90s`), but Istio has always read both, and its
//! users write both: what is Go's is rewritten before a message is read.

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value};

use crate::{descriptor, type_url};

const DURATION: &str = "google.protobuf.Duration";
const ANY: &str = "google.protobuf.Any";

/// The JSON form of a message with Go's durations rewritten; none when there are none.
pub(super) fn rewrite(message: &MessageDescriptor, value: &Value) -> Option<Value> {
    match message.full_name() {
        DURATION => value.as_str().and_then(to_seconds).map(Value::String),
        ANY => rewrite_any(value),
        name if name.starts_with("google.protobuf.") => None,
        _ => rewrite_fields(value, |name| {
            let by_json_name = message.get_field_by_json_name(name);
            by_json_name.or_else(|| message.get_field_by_name(name))
        }),
    }
}

fn rewrite_any(value: &Value) -> Option<Value> {
    let name = type_url::message_name(value.get("@type")?.as_str()?);
    rewrite(&descriptor::message(name)?, value)
}

fn rewrite_fields(value: &Value, field: impl Fn(&str) -> Option<FieldDescriptor>) -> Option<Value> {
    rewrite_members(value.as_object()?, |name, value| {
        rewrite_field(&field(name)?, value)
    })
}

fn rewrite_field(field: &FieldDescriptor, value: &Value) -> Option<Value> {
    let Kind::Message(message) = field.kind() else {
        return None;
    };
    if field.is_map() {
        let entry = message.map_entry_value_field();
        return rewrite_members(value.as_object()?, |_, value| rewrite_field(&entry, value));
    }
    match value {
        Value::Array(items) if field.is_list() => {
            let rewritten: Vec<_> = items.iter().map(|item| rewrite(&message, item)).collect();
            rewritten.iter().any(Option::is_some).then(|| {
                let pairs = rewritten.into_iter().zip(items);
                Value::Array(
                    pairs
                        .map(|(new, old)| new.unwrap_or_else(|| old.clone()))
                        .collect(),
                )
            })
        }
        value => rewrite(&message, value),
    }
}

fn rewrite_members(
    fields: &Map<String, Value>,
    rewrite: impl Fn(&str, &Value) -> Option<Value>,
) -> Option<Value> {
    let mut changed: Option<Map<String, Value>> = None;
    for (name, value) in fields {
        if let Some(value) = rewrite(name, value) {
            changed
                .get_or_insert_with(|| fields.clone())
                .insert(name.clone(), value);
        }
    }
    changed.map(Value::Object)
}

/// `1m30s` as `90s`; none for what proto3 JSON reads by itself, and for what is no duration.
fn to_seconds(text: &str) -> Option<String> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some("0s".into());
    }
    let is_plain = rest.strip_suffix('s').is_some_and(|number| {
        number
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.')
    });
    if is_plain || rest.is_empty() {
        return None;
    }
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let number_end =
            rest.find(|character: char| !character.is_ascii_digit() && character != '.')?;
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail
            .find(|character: char| character.is_ascii_digit() || character == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        nanos = nanos.checked_add(scale(number, nanos_of(unit)?)?)?;
        rest = tail;
    }
    let (seconds, fraction) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    Some(if fraction == 0 {
        format!("{sign}{seconds}s")
    } else {
        format!("{sign}{seconds}.{fraction:09}s")
    })
}

fn nanos_of(unit: &str) -> Option<u128> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// A decimal number of units, in nanoseconds; what is less than one is dropped.
fn scale(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let digits = |text: &str| {
        if text.is_empty() {
            Some(0)
        } else {
            text.parse::<u128>().ok()
        }
    };
    let fraction = &fraction[..fraction.len().min(18)];
    let divisor = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let part = digits(fraction)?.checked_mul(unit)? / divisor;
    digits(whole)?.checked_mul(unit)?.checked_add(part)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn go_durations_become_seconds() {
        for (text, want) in [
            ("1m", Some("60s")),
            ("1m30s", Some("90s")),
            ("8ms", Some("0.008000000s")),
            ("1.5h", Some("5400s")),
            ("-2m", Some("-120s")),
            (".5m", Some("30s")),
            ("0", Some("0s")),
            ("5s", None),
            ("0.5s", None),
            ("apple", None),
            ("5", None),
            ("m", None),
            ("1.2.3m", None),
            ("", None),
        ] {
            assert_eq!(to_seconds(text).as_deref(), want, "{text}");
        }
    }

    #[test]
    fn durations_are_found_wherever_they_are() {
        let message = descriptor::message("istio.networking.v1alpha3.VirtualService").unwrap();
        let value = json!({"hosts": ["1m"], "http": [{"timeout": "1m", "retries": {"perTryTimeout": "2s"}}, {"name": "1m"}]});
        let want = json!({"hosts": ["1m"], "http": [{"timeout": "60s", "retries": {"perTryTimeout": "2s"}}, {"name": "1m"}]});
        assert_eq!(rewrite(&message, &value), Some(want));
        assert_eq!(
            rewrite(&message, &json!({"http": [{"timeout": "1s"}]})),
            None
        );
    }
}
