//! Templates of adapters out of process: descriptors say what an instance's message looks like and which method takes it.
//! They come with the configuration (kind `template`), or are those of the standard templates.
//!
//! An instance's params have the message's shape, with an expression in the place of every value ([`Node`]).

mod output;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, FileDescriptor, Kind, MapKey,
    MessageDescriptor, Value,
};
use proto_mesh::attribute::ValueType;
use serde_json::Value as Json;

use super::fields::Failed;
use super::record::some_expression;
use super::{Payload, Variety};
use crate::attributes::{Bag, Record, Vocabulary};
use crate::lang::{Expression, Val, time_text};
pub(crate) use output::Output;

/// The number of an instance's name in its message, and of a template's variety among a file's options.
const NAME_NUMBER: u32 = 72_295_727;
const POLICY: &str = "istio.policy.v1beta1.";
/// The varieties with outputs, on the wire.
const ATTRIBUTE_GENERATOR: i32 = 3;
const CHECK_WITH_OUTPUT: i32 = 4;

/// A template that came with its descriptors.
#[derive(Debug)]
pub(crate) struct RemoteTemplate {
    pub(crate) name: String,
    pub(crate) variety: Variety,
    /// `/package.HandleXService/HandleX`.
    pub(crate) method: String,
    instance: MessageDescriptor,
    /// The message of the inferred types.
    types: Option<MessageDescriptor>,
    /// Of a check whose answer says more than yes or no, and of a generator.
    pub(crate) output: Option<Output>,
}

/// Compiled params of an instance.
#[derive(Debug)]
pub(crate) struct RemoteFields {
    template: Arc<RemoteTemplate>,
    root: Node,
}

/// A message with expressions in it.
#[derive(Debug)]
enum Node {
    Message(MessageDescriptor, Vec<(FieldDescriptor, Node)>),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
    /// A value in one of the policy API's wrappers, or as it is.
    Expression(Expression, Kind),
    Enum(i32),
}

static STANDARD_TEMPLATES: LazyLock<HashMap<String, Arc<RemoteTemplate>>> = LazyLock::new(|| {
    let bytes = include_bytes!(concat!(env!("OUT_DIR"), "/templates.bin"));
    let pool = DescriptorPool::decode(bytes.as_slice()).unwrap_or_default();
    let templates = pool.files().filter_map(|file| of_file(&file).ok());
    templates
        .map(|template| (template.name.clone(), Arc::new(template)))
        .collect()
});

/// A standard template by its name.
pub(crate) fn builtin(name: &str) -> Option<Arc<RemoteTemplate>> {
    STANDARD_TEMPLATES.get(name).cloned()
}

/// The descriptors of a resource: a set of files in base64.
pub(crate) fn descriptors(text: &str) -> Result<DescriptorPool, String> {
    let text: String = text.split_whitespace().collect();
    let bytes = STANDARD
        .decode(text)
        .map_err(|error| format!("is not base64: {error}"))?;
    DescriptorPool::decode(bytes.as_slice())
        .map_err(|error| format!("is not a set of file descriptors: {error}"))
}

impl RemoteTemplate {
    /// The template in the descriptors of a resource.
    pub(crate) fn read(name: &str, descriptor: &str) -> Result<Self, String> {
        let pool = descriptors(descriptor)?;
        // The template itself is the last file that has one: what it imports comes before it.
        let mut found = Err("has no file with a template".to_owned());
        for file in pool.files() {
            if template_variety(&file).is_some() {
                found = of_file(&file);
            }
        }
        let mut template = found?;
        name.clone_into(&mut template.name);
        Ok(template)
    }
}

fn of_file(file: &FileDescriptor) -> Result<RemoteTemplate, String> {
    let variety = template_variety(file).ok_or("has no template_variety")?;
    let has_output = matches!(variety, ATTRIBUTE_GENERATOR | CHECK_WITH_OUTPUT);
    let variety = match variety {
        0 | CHECK_WITH_OUTPUT => Variety::Check,
        1 => Variety::Report,
        2 => Variety::Quota,
        ATTRIBUTE_GENERATOR => Variety::Generator,
        other => return Err(format!("template_variety {other} is not supported")),
    };
    let service = file
        .services()
        .find(|service| service.name().starts_with("Handle"))
        .ok_or("has no Handle service")?;
    let method = service
        .methods()
        .next()
        .ok_or("has a service without a method")?;
    let message = |name: &str| file.messages().find(|message| message.name() == name);
    let package = file.package_name();
    Ok(RemoteTemplate {
        // `adapter.template.kubernetes` is known as `kubernetes`.
        name: package.rsplit('.').next().unwrap_or(package).to_owned(),
        variety,
        method: format!("/{}/{}", service.full_name(), method.name()),
        instance: message("InstanceMsg").ok_or("has no message InstanceMsg")?,
        types: message("Type"),
        output: has_output
            .then(|| Output::new(message("OutputMsg").ok_or("has no message OutputMsg")?))
            .transpose()?,
    })
}

/// The option of a file, known as an extension or not.
fn template_variety(file: &FileDescriptor) -> Option<i32> {
    let options = file.options();
    for (extension, value) in options.extensions() {
        if extension.number() == NAME_NUMBER {
            return match value {
                Value::EnumNumber(number) | Value::I32(number) => Some(*number),
                _ => None,
            };
        }
    }
    let mut unknown = options.unknown_fields();
    let field = unknown.find(|field| field.number() == NAME_NUMBER)?;
    // A varint with its key in front.
    let mut bytes = Vec::new();
    field.encode(&mut bytes);
    let mut rest = bytes.as_slice();
    prost::encoding::decode_varint(&mut rest).ok()?;
    let number = prost::encoding::decode_varint(&mut rest).ok()?;
    i32::try_from(number).ok()
}

impl RemoteFields {
    pub(super) fn compile(
        template: &Arc<RemoteTemplate>,
        json: &Json,
        vocabulary: &Vocabulary,
    ) -> Result<Self, String> {
        let empty = Json::Object(serde_json::Map::new());
        let json = if json.is_null() { &empty } else { json };
        Ok(Self {
            root: message(&template.instance, json, "", vocabulary)?,
            template: template.clone(),
        })
    }

    /// The message for one request.
    pub(super) fn eval<'a, R: Record>(
        &'a self,
        bag: &Bag<'a>,
        record: &mut R,
    ) -> Result<Payload<'a>, Failed<'a>> {
        let Node::Message(descriptor, fields) = &self.root else {
            return Ok(Payload::Nothing);
        };
        let mut message = DynamicMessage::new(descriptor.clone());
        for (field, node) in fields {
            let value = value(node, bag, record).map_err(|error| (field_name(field), error))?;
            if let Some(value) = value {
                message.set_field(field, value);
            }
        }
        Ok(Payload::Remote {
            message: message.encode_to_vec(),
            template: &self.template,
        })
    }

    /// What an adapter is told of the types: the fields of `Type` have the names of those of the instance.
    pub(super) fn inferred_type(&self) -> Option<prost_types::Any> {
        let descriptor = self.template.types.clone()?;
        let message = inferred(&descriptor, &self.root);
        Some(prost_types::Any {
            type_url: format!("type.googleapis.com/{}", descriptor.full_name()),
            value: message.encode_to_vec(),
        })
    }
}

/// A field's name as long as its expression lives: names of fields are few, errors name the template's own field.
fn field_name(field: &FieldDescriptor) -> &'static str {
    match field.name() {
        "value" => "value",
        "dimensions" => "dimensions",
        "variables" => "variables",
        _ => "params",
    }
}

fn inferred(types: &MessageDescriptor, node: &Node) -> DynamicMessage {
    let mut message = DynamicMessage::new(types.clone());
    let Node::Message(_, fields) = node else {
        return message;
    };
    for (field, node) in fields {
        let Some(target) = types.get_field_by_name(field.name()) else {
            continue;
        };
        let number = |node: &Node| match node {
            Node::Expression(expression, _) => Some(wire_number(expression.value_type())),
            _ => None,
        };
        match (node, target.kind()) {
            (Node::Map(entries), _) if target.is_map() => {
                let entries = entries.iter().filter_map(|(key, node)| {
                    Some((
                        MapKey::String(key.clone()),
                        Value::EnumNumber(number(node)?),
                    ))
                });
                message.set_field(&target, Value::Map(entries.collect()));
            }
            (Node::Message(..), Kind::Message(below)) => {
                message.set_field(&target, Value::Message(inferred(&below, node)));
            }
            (node, Kind::Enum(_)) => {
                if let Some(number) = number(node) {
                    message.set_field(&target, Value::EnumNumber(number));
                }
            }
            _ => {}
        }
    }
    message
}

/// The number of a type in `ValueType`.
pub(crate) fn wire_number(kind: ValueType) -> i32 {
    let position = ValueType::ALL.iter().position(|known| *known == kind);
    position.map_or(0, |position| i32::try_from(position + 1).unwrap_or(0))
}

fn message(
    descriptor: &MessageDescriptor,
    json: &Json,
    path: &str,
    vocabulary: &Vocabulary,
) -> Result<Node, String> {
    let object = json
        .as_object()
        .ok_or_else(|| format!("{path}: a message is wanted, not {json}"))?;
    let mut fields = Vec::with_capacity(object.len());
    for (key, value) in object {
        let place = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        let field = descriptor
            .get_field_by_name(key)
            .or_else(|| descriptor.get_field_by_json_name(key))
            .filter(|field| field.number() != NAME_NUMBER)
            .ok_or_else(|| format!("{place}: unknown field"))?;
        if let Some(node) = field_node(&field, value, &place, vocabulary)? {
            fields.push((field, node));
        }
    }
    Ok(Node::Message(descriptor.clone(), fields))
}

fn field_node(
    field: &FieldDescriptor,
    json: &Json,
    path: &str,
    vocabulary: &Vocabulary,
) -> Result<Option<Node>, String> {
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else {
            return Err(format!("{path}: is not a map"));
        };
        let entries = json
            .as_object()
            .ok_or_else(|| format!("{path}: a map is wanted, not {json}"))?;
        let mut nodes = Vec::new();
        for (key, value) in entries {
            let place = format!("{path}[{key}]");
            let kind = entry.map_entry_value_field().kind();
            if let Some(node) = single(kind, value, &place, vocabulary)? {
                nodes.push((key.clone(), node));
            }
        }
        return Ok(Some(Node::Map(nodes)));
    }
    if field.is_list() {
        let items = json
            .as_array()
            .ok_or_else(|| format!("{path}: a list is wanted, not {json}"))?;
        let mut nodes = Vec::new();
        for (position, value) in items.iter().enumerate() {
            let place = format!("{path}[{position}]");
            nodes.extend(single(field.kind(), value, &place, vocabulary)?);
        }
        return Ok(Some(Node::List(nodes)));
    }
    single(field.kind(), json, path, vocabulary)
}

fn single(
    kind: Kind,
    json: &Json,
    path: &str,
    vocabulary: &Vocabulary,
) -> Result<Option<Node>, String> {
    match &kind {
        Kind::Message(below) if !below.full_name().starts_with(POLICY) => {
            return message(below, json, path, vocabulary).map(Some);
        }
        Kind::Enum(names) => {
            let name = json.as_str().unwrap_or_default();
            let value = names.get_value_by_name(name.trim_matches('"'));
            let value = value.ok_or_else(|| format!("{path}: {json} is none of its values"))?;
            return Ok(Some(Node::Enum(value.number())));
        }
        _ => {}
    }
    let Some(expression) = some_expression(path, json, vocabulary)? else {
        return Ok(None);
    };
    let got = expression.value_type();
    let fits = match &kind {
        Kind::String => got == ValueType::String,
        Kind::Bool => got == ValueType::Bool,
        Kind::Double | Kind::Float => got == ValueType::Double,
        Kind::Int64 | Kind::Int32 | Kind::Uint64 | Kind::Uint32 => got == ValueType::Int64,
        Kind::Message(wrapper) => match wrapper.name() {
            "Value" => true,
            "IPAddress" => got == ValueType::IpAddress,
            "TimeStamp" => got == ValueType::Timestamp,
            "Duration" => got == ValueType::Duration,
            "DNSName" => got == ValueType::DnsName,
            "EmailAddress" => got == ValueType::EmailAddress,
            "Uri" => got == ValueType::Uri,
            "StringMap" => got == ValueType::StringMap,
            _ => false,
        },
        _ => false,
    };
    if !fits {
        return Err(format!("{path}: an expression of type {got} does not fit"));
    }
    Ok(Some(Node::Expression(expression, kind)))
}

type Evaluated = Result<Option<Value>, crate::lang::EvalError>;

fn value<'a, R: Record>(node: &'a Node, bag: &Bag<'a>, record: &mut R) -> Evaluated {
    Ok(match node {
        Node::Enum(number) => Some(Value::EnumNumber(*number)),
        Node::Message(descriptor, fields) => {
            let mut message = DynamicMessage::new(descriptor.clone());
            for (field, node) in fields {
                if let Some(value) = value(node, bag, record)? {
                    message.set_field(field, value);
                }
            }
            Some(Value::Message(message))
        }
        Node::List(nodes) => {
            let mut values = Vec::with_capacity(nodes.len());
            for node in nodes {
                values.extend(value(node, bag, record)?);
            }
            Some(Value::List(values))
        }
        Node::Map(entries) => {
            let mut values = HashMap::new();
            for (key, node) in entries {
                if let Some(value) = value(node, bag, record)? {
                    values.insert(MapKey::String(key.clone()), value);
                }
            }
            Some(Value::Map(values))
        }
        Node::Expression(expression, kind) => {
            let evaluated = expression.eval(bag, record)?;
            wire_value(&evaluated, expression.value_type(), kind)
        }
    })
}

/// A value as the field wants it.
fn wire_value(value: &Val<'_>, value_type: ValueType, kind: &Kind) -> Option<Value> {
    Some(match (value, kind) {
        (Val::String(text), Kind::String) => Value::String(text.to_string()),
        (Val::Bool(flag), Kind::Bool) => Value::Bool(*flag),
        (Val::Double(number), Kind::Double) => Value::F64(*number),
        #[allow(clippy::cast_possible_truncation, reason = "the field is a float")]
        (Val::Double(number), Kind::Float) => Value::F32(*number as f32),
        (Val::Int64(number), Kind::Int64) => Value::I64(*number),
        (Val::Int64(number), Kind::Int32) => Value::I32(i32::try_from(*number).ok()?),
        (Val::Int64(number), Kind::Uint64) => Value::U64(u64::try_from(*number).ok()?),
        (Val::Int64(number), Kind::Uint32) => Value::U32(u32::try_from(*number).ok()?),
        (value, Kind::Message(wrapper)) => {
            let bytes = policy_value(value, value_type);
            let bytes = if wrapper.name() == "Value" {
                bytes.encode_to_vec()
            } else {
                // The wrapper is the oneof's content.
                inner(&bytes)
            };
            Value::Message(DynamicMessage::decode(wrapper.clone(), bytes.as_slice()).ok()?)
        }
        _ => return None,
    })
}

/// A value of any type as the policy API's message.
pub(crate) fn policy_value(
    value: &Val<'_>,
    value_type: ValueType,
) -> proto::istio::policy::v1beta1::Value {
    use policy::value::Value as Wire;
    use proto::istio::policy::v1beta1 as policy;
    let wire = match value {
        Val::String(text) => match value_type {
            ValueType::DnsName => Wire::DnsNameValue(policy::DnsName {
                value: text.to_string(),
            }),
            ValueType::EmailAddress => Wire::EmailAddressValue(policy::EmailAddress {
                value: text.to_string(),
            }),
            ValueType::Uri => Wire::UriValue(policy::Uri {
                value: text.to_string(),
            }),
            _ => Wire::StringValue(text.to_string()),
        },
        Val::Int64(number) => Wire::Int64Value(*number),
        Val::Double(number) => Wire::DoubleValue(*number),
        Val::Bool(flag) => Wire::BoolValue(*flag),
        Val::Timestamp(time) => Wire::TimestampValue(policy::TimeStamp { value: Some(*time) }),
        Val::Duration(nanos) => Wire::DurationValue(policy::Duration {
            value: Some(time_text::wire_duration(*nanos)),
        }),
        Val::Ip(ip) => Wire::IpAddressValue(policy::IpAddress {
            value: match ip {
                std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
                std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
            },
        }),
        Val::StringMap(map) => Wire::StringMapValue(policy::StringMap {
            value: map
                .iter()
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        }),
    };
    policy::Value { value: Some(wire) }
}

/// The message inside of a value.
fn inner(value: &proto::istio::policy::v1beta1::Value) -> Vec<u8> {
    use proto::istio::policy::v1beta1::value::Value as Wire;
    match &value.value {
        Some(Wire::IpAddressValue(inner)) => inner.encode_to_vec(),
        Some(Wire::TimestampValue(inner)) => inner.encode_to_vec(),
        Some(Wire::DurationValue(inner)) => inner.encode_to_vec(),
        Some(Wire::DnsNameValue(inner)) => inner.encode_to_vec(),
        Some(Wire::EmailAddressValue(inner)) => inner.encode_to_vec(),
        Some(Wire::UriValue(inner)) => inner.encode_to_vec(),
        Some(Wire::StringMapValue(inner)) => inner.encode_to_vec(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
