//! The values of `local up`: the Helm chart's keys. Defaults lie in `manifests/values.yaml`, which is also the list of
//! what may be set; `-f` files and `--set` go over them, in that order.

use proto_component::process::Usage;
use serde_json::{Map, Value};

const DEFAULTS: &str = include_str!("manifests/values.yaml");

/// The merged values.
pub(crate) fn load(files: &[(String, String)], settings: &[String]) -> anyhow::Result<Value> {
    let mut values = parse("default values", DEFAULTS)?;
    let known = values.clone();
    for (name, text) in files {
        let over = parse(name, text)?;
        check_keys(&known, &over, "").map_err(|problem| Usage(format!("{name}: {problem}")))?;
        merge(&mut values, over);
    }
    for setting in settings {
        for part in split(setting, ',') {
            let over = parse_setting(&part)
                .map_err(|problem| Usage(format!("--set {part}: {problem}")))?;
            check_keys(&known, &over, "")
                .map_err(|problem| Usage(format!("--set {part}: {problem}")))?;
            merge(&mut values, over);
        }
    }
    // The switch of both halves.
    if !is_on(&values, "mixer.enabled") {
        for half in ["policy", "telemetry"] {
            values["mixer"][half]["enabled"] = Value::Bool(false);
        }
    }
    Ok(values)
}

fn parse(name: &str, text: &str) -> anyhow::Result<Value> {
    let mut documents = proto::yaml::parse_documents(text);
    match documents.len() {
        0 => Ok(Value::Object(Map::new())),
        1 => match documents.remove(0) {
            Ok(document) => Ok(document.value),
            Err(error) => Err(Usage(format!("{name}: {error}")).into()),
        },
        count => Err(Usage(format!("{name}: {count} documents where one is wanted")).into()),
    }
}

/// `a.b.c=value`, with Helm's types: true, false, null, integers; lists as `{x,y}`; `\.` in a key is a dot.
pub(crate) fn parse_setting(setting: &str) -> Result<Value, String> {
    let (path, text) = setting.split_once('=').ok_or("write KEY=VALUE")?;
    let scalar = |text: &str| match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        "null" => Value::Null,
        text => text
            .parse::<i64>()
            .map_or_else(|_| Value::from(text), Value::from),
    };
    let value = match text
        .strip_prefix('{')
        .and_then(|text| text.strip_suffix('}'))
    {
        Some("") => Value::Array(Vec::new()),
        Some(items) => Value::Array(items.split(',').map(scalar).collect()),
        None => scalar(text),
    };
    let keys = split(path, '.');
    if keys.iter().any(String::is_empty) {
        return Err("the key has an empty part".into());
    }
    Ok(keys.into_iter().rev().fold(value, |value, key| {
        Value::Object(Map::from_iter([(key, value)]))
    }))
}

/// Splits at `separator`, but not after a backslash or within braces.
pub(crate) fn split(text: &str, separator: char) -> Vec<String> {
    let (mut parts, mut part, mut escaped, mut depth) = (Vec::new(), String::new(), false, 0);
    for character in text.chars() {
        match character {
            _ if escaped => {
                if character != separator {
                    part.push('\\');
                }
                part.push(character);
                escaped = false;
            }
            '\\' => escaped = true,
            _ if character == separator && depth == 0 => parts.push(std::mem::take(&mut part)),
            _ => {
                depth += i32::from(character == '{') - i32::from(character == '}');
                part.push(character);
            }
        }
    }
    parts.push(part);
    parts
}

/// Every key must be one that has a default.
fn check_keys(known: &Value, over: &Value, path: &str) -> Result<(), String> {
    let (Some(known), Some(over)) = (known.as_object(), over.as_object()) else {
        let wants_map = known.is_object() && !known.as_object().is_some_and(Map::is_empty);
        return if wants_map && !over.is_null() {
            Err(format!("{path} takes keys, not a value"))
        } else {
            Ok(())
        };
    };
    // An empty default takes whatever it is given.
    if known.is_empty() {
        return Ok(());
    }
    for (key, value) in over {
        let path = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        match known.get(key) {
            Some(known) => check_keys(known, value, &path)?,
            None => {
                let candidates = known.keys().map(String::as_str);
                let hint = closest(key, candidates).map_or_else(
                    || {
                        format!(
                            "known here: {}",
                            known.keys().cloned().collect::<Vec<_>>().join(", ")
                        )
                    },
                    |close| format!("did you mean {close}?"),
                );
                return Err(format!("unknown key {path}; {hint}"));
            }
        }
    }
    Ok(())
}

/// Lays `over` on `values`: maps are merged, everything else replaced.
pub(crate) fn merge(values: &mut Value, over: Value) {
    match (values, over) {
        (Value::Object(values), Value::Object(over)) => {
            for (key, value) in over {
                merge(values.entry(key).or_insert(Value::Null), value);
            }
        }
        (values, over) => *values = over,
    }
}

/// The candidate that is most like `word`, if any is like it at all.
pub(crate) fn closest<'a>(
    word: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let scored = candidates.map(|candidate| {
        (
            distance(&word.to_lowercase(), &candidate.to_lowercase()),
            candidate,
        )
    });
    scored
        .filter(|(distance, candidate)| *distance <= (candidate.len().max(word.len())) / 3 + 1)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, left) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (column, right) in right.iter().enumerate() {
            let substitute = diagonal + usize::from(left != *right);
            diagonal = row[column + 1];
            row[column + 1] = substitute.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}

/// A switch such as `mixer.policy.enabled`.
pub(crate) fn is_on(values: &Value, path: &str) -> bool {
    path.split('.').fold(values, |value, key| &value[key]) == true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_go_over_files_over_defaults() {
        let file = (
            "v.yaml".to_owned(),
            "mixer:\n  policy: {enabled: false}\nglobal: {tag: x}\n".to_owned(),
        );
        let values = load(&[file], &["global.tag=y,pilot.env.PILOT_X=1".into()]).unwrap();
        assert!(
            !is_on(&values, "mixer.policy.enabled") && is_on(&values, "mixer.telemetry.enabled")
        );
        assert_eq!(values["global"]["tag"], "y");
        assert_eq!(values["pilot"]["env"]["PILOT_X"], 1);
        let values = load(
            &[],
            &["mixer.enabled=false,mixer.policy.enabled=true".into()],
        )
        .unwrap();
        let halves = ["policy", "telemetry"].map(|half| format!("mixer.{half}.enabled"));
        assert!(halves.iter().all(|half| !is_on(&values, half)));
    }

    #[test]
    fn an_unknown_key_is_refused_with_a_suggestion() {
        let error = load(&[], &["mixer.polcy.enabled=false".into()])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("unknown key mixer.polcy; did you mean policy?"),
            "{error}"
        );
        let error = load(&[], &["mixr.policy.enabled=false".into()])
            .unwrap_err()
            .to_string();
        assert!(error.contains("did you mean mixer?"), "{error}");
        assert!(load(&[], &["mixer=false".into()]).is_err());
        assert!(load(&[], &["mixer".into()]).is_err());
    }

    #[test]
    fn lists_and_escapes_are_helms() {
        assert_eq!(
            parse_setting("a.b={x,2}").unwrap(),
            serde_json::json!({"a": {"b": ["x", 2]}})
        );
        assert_eq!(
            parse_setting("a\\.b=true").unwrap(),
            serde_json::json!({"a.b": true})
        );
        assert_eq!(split("a=1,b={x,y}", ','), ["a=1", "b={x,y}"]);
    }
}
