//! Whether a secret holds a certificate that a gateway can serve.

use super::super::super::Object;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;
use x509_parser::pem::Pem;

/// Names under which certificate and key may stand.
const PAIRS: [(&str, &str); 2] = [("tls.crt", "tls.key"), ("cert", "key")];

/// Whether certificate and key are there and the certificate is valid today.
pub(super) fn check(secret: &Object) -> Result<(), String> {
    for (certificate, key) in PAIRS {
        let (Some(certificate), Some(key)) = (read(secret, certificate), read(secret, key)) else {
            continue;
        };
        if key?.is_empty() {
            return Err("its key is empty".to_owned());
        }
        return check_certificate(&certificate?);
    }
    Err("it holds neither tls.crt and tls.key nor cert and key".to_owned())
}

fn read(secret: &Object, name: &str) -> Option<Result<Vec<u8>, String>> {
    if let Value::String(text) = &secret.value["stringData"][name] {
        return Some(Ok(text.clone().into_bytes()));
    }
    let text = secret.value["data"][name].as_str()?;
    Some(
        STANDARD
            .decode(text.trim())
            .map_err(|error| format!("{name}: {error}")),
    )
}

fn check_certificate(bytes: &[u8]) -> Result<(), String> {
    let mut count = 0;
    for pem in Pem::iter_from_buffer(bytes) {
        let pem = pem.map_err(|error| format!("the certificate is not PEM: {error}"))?;
        let certificate = pem
            .parse_x509()
            .map_err(|error| format!("the certificate cannot be read: {error}"))?;
        if !certificate.validity().is_valid() {
            return Err(format!(
                "the certificate is valid from {} to {} only",
                certificate.validity().not_before,
                certificate.validity().not_after
            ));
        }
        count += 1;
    }
    if count == 0 {
        return Err("the certificate is not PEM".to_owned());
    }
    Ok(())
}
