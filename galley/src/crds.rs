//! The definitions (CRDs) of every kind of the mesh, made from the contracts: `galley crds` prints what
//! `helm/bireme-init` installs.
//!
//! Schemas are structural, so the API server itself refuses a field that is not in the contract. Every served version has
//! the same schema, because versions differ in name only; nothing has to be converted between them.

use std::fmt::Write as _;
use std::io;

use prost_reflect::{Cardinality, FieldDescriptor, Kind as FieldKind, MessageDescriptor};
use proto::kind::Scope;
use serde_json::{Map, Value, json};

use crate::schema::{self, Served};

/// What stands above the definitions in the file.
const HEADER: &str = "# The mesh's kinds, made from the contracts; write it anew with\n\
    #   cargo run -p galley -- crds > helm/bireme-init/files/crds.yaml\n";

/// Columns that `kubectl get` shows beside name and age: kind, column, path.
const COLUMNS: &[(&str, &str, &str)] = &[
    ("VirtualService", "Gateways", ".spec.gateways"),
    ("VirtualService", "Hosts", ".spec.hosts"),
    ("DestinationRule", "Host", ".spec.host"),
    ("ServiceEntry", "Hosts", ".spec.hosts"),
    ("ServiceEntry", "Location", ".spec.location"),
    ("ServiceEntry", "Resolution", ".spec.resolution"),
    ("WorkloadEntry", "Address", ".spec.address"),
    ("PeerAuthentication", "Mode", ".spec.mtls.mode"),
    ("AuthorizationPolicy", "Action", ".spec.action"),
    ("ServiceRoleBinding", "Reference", ".spec.roleRef.name"),
];

/// Prints every definition.
///
/// # Errors
/// When nobody reads it.
pub fn run() -> anyhow::Result<()> {
    io::Write::write_all(&mut io::stdout(), to_yaml()?.as_bytes())?;
    Ok(())
}

/// Every definition, as a file of YAML documents.
///
/// # Errors
/// When a definition cannot be written.
pub fn to_yaml() -> anyhow::Result<String> {
    let mut text = HEADER.to_owned();
    for definition in build() {
        write!(text, "---\n{}", proto::yaml::to_string(&definition)?)?;
    }
    Ok(text)
}

/// Every definition, in the order of the table of kinds.
pub fn build() -> Vec<Value> {
    // Of the untyped kinds only the two that the 1.4 line still had.
    let is_defined =
        |served: &&Served| served.rules.is_some() || ["adapter", "template"].contains(&served.kind);
    schema::served()
        .iter()
        .filter(is_defined)
        .map(definition)
        .collect()
}

fn definition(served: &Served) -> Value {
    let spec = proto::descriptor::message(served.message).map_or_else(any_object, |message| {
        message_schema(&message, &mut Vec::new())
    });
    let columns: Vec<Value> = COLUMNS
        .iter()
        .filter(|(kind, ..)| *kind == served.kind)
        .map(|(_, name, path)| json!({"name": name, "type": "string", "jsonPath": path}))
        .chain([json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"})])
        .collect();
    let versions: Vec<Value> = served
        .versions
        .iter()
        .enumerate()
        .map(|(index, version)| {
            json!({
                "name": version,
                "served": true,
                "storage": index == 0,
                "additionalPrinterColumns": columns,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "properties": {"spec": spec, "status": any_object()},
                }},
            })
        })
        .collect();
    let group = served.group.split('.').next().unwrap_or_default();
    let mut names = json!({
        "kind": served.kind,
        "listKind": format!("{}List", served.kind),
        "plural": served.plural,
        "singular": served.kind.to_ascii_lowercase(),
        "categories": ["istio-io", format!("{group}-istio-io")],
    });
    let short_names = served.rules.map_or(&[][..], |rules| rules.short_names);
    if !short_names.is_empty() {
        names["shortNames"] = json!(short_names);
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{}.{}", served.plural, served.group),
            "labels": {"app": "bireme-init", "release": "istio"},
            // The users' configuration outlives an uninstallation; `biremectl uninstall --purge` takes it along.
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": served.group,
            "names": names,
            "scope": if served.scope == Scope::Cluster { "Cluster" } else { "Namespaced" },
            "versions": versions,
        },
    })
}

/// An object that may hold anything.
fn any_object() -> Value {
    json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// `within` are the messages that this one is a part of: a message within itself may hold anything there, because
/// structural schemas have no references.
fn message_schema(message: &MessageDescriptor, within: &mut Vec<String>) -> Value {
    if let Some(schema) = well_known(message.full_name()) {
        return schema;
    }
    if within.iter().any(|outer| outer == message.full_name()) {
        return any_object();
    }
    within.push(message.full_name().to_owned());
    let properties: Map<String, Value> = message
        .fields()
        .map(|field| (field.json_name().to_owned(), field_schema(&field, within)))
        .collect();
    within.pop();
    let mut schema = json!({"type": "object"});
    if !properties.is_empty() {
        schema["properties"] = Value::Object(properties);
    }
    let mut choices: Vec<Value> = message
        .oneofs()
        .filter(|oneof| !oneof.is_synthetic())
        .map(|oneof| {
            let each: Vec<Value> = oneof
                .fields()
                .map(|field| json!({"required": [field.json_name()]}))
                .collect();
            let none = json!({"not": {"anyOf": each.clone()}});
            let choices = [vec![none], each].concat();
            json!({"oneOf": choices})
        })
        .collect();
    if choices.len() == 1 {
        schema["oneOf"] = choices.remove(0)["oneOf"].take();
    } else if !choices.is_empty() {
        schema["allOf"] = Value::Array(choices);
    }
    schema
}

fn field_schema(field: &FieldDescriptor, within: &mut Vec<String>) -> Value {
    if field.is_map() {
        let FieldKind::Message(entry) = field.kind() else {
            return any_object();
        };
        let value = single_schema(&entry.map_entry_value_field().kind(), within);
        return json!({"type": "object", "additionalProperties": value});
    }
    let single = single_schema(&field.kind(), within);
    if field.cardinality() == Cardinality::Repeated {
        return json!({"type": "array", "items": single});
    }
    single
}

fn single_schema(kind: &FieldKind, within: &mut Vec<String>) -> Value {
    match kind {
        FieldKind::Message(message) => message_schema(message, within),
        FieldKind::Enum(names) => {
            let names: Vec<String> = names
                .values()
                .map(|value| value.name().to_owned())
                .collect();
            json!({"type": "string", "enum": names})
        }
        FieldKind::String | FieldKind::Bytes => json!({"type": "string"}),
        FieldKind::Bool => json!({"type": "boolean"}),
        FieldKind::Double | FieldKind::Float => json!({"type": "number"}),
        FieldKind::Int32 | FieldKind::Sint32 | FieldKind::Sfixed32 => {
            json!({"type": "integer", "format": "int32"})
        }
        FieldKind::Uint32 | FieldKind::Fixed32 => {
            json!({"type": "integer", "minimum": 0, "maximum": u32::MAX})
        }
        // proto3 JSON writes numbers of 64 bits as text, people write them as numbers.
        FieldKind::Int64
        | FieldKind::Sint64
        | FieldKind::Sfixed64
        | FieldKind::Uint64
        | FieldKind::Fixed64 => json!({"x-kubernetes-int-or-string": true}),
    }
}

/// Messages that proto3 JSON writes in a form of their own.
fn well_known(name: &str) -> Option<Value> {
    Some(match name.strip_prefix("google.protobuf.")? {
        "Duration" | "FieldMask" | "StringValue" | "BytesValue" => json!({"type": "string"}),
        "Timestamp" => json!({"type": "string", "format": "date-time"}),
        "BoolValue" => json!({"type": "boolean"}),
        "DoubleValue" | "FloatValue" => json!({"type": "number"}),
        "Int32Value" => json!({"type": "integer", "format": "int32"}),
        "UInt32Value" => json!({"type": "integer", "minimum": 0, "maximum": u32::MAX}),
        "Int64Value" | "UInt64Value" => json!({"x-kubernetes-int-or-string": true}),
        "Struct" | "Any" => any_object(),
        "Value" => json!({"x-kubernetes-preserve-unknown-fields": true}),
        "ListValue" => {
            json!({"type": "array", "items": {"x-kubernetes-preserve-unknown-fields": true}})
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kind: &str) -> Value {
        let definitions = build();
        let found = definitions
            .iter()
            .find(|definition| definition["spec"]["names"]["kind"] == kind);
        found.unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
            .clone()
    }

    #[test]
    fn every_kind_has_a_definition_with_one_stored_version() {
        let definitions = build();
        assert_eq!(definitions.len(), proto::kind::KINDS.len() + 2);
        for definition in definitions {
            let versions = definition["spec"]["versions"].as_array().unwrap();
            let stored = versions.iter().filter(|version| version["storage"] == true);
            assert_eq!(stored.count(), 1, "{}", definition["metadata"]["name"]);
        }
    }

    #[test]
    fn schemas_say_what_the_contract_says() {
        let service = spec("VirtualService");
        let route = &service["properties"]["http"]["items"]["properties"];
        assert_eq!(route["timeout"], json!({"type": "string"}));
        assert_eq!(
            route["headers"]["properties"]["request"]["properties"]["set"],
            json!({"type": "object", "additionalProperties": {"type": "string"}})
        );
        let match_uri = &route["match"]["items"]["properties"]["uri"];
        assert_eq!(match_uri["oneOf"][1], json!({"required": ["exact"]}));
        // What may be anything stays as it is.
        assert_eq!(spec("handler")["properties"]["params"], any_object());
        assert_eq!(spec("adapter"), any_object());
    }

    /// Run what the file's first lines say when this fails.
    #[test]
    fn the_charts_definitions_are_current() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../helm/bireme-init/files/crds.yaml"
        );
        let written = std::fs::read_to_string(path).unwrap();
        assert!(
            written == to_yaml().unwrap(),
            "{path} is out of date: cargo run -p galley -- crds > helm/bireme-init/files/crds.yaml"
        );
    }
}
