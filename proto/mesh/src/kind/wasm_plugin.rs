//! Rules of WasmPlugin: where the module is, and what it gets.

use std::collections::HashSet;

use proto::istio::extensions::v1alpha1::{EnvValueSource, VmConfig, WasmPlugin};

use crate::finding::Report;
use crate::kind::{selector, url};
use crate::port;
use crate::resource::Metadata;

const MAX_SECRET_NAME: usize = 253;
const MAX_NAME: usize = 256;

/// Reports what is wrong.
pub(super) fn check(spec: &WasmPlugin, _meta: &Metadata, report: &mut Report) {
    selector::check_target(
        spec.selector.as_ref(),
        spec.target_ref.as_ref(),
        &spec.target_refs,
        report,
    );
    report.require_at("url", check_url(&spec.url));
    if !spec.sha256.is_empty() {
        report.require_at("sha256", check_sha256(&spec.sha256));
    }
    for (field, text, most) in [
        ("imagePullSecret", &spec.image_pull_secret, MAX_SECRET_NAME),
        ("pluginName", &spec.plugin_name, MAX_NAME),
    ] {
        if text.len() > most {
            report.error_at(
                field,
                format!(
                    "the name has {} characters; at most {most} are allowed",
                    text.len()
                ),
            );
        }
    }
    if let Some(config) = &spec.vm_config {
        report.at("vmConfig", |report| check_environment(config, report));
    }
    report.each("match", &spec.r#match, |report, traffic| {
        report.each("ports", &traffic.ports, |report, selected| {
            report.require_at("number", port::check_number(selected.number));
        });
    });
}

fn check_url(address: &str) -> Result<(), String> {
    if address.is_empty() {
        return Err("the module's address is missing".into());
    }
    if address.starts_with('#') {
        return Err(format!("{address:?} is no URL"));
    }
    match url::check(address)?.as_str() {
        "" | "file" | "http" | "https" | "oci" => Ok(()),
        scheme => Err(format!(
            "modules are not read from {scheme:?}: give oci, http, https or file"
        )),
    }
}

fn check_sha256(digest: &str) -> Result<(), String> {
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if digest.len() == 64 && digest.bytes().all(is_hex) {
        return Ok(());
    }
    Err(format!(
        "{digest:?} is no SHA-256: give 64 hexadecimal digits in lower case"
    ))
}

fn check_environment(config: &VmConfig, report: &mut Report) {
    let mut names = HashSet::new();
    report.each("env", &config.env, |report, variable| {
        if variable.name.is_empty() {
            report.error_at("name", "the variable's name is missing");
        } else if variable.name.len() > MAX_NAME {
            report.error_at(
                "name",
                format!(
                    "the name has {} characters; at most {MAX_NAME} are allowed",
                    variable.name.len()
                ),
            );
        }
        if !names.insert(variable.name.clone()) {
            report.error_at(
                "name",
                format!("the variable {:?} is given twice", variable.name),
            );
        }
        if variable.value_from() != EnvValueSource::Inline && !variable.value.is_empty() {
            report.error_at("value", "a value can be given with valueFrom INLINE only");
        }
    });
}
