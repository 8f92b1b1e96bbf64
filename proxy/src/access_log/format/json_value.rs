//! Metadata values as JSON.

use std::fmt::Write as _;

use prost_types::{Struct, Value, value};

/// Appends the value at a path, or everything; false when there is nothing. A text at the path itself stands without quotes.
pub(super) fn write_metadata(fields: Option<&Struct>, path: &[Box<str>], out: &mut String) -> bool {
    let Some(fields) = fields else {
        return false;
    };
    if path.is_empty() {
        write_struct(fields, out);
        return true;
    }
    match crate::matcher::value_at(fields, path) {
        Some(value) => {
            match &value.kind {
                Some(value::Kind::StringValue(text)) => out.push_str(text),
                _ => write_value(value, out),
            }
            true
        }
        None => false,
    }
}

fn write_struct(fields: &Struct, out: &mut String) {
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
