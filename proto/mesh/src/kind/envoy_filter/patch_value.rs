//! The value of a patch: JSON that must be a message of Envoy's API. Unknown fields are warned about only, because a proxy may
//! know a newer API than we do; for the same reason messages of extensions that we do not know are not looked into.

use prost_types::Struct;
use proto::json::{self, JsonError};
use serde_json::Value;

use crate::finding::Report;
use crate::json_struct;

/// How many unknown fields of a patch are looked for.
const MAX_UNKNOWN_FIELDS: usize = 32;

/// Reports what is wrong with a value that should be the message `message`.
pub(super) fn check(message: &str, value: &Struct, report: &mut Report) {
    let mut value = Value::Object(json_struct::to_json(value));
    if let Err(type_url) = drop_unknown_types(&mut value) {
        report.error(format!(
            "{type_url} is of Envoy's API v2, which no proxy reads any more: use v3"
        ));
        return;
    }
    for _ in 0..MAX_UNKNOWN_FIELDS {
        let Err(JsonError::Field { path, problem }) = json::extension_from_value(message, &value)
        else {
            return;
        };
        if problem != "unknown field" {
            report.error(format!("{path}: {problem}"));
            return;
        }
        report.warning(format!("{path}: {message} has no such field"));
        if !remove(&mut value, &path) {
            return;
        }
    }
}

/// Removes messages of unknown types.
///
/// # Errors
/// The type, when it is of an API that is gone.
fn drop_unknown_types(value: &mut Value) -> Result<(), String> {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !matches!(type_of(field), Some(name) if is_unknown(name) && !is_gone(name)));
            for field in fields.values_mut() {
                if let Some(name) = type_of(field).filter(|name| is_gone(name)) {
                    return Err(name.to_owned());
                }
                drop_unknown_types(field)?;
            }
            Ok(())
        }
        Value::Array(items) => items.iter_mut().try_for_each(drop_unknown_types),
        _ => Ok(()),
    }
}

fn type_of(value: &Value) -> Option<&str> {
    Some(proto::type_url::message_name(value.get("@type")?.as_str()?))
}

fn is_unknown(name: &str) -> bool {
    proto::descriptor::extension(name).is_none()
}

fn is_gone(name: &str) -> bool {
    name.starts_with("envoy.") && (name.contains(".v2.") || name.contains(".v2alpha"))
}

/// Removes the field at `path` (`a.b[0].c`); false when there is none.
fn remove(value: &mut Value, path: &str) -> bool {
    let (parent, field) = path
        .rsplit_once('.')
        .map_or(("", path), |(parent, field)| (parent, field));
    let pointer: String = parent
        .split(['.', '['])
        .filter(|part| !part.is_empty())
        .map(|part| format!("/{}", part.trim_end_matches(']')))
        .collect();
    let Some(Value::Object(fields)) = value.pointer_mut(&pointer) else {
        return false;
    };
    fields.remove(field).is_some()
}
