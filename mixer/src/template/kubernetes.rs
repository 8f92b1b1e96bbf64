//! The outputs of the `kubernetes` template, and the bindings that make attributes of them (`$out.source_pod_name`).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use proto_mesh::attribute::{ValueRef, ValueType};

use crate::attributes::{Bag, Slot, Unrecorded, Vocabulary};
use crate::lang::{self, Expression, Val};
use crate::pods::Pods;

/// How bindings name the outputs, and how they are known here.
const PREFIX: (&str, &str) = ("$out.", "output.");

/// An attribute that is made, and from what.
#[derive(Debug)]
pub(crate) struct Binding {
    slot: Slot,
    expression: Expression,
}

static OUTPUTS: LazyLock<Vocabulary> = LazyLock::new(|| {
    let mut declared = BTreeMap::new();
    for end in ["source", "destination"] {
        for (name, value_type) in [
            ("pod_ip", ValueType::IpAddress),
            ("pod_name", ValueType::String),
            ("pod_uid", ValueType::String),
            ("labels", ValueType::StringMap),
            ("namespace", ValueType::String),
            ("service_account_name", ValueType::String),
            ("host_ip", ValueType::IpAddress),
            ("workload_uid", ValueType::String),
            ("workload_name", ValueType::String),
            ("workload_namespace", ValueType::String),
            ("owner", ValueType::String),
        ] {
            declared.insert(format!("output.{end}_{name}"), value_type);
        }
    }
    declared.insert(
        "output.destination_container_name".to_owned(),
        ValueType::String,
    );
    Vocabulary::new(&declared)
});

/// Compiles the bindings of an instance; the error begins with the field's path.
pub(super) fn compile(
    bindings: &BTreeMap<String, String>,
    vocabulary: &Vocabulary,
) -> Result<Vec<Binding>, String> {
    let mut compiled = Vec::with_capacity(bindings.len());
    for (name, text) in bindings {
        let Some(attribute) = vocabulary.find(name) else {
            return Err(format!("{name}: no manifest declares this attribute"));
        };
        let text = text.replace(PREFIX.0, PREFIX.1);
        let expression = lang::compile_as(&text, attribute.value_type, &OUTPUTS)
            .map_err(|error| format!("{name}: {error}"))?;
        compiled.push(Binding {
            slot: attribute.slot,
            expression,
        });
    }
    Ok(compiled)
}

/// Gives the attributes that the bindings make of a handler's outputs to `each`. A binding whose outputs are missing makes
/// nothing.
pub(crate) fn bind<'a>(
    bindings: &'a [Binding],
    generated: &[(&'static str, ValueRef<'a>)],
    pods: &'a Pods,
    mut each: impl FnMut(Slot, ValueRef<'a>),
) {
    let vocabulary: &'static Vocabulary = &OUTPUTS;
    let mut outputs = Bag::new(vocabulary);
    for (name, value) in generated {
        if let Some(attribute) = vocabulary.find(name) {
            outputs.set(attribute.slot, *value);
        }
    }
    for binding in bindings {
        // Most outputs are missing where a pod is not known.
        let Ok(Some(value)) = binding.expression.eval_some(&outputs, &mut Unrecorded) else {
            continue;
        };
        let value = match value {
            Val::String(Cow::Borrowed(text)) => ValueRef::String(text),
            Val::Ip(ip) => match pods.bytes_of(ip) {
                Some(bytes) => ValueRef::Bytes(bytes),
                None => continue,
            },
            Val::StringMap(map) => ValueRef::StringMap(map),
            Val::Int64(number) => ValueRef::Int64(number),
            Val::Bool(flag) => ValueRef::Bool(flag),
            // A text put together from outputs has nobody to own it, and no use here.
            Val::String(Cow::Owned(_)) | Val::Double(_) | Val::Timestamp(_) | Val::Duration(_) => {
                continue;
            }
        };
        each(binding.slot, value);
    }
}
