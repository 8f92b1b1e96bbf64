//! What a case changes under a running proxy: files that it watches, and the wait until it has noticed.

use crate::{case::Look, group::Place, process};
use anyhow::Context as _;
use indexmap::IndexMap;
use regex::Regex;
use serde_json::{Value, json};
use std::{
    path::Path,
    time::{Duration, Instant},
};
use tokio::time::sleep;

/// How long the proxy may take to notice.
const NOTICED: Duration = Duration::from_secs(20);

/// Makes a change in the middle of a case; what the proxy says if it does not notice in time.
///
/// # Errors
/// When a file can't be written or the admin interface does not answer.
pub async fn make(
    write: &IndexMap<String, String>,
    wait: Option<&Look>,
    place: &Place,
) -> anyhow::Result<Option<Value>> {
    replace(write, place)?;
    let Some(wait) = wait else { return Ok(None) };
    let (_, text, is_there) = ask(wait, place).await?;
    Ok((!is_there).then(|| json!({"not noticed": text})))
}

/// Replaces files as those who watch them expect it: by renaming.
///
/// # Errors
/// When one can't be written.
pub fn replace(files: &IndexMap<String, String>, place: &Place) -> anyhow::Result<()> {
    for (name, content) in files {
        let new = Path::new(&place.dir).join(format!("{name}.new"));
        std::fs::write(&new, content)?;
        std::fs::rename(new, Path::new(&place.dir).join(name))?;
    }
    Ok(())
}

/// The status, the text, and whether it is what the look waits for.
async fn ask(look: &Look, place: &Place) -> anyhow::Result<(u16, String, bool)> {
    let until = look
        .until
        .as_ref()
        .map(|until| Regex::new(until))
        .transpose()?;
    let method = if look.is_post { "POST" } else { "GET" };
    let start = Instant::now();
    loop {
        let (status, text) = process::ask(place.admin(), method, &look.get).await?;
        let is_there = until.as_ref().is_none_or(|until| until.is_match(&text));
        if is_there || start.elapsed() > NOTICED {
            return Ok((status, text, is_there));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Looks at the admin interface.
///
/// # Errors
/// When it does not answer, or not as the look expects.
pub async fn look(look: &Look, place: &Place) -> anyhow::Result<Value> {
    let (status, text, _) = ask(look, place).await?;
    let body = if let Some(lines) = &look.lines {
        let pattern = Regex::new(lines)?;
        let mut lines: Vec<&str> = text.lines().filter(|line| pattern.is_match(line)).collect();
        lines.sort_unstable();
        lines
            .iter()
            .map(|line| ((*line).to_owned(), json!("there")))
            .collect()
    } else if look.pick.is_empty() {
        serde_json::from_str(&text).unwrap_or(json!(text))
    } else {
        let value: Value =
            serde_json::from_str(&text).with_context(|| format!("{} is not JSON", look.get))?;
        look.pick
            .iter()
            .map(|path| (path.clone(), pick(&value, path)))
            .collect()
    };
    Ok(json!({"status": status, "body": body}))
}

/// The part of a JSON value at `a.b[*].c` or `a[name=x].b`.
fn pick(value: &Value, path: &str) -> Value {
    let path = path.trim_start_matches('.');
    if path.is_empty() {
        return value.clone();
    }
    if let Some(rest) = path.strip_prefix('[') {
        let Some((index, rest)) = rest.split_once(']') else {
            return Value::Null;
        };
        let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
        return if index == "*" {
            items.iter().map(|item| pick(item, rest)).collect()
        } else if let Some((key, wanted)) = index.split_once('=') {
            let found = items.iter().find(|item| {
                pick(item, key)
                    .as_str()
                    .is_some_and(|text| text.contains(wanted))
            });
            found.map_or(Value::Null, |item| pick(item, rest))
        } else {
            let item = index
                .parse::<usize>()
                .ok()
                .and_then(|index| items.get(index));
            item.map_or(Value::Null, |item| pick(item, rest))
        };
    }
    let end = path.find(['.', '[']).unwrap_or(path.len());
    value
        .get(&path[..end])
        .map_or(Value::Null, |value| pick(value, &path[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_value_is_picked_by_its_path() {
        let value = json!({"a": [{"name": "x", "b": 1}, {"name": "y", "b": 2}]});
        assert_eq!(pick(&value, "a[*].b"), json!([1, 2]));
        assert_eq!(pick(&value, "a[name=y].b"), json!(2));
        assert_eq!(pick(&value, "a[0].name"), json!("x"));
        assert_eq!(pick(&value, "b.c"), Value::Null);
    }
}
