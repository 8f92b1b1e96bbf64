//! `x-forwarded-client-cert`: who the client is, by its certificate.

use http::HeaderValue;
use proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as hcm;

use crate::http::config::ClientCertRules;
use crate::http::headers::{RequestHeaders, names};
use crate::listener::{ConnectionInfo, PeerCertificate, TlsInfo};
use crate::transport::url_encoded_pem;

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
    for uri in &tls.local.uri_sans {
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
        // Its quotes are escaped already.
        put("Subject", &format!("\"{}\"", peer.subject));
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
