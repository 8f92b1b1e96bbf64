//! `proxy-config secret`: the certificates a proxy holds. Private keys are never in a dump.

use serde_json::Value;
use x509_parser::pem::Pem;

use super::text;
use crate::table::Table;

/// The secrets of a `/config_dump`.
pub fn rows(dump: &Value) -> Table {
    let mut table = Table::new(&[
        "RESOURCE NAME",
        "TYPE",
        "STATUS",
        "VALID CERT",
        "SERIAL NUMBER",
        "NOT AFTER",
        "NOT BEFORE",
    ]);
    let sections = dump["configs"].as_array().into_iter().flatten();
    let sections = sections.filter(|section| {
        section["@type"]
            .as_str()
            .is_some_and(|name| name.ends_with(".SecretsConfigDump"))
    });
    for section in sections {
        for (list, status) in [
            ("static_secrets", "ACTIVE"),
            ("dynamic_active_secrets", "ACTIVE"),
            ("dynamic_warming_secrets", "WARMING"),
        ] {
            for item in section[list].as_array().into_iter().flatten() {
                row(&mut table, &text(&item["name"]), &item["secret"], status);
            }
        }
    }
    table.sort();
    table
}

fn row(table: &mut Table, name: &str, secret: &Value, status: &str) {
    let chain = &secret["tls_certificate"]["certificate_chain"]["inline_bytes"];
    let (kind, bytes) = match chain.as_str() {
        Some(chain) => ("Cert Chain", chain),
        None => (
            "CA",
            secret["validation_context"]["trusted_ca"]["inline_bytes"]
                .as_str()
                .unwrap_or_default(),
        ),
    };
    match certificate(bytes) {
        Some(certificate) => {
            let Certificate {
                is_valid,
                serial,
                not_after,
                not_before,
            } = certificate;
            table.row([
                name,
                kind,
                status,
                &is_valid.to_string(),
                &serial,
                &not_after,
                &not_before,
            ]);
        }
        None => table.row([name, kind, status, "false", "", "", ""]),
    }
}

struct Certificate {
    is_valid: bool,
    serial: String,
    not_after: String,
    not_before: String,
}

/// What the first certificate of a PEM chain, in base64, says of itself.
fn certificate(base64: &str) -> Option<Certificate> {
    use base64::Engine as _;
    let pem = base64::engine::general_purpose::STANDARD
        .decode(base64)
        .ok()?;
    let first = Pem::iter_from_buffer(&pem).next()?.ok()?;
    let certificate = first.parse_x509().ok()?;
    let validity = certificate.validity();
    let when = |time: x509_parser::time::ASN1Time| {
        time.to_datetime()
            .format(&time::format_description::well_known::Rfc3339)
            .unwrap_or_default()
    };
    Some(Certificate {
        is_valid: validity.is_valid(),
        serial: certificate
            .tbs_certificate
            .raw_serial()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
        not_after: when(validity.not_after),
        not_before: when(validity.not_before),
    })
}
