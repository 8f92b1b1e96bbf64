//! `/certs`: the certificates in use and when they end.

use super::server::{Admin, Answer, Query};
use crate::transport::{CertificateDetails, DownstreamTransport, Secret, SecretSlot, Validation};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

pub(super) fn certs(admin: &Admin, _: &Query) -> Answer {
    let mut certificates = Vec::new();
    for slot in admin.store.secrets.all() {
        match slot.load().as_deref() {
            Some(Secret::KeyPair(pair)) => certificates.push(
                json!({ "ca_cert": [], "cert_chain": [certificate(&pair.details, &pair.path)] }),
            ),
            Some(Secret::Validation(validation)) => {
                certificates.push(json!({ "ca_cert": roots(validation), "cert_chain": [] }));
            }
            Some(Secret::TicketKeys(_)) | None => {}
        }
    }
    for listener in admin.store.listeners.map().by_name.values() {
        for chain in listener.config.load().chains.iter() {
            if let DownstreamTransport::Tls(context) = &chain.transport
                && context.slots().is_empty()
            {
                let pairs: Vec<Value> = context
                    .pairs()
                    .iter()
                    .map(|pair| certificate(&pair.details, &pair.path))
                    .collect();
                let roots = context.validation().map(roots).unwrap_or_default();
                certificates.push(json!({ "ca_cert": roots, "cert_chain": pairs }));
            }
        }
    }
    Answer::Json(json!({ "certificates": certificates }))
}

fn roots(validation: &Validation) -> Vec<Value> {
    let path = validation.path();
    let roots = validation.details.iter();
    roots.map(|root| certificate(root, path)).collect()
}

fn certificate(details: &CertificateDetails, path: &str) -> Value {
    let names: Vec<Value> = details
        .dns_sans
        .iter()
        .map(|name| json!({ "dns": name }))
        .chain(details.uri_sans.iter().map(|name| json!({ "uri": name })))
        .chain(
            details
                .ip_sans
                .iter()
                .map(|name| json!({ "ip_address": name })),
        )
        .collect();
    json!({
        "path": path,
        "serial_number": details.serial,
        "subject_alt_names": names,
        "days_until_expiration": days(details).to_string(),
        "valid_from": timestamp(details.not_before),
        "expiration_time": timestamp(details.not_after),
    })
}

fn days(details: &CertificateDetails) -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    u64::try_from(details.not_after)
        .unwrap_or(0)
        .saturating_sub(now)
        / 86_400
}

/// Days until the certificate of a secret ends.
pub(super) fn days_left(slot: &SecretSlot) -> Option<u64> {
    match slot.load().as_deref()? {
        Secret::KeyPair(pair) => Some(days(&pair.details)),
        Secret::Validation(validation) => validation.details.iter().map(days).min(),
        Secret::TicketKeys(_) => None,
    }
}

/// RFC 3339 in UTC.
fn timestamp(seconds: i64) -> String {
    super::config_dump::timestamp(
        UNIX_EPOCH + std::time::Duration::from_secs(u64::try_from(seconds).unwrap_or(0)),
    )
}
