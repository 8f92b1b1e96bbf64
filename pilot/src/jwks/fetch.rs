//! One small GET with a deadline, without redirects.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::KeySource;

const DEADLINE: Duration = Duration::from_secs(5);
const LIMIT: usize = 1 << 20;
/// CA bundles: what an operator adds, then the system's.
const BUNDLES: &[&str] = &[
    "/cacerts/extra.pem",
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
];

/// The text of a key set.
pub(super) async fn fetch(source: &KeySource) -> Result<String, String> {
    let outcome = async {
        let uri = match source {
            KeySource::Uri(uri) => uri.clone(),
            KeySource::Issuer(issuer) => discover(issuer).await?,
        };
        let text = get(&uri).await?;
        let parsed: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| format!("{uri}: {error}"))?;
        match parsed.get("keys").and_then(serde_json::Value::as_array) {
            Some(_) => Ok(text),
            None => Err(format!("{uri}: not a key set: it has no keys")),
        }
    };
    tokio::time::timeout(DEADLINE, outcome)
        .await
        .map_err(|_| "no answer in time".to_owned())?
}

/// The `jwks_uri` of an issuer's discovery document.
async fn discover(issuer: &str) -> Result<String, String> {
    let uri = format!(
        "{}/.well-known/openid-configuration",
        issuer.trim_end_matches('/')
    );
    let text = get(&uri).await?;
    let document: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| format!("{uri}: {error}"))?;
    document
        .get("jwks_uri")
        .and_then(serde_json::Value::as_str)
        .map(str::to_owned)
        .ok_or_else(|| format!("{uri}: no jwks_uri"))
}

async fn get(text: &str) -> Result<String, String> {
    let uri: http::Uri = text.parse().map_err(|error| format!("{text}: {error}"))?;
    let host = uri.host().ok_or_else(|| format!("{text}: no host"))?;
    let host = host.trim_matches(['[', ']']).to_owned();
    let is_tls = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(format!("{text}: neither http nor https")),
    };
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let said = |error: &dyn std::fmt::Display| format!("{text}: {error}");
    let stream = TcpStream::connect((host.as_str(), port))
        .await
        .map_err(|error| said(&error))?;
    if !is_tls {
        return request(stream, &uri).await.map_err(|error| said(&error));
    }
    let name = ServerName::try_from(host).map_err(|error| said(&error))?;
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots())
        .with_no_client_auth();
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|error| said(&error))?;
    request(stream, &uri).await.map_err(|error| said(&error))
}

async fn request(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    uri: &http::Uri,
) -> Result<String, String> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let request = http::Request::get(path)
        .header(http::header::HOST, authority)
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let exchange = async move {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        if response.status() != http::StatusCode::OK {
            return Err(format!("answered {}", response.status()));
        }
        let body = Limited::new(response.into_body(), LIMIT).collect().await;
        let bytes = body.map_err(|error| error.to_string())?.to_bytes();
        String::from_utf8(bytes.to_vec()).map_err(|error| error.to_string())
    };
    tokio::pin!(connection, exchange);
    let mut is_open = true;
    loop {
        tokio::select! {
            outcome = &mut exchange => return outcome,
            // A failure of the connection shows in the exchange as well.
            _ = &mut connection, if is_open => is_open = false,
        }
    }
}

fn roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for file in BUNDLES {
        if let Ok(text) = std::fs::read(file) {
            roots.add_parsable_certificates(
                CertificateDer::pem_slice_iter(&text).filter_map(Result::ok),
            );
        }
    }
    roots
}
