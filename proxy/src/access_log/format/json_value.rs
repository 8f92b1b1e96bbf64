//! Values as JSON.

use std::fmt::Write as _;

use prost_types::{Struct, Value, value};

/// Appends an object as JSON.
pub(super) fn write_struct(fields: &Struct, out: &mut String) {
    out.push('{');
    for (index, (key, value)) in fields.fields.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        write_json_text(key, out);
        out.push(':');
        write_value(value, out);
    }
    out.push('}');
}

/// Appends a value as JSON.
pub(crate) fn write_value(value: &Value, out: &mut String) {
    match &value.kind {
        None | Some(value::Kind::NullValue(_)) => out.push_str("null"),
        Some(value::Kind::BoolValue(flag)) => out.push_str(if *flag { "true" } else { "false" }),
        Some(value::Kind::NumberValue(number)) => {
            let _ = write!(out, "{number}");
        }
        Some(value::Kind::StringValue(text)) => write_json_text(text, out),
        Some(value::Kind::StructValue(fields)) => write_struct(fields, out),
        Some(value::Kind::ListValue(list)) => {
            out.push('[');
            for (index, item) in list.values.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_value(item, out);
            }
            out.push(']');
        }
    }
}

/// Appends `text` as a JSON string.
pub(crate) fn write_json_text(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c.is_control() && (c as u32) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
