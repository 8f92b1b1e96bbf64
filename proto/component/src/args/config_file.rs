//! A YAML config file merged under the flags, as Istio's `--config` does: a key is a flag's long name (nested keys joined
//! with a dot, or an alias), and a flag on the command line wins.

use crate::process::Usage;
use clap::{CommandFactory, Parser};
use std::{ffi::OsString, path::Path};

/// Where the file's path comes from and what its keys mean.
#[derive(Clone, Copy, Debug)]
pub struct ConfigFile {
    /// Long name of the flag that holds the path (`config`).
    pub flag: &'static str,
    /// Its short form, if any.
    pub short: Option<char>,
    /// Aliases: (`general.insecure`, `insecure`).
    pub aliases: &'static [(&'static str, &'static str)],
}

/// Parses the arguments; where the config file's flag is given, the file's settings are put underneath.
/// Problems of the flags themselves end the process as clap does (exit code 2).
pub fn parse_over_config_file<P: Parser + CommandFactory>(
    arguments: impl IntoIterator<Item = OsString>,
    file: ConfigFile,
) -> anyhow::Result<P> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let Some(path) = find_path(&arguments, file) else {
        return Ok(P::parse_from(arguments));
    };
    let text = std::fs::read_to_string(&path)
        .map_err(|error| Usage(format!("--{} {path}: {error}", file.flag)))?;
    let settings = read_settings(&text, Path::new(&path), file)?;
    let known = flags_of(&P::command(), &arguments);
    for (flag, value) in settings {
        if !known.contains(&flag) {
            return Err(Usage(format!("{path}: this command has no setting `{flag}`")).into());
        }
        let given = arguments.iter().any(|argument| {
            argument
                .to_str()
                .and_then(|a| a.strip_prefix("--"))
                .is_some_and(|a| a.split('=').next() == Some(flag.as_str()))
        });
        if !given {
            arguments.push(format!("--{flag}={value}").into());
        }
    }
    Ok(P::parse_from(arguments))
}

fn find_path(arguments: &[OsString], file: ConfigFile) -> Option<String> {
    let long = format!("--{}", file.flag);
    let short = file.short.map(|c| format!("-{c}"));
    let mut arguments = arguments.iter().filter_map(|argument| argument.to_str());
    while let Some(argument) = arguments.next() {
        if argument == long || Some(argument) == short.as_deref() {
            return arguments.next().map(str::to_owned);
        }
        if let Some(path) = argument
            .strip_prefix(&long)
            .and_then(|a| a.strip_prefix('='))
        {
            return Some(path.to_owned());
        }
    }
    None
}

fn read_settings(
    text: &str,
    path: &Path,
    file: ConfigFile,
) -> Result<Vec<(String, String)>, Usage> {
    let value: serde_json::Value = serde_saphyr::from_str(text)
        .map_err(|error| Usage(format!("{}: {error}", path.display())))?;
    let mut settings = Vec::new();
    flatten(String::new(), &value, &mut settings)
        .map_err(|key| Usage(format!("{}: `{key}` has no plain value", path.display())))?;
    for (key, _) in &mut settings {
        if let Some((_, flag)) = file.aliases.iter().find(|(alias, _)| alias == key) {
            *key = (*flag).to_owned();
        }
    }
    Ok(settings)
}

fn flatten(
    prefix: String,
    value: &serde_json::Value,
    into: &mut Vec<(String, String)>,
) -> Result<(), String> {
    use serde_json::Value;
    match value {
        Value::Null => {}
        Value::Object(fields) => {
            for (key, value) in fields {
                let key = if prefix.is_empty() {
                    key.clone()
                } else {
                    format!("{prefix}.{key}")
                };
                flatten(key, value, into)?;
            }
        }
        Value::Array(items) => {
            let items: Option<Vec<String>> = items.iter().map(plain).collect();
            into.push((prefix.clone(), items.ok_or(prefix)?.join(",")));
        }
        value @ (Value::Bool(_) | Value::Number(_) | Value::String(_)) => {
            let text = plain(value).ok_or_else(|| prefix.clone())?;
            into.push((prefix, text));
        }
    }
    Ok(())
}

fn plain(value: &serde_json::Value) -> Option<String> {
    match value {
        serde_json::Value::String(text) => Some(text.clone()),
        serde_json::Value::Bool(flag) => Some(flag.to_string()),
        serde_json::Value::Number(number) => Some(number.to_string()),
        serde_json::Value::Null | serde_json::Value::Array(_) | serde_json::Value::Object(_) => {
            None
        }
    }
}

/// Long names of the flags of the command and of the subcommand that the arguments name.
fn flags_of(command: &clap::Command, arguments: &[OsString]) -> Vec<String> {
    let sub = arguments
        .iter()
        .skip(1)
        .filter_map(|argument| argument.to_str())
        .find_map(|name| command.find_subcommand(name));
    command
        .get_arguments()
        .chain(sub.into_iter().flat_map(clap::Command::get_arguments))
        .filter_map(|argument| argument.get_long().map(str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Parser)]
    struct Args {
        #[arg(long, short)]
        config: Option<String>,
        #[arg(long, default_value = "a")]
        domain: String,
        #[arg(long, default_value_t = 1)]
        port: u16,
    }

    const FILE: ConfigFile = ConfigFile {
        flag: "config",
        short: Some('c'),
        aliases: &[("general.domain", "domain")],
    };

    fn parse(yaml: &str, more: &[&str]) -> anyhow::Result<Args> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        std::fs::write(&path, yaml).unwrap();
        let mut arguments: Vec<OsString> = vec!["x".into(), "-c".into(), path.into_os_string()];
        arguments.extend(more.iter().map(OsString::from));
        parse_over_config_file(arguments, FILE)
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let args = parse("general: {domain: mesh}\nport: 7\n", &["--port", "9"]).unwrap();
        assert_eq!((args.domain.as_str(), args.port), ("mesh", 9));
        assert!(args.config.is_some());
    }

    #[test]
    fn an_unknown_setting_is_named() {
        let error = parse("colour: blue\n", &[]).unwrap_err().to_string();
        assert!(error.ends_with("no setting `colour`"), "{error}");
    }
}
