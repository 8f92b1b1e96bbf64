//! JSON access-log lines: the configured object with its strings as formats. A string that is exactly one operator keeps the
//! operator's type (number, object, `null` when there is no value); any other string stays a string.

use prost_types::{Struct, Value, value};

use crate::invalid::{At as _, Invalid, try_all};

use super::format::{Format, FormatContext, Kind, write_json_text};

/// A JSON object with formats in it.
#[derive(Debug, Clone)]
pub(crate) struct JsonFormat {
    fields: Vec<Field>,
    omit_empty: bool,
    typed: bool,
}

#[derive(Debug, Clone)]
struct Field {
    /// `"key":`
    key: Box<str>,
    node: Node,
}

#[derive(Debug, Clone)]
enum Node {
    /// Ready JSON.
    Literal(Box<str>),
    Text(Format),
    Object(Vec<Field>),
    List(Vec<Node>),
}

impl JsonFormat {
    /// Checks an object. Without `typed`, every value is written as a string.
    pub(crate) fn try_new(fields: &Struct, omit_empty: bool, typed: bool) -> Result<Self, Invalid> {
        Ok(JsonFormat {
            fields: object(fields)?,
            omit_empty,
            typed,
        })
    }

    /// Appends the object.
    pub(crate) fn write(&self, context: &FormatContext<'_>, out: &mut String) {
        self.write_object(&self.fields, context, out);
    }

    fn write_object(&self, fields: &[Field], context: &FormatContext<'_>, out: &mut String) {
        out.push('{');
        let mut is_first = true;
        for field in fields {
            let start = out.len();
            if !is_first {
                out.push(',');
            }
            out.push_str(&field.key);
            if self.write_node(&field.node, context, out) || !self.omit_empty {
                is_first = false;
            } else {
                out.truncate(start);
            }
        }
        out.push('}');
    }

    /// False when the value is `null`.
    fn write_node(&self, node: &Node, context: &FormatContext<'_>, out: &mut String) -> bool {
        match node {
            Node::Literal(json) => out.push_str(json),
            Node::Object(fields) => self.write_object(fields, context, out),
            Node::List(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    self.write_node(item, context, out);
                }
                out.push(']');
            }
            Node::Text(format) => return self.write_format(format, context, out),
        }
        true
    }

    fn write_format(&self, format: &Format, context: &FormatContext<'_>, out: &mut String) -> bool {
        let start = out.len();
        match format.single().filter(|_| self.typed) {
            Some(Kind::Number | Kind::Json) => {
                if !format.write_json(context, out) {
                    out.push_str("null");
                    return false;
                }
            }
            Some(Kind::Text) => {
                out.push('"');
                if !format.write(context, "", out) {
                    out.truncate(start);
                    out.push_str("null");
                    return false;
                }
                close_text(out, start);
            }
            None => {
                out.push('"');
                let has_value = format.write(context, if self.omit_empty { "" } else { "-" }, out);
                close_text(out, start);
                return has_value;
            }
        }
        true
    }
}

fn object(fields: &Struct) -> Result<Vec<Field>, Invalid> {
    fields
        .fields
        .iter()
        .map(|(key, value)| {
            let mut text = String::new();
            write_json_text(key, &mut text);
            text.push(':');
            Ok(Field {
                key: text.into(),
                node: node(value).at(key)?,
            })
        })
        .collect()
}

fn node(value: &Value) -> Result<Node, Invalid> {
    Ok(match &value.kind {
        None | Some(value::Kind::NullValue(_)) => Node::Literal("null".into()),
        Some(value::Kind::BoolValue(flag)) => Node::Literal(flag.to_string().into()),
        Some(value::Kind::NumberValue(number)) => Node::Literal(number.to_string().into()),
        Some(value::Kind::StringValue(text)) => {
            let format = Format::parse(text)?;
            match format.literal() {
                Some(text) => {
                    let mut json = String::new();
                    write_json_text(text, &mut json);
                    Node::Literal(json.into())
                }
                None => Node::Text(format),
            }
        }
        Some(value::Kind::StructValue(fields)) => Node::Object(object(fields)?),
        Some(value::Kind::ListValue(list)) => Node::List(try_all("", &list.values, node)?),
    })
}

/// Ends the string that began with the quote at `start`, escaping what was written since if it needs it.
fn close_text(out: &mut String, start: usize) {
    let text = &out[start + 1..];
    if text
        .bytes()
        .any(|byte| byte < 0x20 || byte == b'"' || byte == b'\\')
    {
        let text = text.to_owned();
        out.truncate(start);
        write_json_text(&text, out);
    } else {
        out.push('"');
    }
}
