//! Overlays: changes to rendered objects by path (`spec.template.spec.containers.[name:discovery].env.[-1]`), as an
//! IstioOperator's `k8s.overlays` write them.

use proto_component::process::Usage;
use serde_json::{Map, Value};

/// Changes to one object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Overlay {
    /// `Deployment`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Paths with what to put there; null takes away.
    pub patches: Vec<(String, Value)>,
}

/// A step on the way of a path.
enum Step<'a> {
    Field(&'a str),
    /// `[0]`, or `[-1]` for a new item at the end.
    Index(i64),
    /// `[name:value]`
    With(&'a str, &'a str),
    /// `[value]`
    Item(&'a str),
}

/// Changes the object that the overlay names.
pub(crate) fn apply(objects: &mut [Value], overlay: &Overlay) -> Result<(), Usage> {
    let (kind, name) = (&overlay.kind, &overlay.name);
    let object = objects
        .iter_mut()
        .find(|object| object["kind"] == *kind && object["metadata"]["name"] == *name)
        .ok_or_else(|| Usage(format!("overlay: no {kind} {name} is rendered")))?;
    for (path, value) in &overlay.patches {
        set(object, path, value)
            .map_err(|problem| Usage(format!("overlay of {kind} {name}: {path}: {problem}")))?;
    }
    Ok(())
}

fn set(root: &mut Value, path: &str, value: &Value) -> Result<(), String> {
    let steps = parse(path)?;
    let (last, way) = steps.split_last().ok_or("the path is empty")?;
    let mut at = root;
    for step in way {
        at = enter(at, step)?;
    }
    match (last, value) {
        (Step::Field(name), Value::Null) => {
            if let Some(fields) = at.as_object_mut() {
                fields.remove(*name);
            }
        }
        (Step::Index(-1), value) => match at {
            Value::Array(items) => items.push(value.clone()),
            Value::Null => *at = Value::Array(vec![value.clone()]),
            _ => return Err("[-1] wants a list".to_owned()),
        },
        (Step::Field(_), value) => *enter(at, last)? = value.clone(),
        (step, Value::Null) => {
            let index = position(at, step)?;
            at.as_array_mut().ok_or("not a list")?.remove(index);
        }
        (step, value) => *enter(at, step)? = value.clone(),
    }
    Ok(())
}

fn enter<'a>(at: &'a mut Value, step: &Step<'_>) -> Result<&'a mut Value, String> {
    if let Step::Field(name) = step {
        if at.is_null() {
            *at = Value::Object(Map::new());
        }
        let fields = at
            .as_object_mut()
            .ok_or_else(|| format!("{name}: not in a map"))?;
        return Ok(fields.entry(*name).or_insert(Value::Null));
    }
    let index = position(at, step)?;
    at.get_mut(index).ok_or_else(|| "no such item".to_owned())
}

fn position(at: &Value, step: &Step<'_>) -> Result<usize, String> {
    let items = at.as_array().ok_or("not a list")?;
    let text = |value: &Value, wanted: &str| {
        let shown = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        shown == wanted
    };
    let found = match step {
        Step::Index(index) => usize::try_from(*index)
            .ok()
            .filter(|index| *index < items.len()),
        Step::With(key, wanted) => items.iter().position(|item| text(&item[*key], wanted)),
        Step::Item(wanted) => items.iter().position(|item| text(item, wanted)),
        Step::Field(_) => None,
    };
    found.ok_or_else(|| "no such item".to_owned())
}

fn parse(path: &str) -> Result<Vec<Step<'_>>, String> {
    let mut steps = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        let (step, after) = if let Some(inner) = rest.strip_prefix('[') {
            let (inner, after) = inner.split_once(']').ok_or("a [ has no ]")?;
            let step = match (inner.parse(), inner.split_once(':')) {
                (Ok(index), _) => Step::Index(index),
                (_, Some((key, value))) => Step::With(key, value),
                _ => Step::Item(inner),
            };
            (step, after)
        } else {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            (Step::Field(&rest[..end]), &rest[end..])
        };
        steps.push(step);
        rest = after.strip_prefix('.').unwrap_or(after);
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_name_fields_and_items() {
        let before = json!({"spec": {"list": [{"name": "a", "value": 1}, {"name": "b"}], "names": ["web"], "gone": 1}});
        for (path, value, pointer, want) in [
            (
                "spec.list.[name:b].value",
                json!(2),
                "/spec/list/1/value",
                json!(2),
            ),
            (
                "spec.list[0].value",
                json!(3),
                "/spec/list/0/value",
                json!(3),
            ),
            (
                "spec.list.[-1]",
                json!({"name": "c"}),
                "/spec/list/2/name",
                json!("c"),
            ),
            (
                "spec.names.[web]",
                json!("net"),
                "/spec/names/0",
                json!("net"),
            ),
            ("spec.new.deep", json!(true), "/spec/new/deep", json!(true)),
            (
                "spec.list.[name:a]",
                Value::Null,
                "/spec/list/0/name",
                json!("b"),
            ),
        ] {
            let mut object = before.clone();
            set(&mut object, path, &value).unwrap();
            assert_eq!(object.pointer(pointer), Some(&want), "{path}");
        }
        let mut object = before;
        set(&mut object, "spec.gone", &Value::Null).unwrap();
        assert!(object["spec"].get("gone").is_none());
        assert!(set(&mut object, "spec.list.[name:z].x", &json!(1)).is_err());
    }
}
