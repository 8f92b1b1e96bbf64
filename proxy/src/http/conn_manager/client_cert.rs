//! `x-forwarded-client-cert`: who the client is, by its certificate.

use base64::Engine as _;
use http::HeaderValue;
use proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as hcm;

use crate::http::config::ClientCertRules;
use crate::http::headers::{RequestHeaders, names};
use crate::listener::{ConnectionInfo, PeerCertificate, TlsInfo};

/// Removes, keeps, extends or replaces the header.
pub(super) fn set(
    rules: &ClientCertRules,
    headers: &mut RequestHeaders,
    connection: &ConnectionInfo,
) {
    use hcm::ForwardClientCertDetails as Mode;
    if rules.mode == Mode::AlwaysForwardOnly {
        return;
    }
    let tls = connection.tls.as_deref();
    let peer = tls.and_then(|tls| tls.peer.as_deref());
    let (Some(tls), Some(peer)) = (tls, peer) else {
        headers.map.remove(&names::X_FORWARDED_CLIENT_CERT);
        return;
    };
    match rules.mode {
        Mode::Sanitize => {
            headers.map.remove(&names::X_FORWARDED_CLIENT_CERT);
        }
        Mode::ForwardOnly | Mode::AlwaysForwardOnly => {}
        Mode::AppendForward | Mode::SanitizeSet => {
            let mut text = String::new();
            if rules.mode == Mode::AppendForward
                && let Some(present) = headers.text(&names::X_FORWARDED_CLIENT_CERT)
            {
                text.push_str(present);
                text.push(',');
            }
            describe(&rules.details, tls, peer, &mut text);
            if let Ok(value) = HeaderValue::try_from(text) {
                headers
                    .map
                    .insert(names::X_FORWARDED_CLIENT_CERT.clone(), value);
            }
        }
    }
}

fn describe(
    details: &hcm::SetCurrentClientCertDetails,
    tls: &TlsInfo,
    peer: &PeerCertificate,
    out: &mut String,
) {
    let mut separator = "";
    let mut put = |key: &str, value: &str| {
        for text in [separator, key, "=", value] {
            out.push_str(text);
        }
        separator = ";";
    };
    for uri in tls.local_uri_sans.iter() {
        put("By", uri);
    }
    if !peer.sha256.is_empty() {
        put("Hash", &peer.sha256);
    }
    if details.cert
        && let Some(leaf) = peer.chain.first()
    {
        put(
            "Cert",
            &format!("\"{}\"", url_encoded_pem(std::slice::from_ref(leaf))),
        );
    }
    if details.chain {
        put("Chain", &format!("\"{}\"", url_encoded_pem(&peer.chain)));
    }
    if details.subject == Some(true) {
        put(
            "Subject",
            &format!("\"{}\"", peer.subject.replace('"', "\\\"")),
        );
    }
    if details.uri {
        for uri in &peer.uri_sans {
            put("URI", uri);
        }
        if peer.uri_sans.is_empty() {
            put("URI", "");
        }
    }
    if details.dns {
        for name in &peer.dns_sans {
            put("DNS", name);
        }
    }
}

/// Certificates as PEM, percent-encoded.
fn url_encoded_pem(chain: &[Vec<u8>]) -> String {
    let mut pem = String::new();
    for certificate in chain {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let text = base64::engine::general_purpose::STANDARD.encode(certificate);
        for line in text.as_bytes().chunks(64) {
            pem.push_str(std::str::from_utf8(line).unwrap_or_default());
            pem.push('\n');
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    let mut out = String::with_capacity(pem.len() * 5 / 4);
    for c in pem.chars() {
        match c {
            '\n' => out.push_str("%0A"),
            ' ' => out.push_str("%20"),
            '+' => out.push_str("%2B"),
            '/' => out.push_str("%2F"),
            '=' => out.push_str("%3D"),
            c => out.push(c),
        }
    }
    out
}
