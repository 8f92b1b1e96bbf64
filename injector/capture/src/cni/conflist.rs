//! The node's network configuration as text: the plugin's entry put into a chain, and taken out again. Pure; everything else in
//! the file stays as it is.

use serde_json::{Value, json};

/// The plugin's type, which is the name of its program.
pub const TYPE: &str = "istio-cni";
/// A network made from one plugin alone has a name that every runtime takes.
const NETWORK: &str = "k8s-pod-network";

/// Why a file is no network configuration that could be extended.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConf {
    /// It is no JSON.
    #[error("no JSON: {0}")]
    Json(String),
    /// It is JSON, but no configuration.
    #[error("{0}")]
    Shape(&'static str),
}

/// The configuration in `text` as a list of plugins: a single plugin becomes a list of one.
///
/// # Errors
/// When it is no network configuration.
pub fn parse(text: &str) -> Result<Value, InvalidConf> {
    let found: Value =
        serde_json::from_str(text).map_err(|error| InvalidConf::Json(error.to_string()))?;
    match (&found["plugins"], &found["type"]) {
        (Value::Array(plugins), _) if plugins.is_empty() => {
            Err(InvalidConf::Shape("plugins is empty"))
        }
        (Value::Array(plugins), _) if plugins.iter().all(|plugin| plugin["type"].is_string()) => {
            Ok(found)
        }
        (Value::Array(_), _) => Err(InvalidConf::Shape("a plugin has no type")),
        (Value::Null, Value::String(_)) => Ok(list_of(found)),
        _ => Err(InvalidConf::Shape("neither plugins nor type is there")),
    }
}

fn list_of(mut plugin: Value) -> Value {
    let mut take = |key| plugin.as_object_mut()?.shift_remove(key);
    let version = take("cniVersion").unwrap_or_else(|| json!("0.3.1"));
    let name = take("name").unwrap_or_else(|| json!(NETWORK));
    json!({"cniVersion": version, "name": name, "plugins": [plugin]})
}

/// The list with `entry` as the last plugin of the chain, in the place of an earlier one of ours.
#[must_use]
pub fn insert(list: &Value, entry: &Value) -> Value {
    let mut list = remove(list);
    let mut entry = entry.clone();
    // Both are the list's.
    if let Some(fields) = entry.as_object_mut() {
        fields.shift_remove("cniVersion");
        fields.shift_remove("name");
    }
    if let Some(plugins) = list["plugins"].as_array_mut() {
        plugins.push(entry);
    }
    list
}

/// The list without our entry.
#[must_use]
pub fn remove(list: &Value) -> Value {
    let mut list = list.clone();
    if let Some(plugins) = list["plugins"].as_array_mut() {
        plugins.retain(|plugin| plugin["type"] != TYPE);
    }
    list
}

/// Whether our entry is all that there is: a network of its own, not somebody else's to extend.
#[must_use]
pub fn is_ours_alone(list: &Value) -> bool {
    let plugins = list["plugins"].as_array();
    plugins.is_some_and(|plugins| plugins.iter().all(|plugin| plugin["type"] == TYPE))
}

/// The list as the file's text.
#[must_use]
pub fn text(list: &Value) -> String {
    format!("{list:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_the_file_stays_as_it_is() {
        let list = parse(
            r#"{"name": "net", "cniVersion": "0.4.0", "disableCheck": true,
                "plugins": [{"type": "bridge", "z": 1, "a": {"b": [2]}}, {"type": "portmap"}]}"#,
        )
        .unwrap();
        let entry =
            json!({"cniVersion": "0.3.1", "name": "istio-cni", "type": TYPE, "log_level": "info"});
        let with = insert(&list, &entry);
        assert_eq!(
            with["plugins"][2],
            json!({"type": TYPE, "log_level": "info"})
        );
        assert_eq!(insert(&with, &entry), with, "a second time changes nothing");
        assert_eq!(
            text(&remove(&with)),
            text(&list),
            "the order of keys is kept too"
        );
        assert!(!is_ours_alone(&with) && is_ours_alone(&insert(&json!({"plugins": []}), &entry)));
    }

    #[test]
    fn a_single_plugin_becomes_a_list() {
        let list = parse(
            r#"{"cniVersion": "0.3.1", "name": "flannel", "type": "flannel", "delegate": {}}"#,
        )
        .unwrap();
        let want = json!({
            "cniVersion": "0.3.1", "name": "flannel", "plugins": [{"type": "flannel", "delegate": {}}],
        });
        assert_eq!(list, want);
        assert_eq!(parse(r#"{"type": "ptp"}"#).unwrap()["name"], NETWORK);
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{"plugins": []}"#,
            r#"{"plugins": [{}]}"#,
            r#"{"plugins": 3, "type": "x"}"#,
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
