//! Reads a key set from a file or over HTTP(S): one small GET with a deadline, no redirects.

use std::io;
use std::path::Path;
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

use super::jwks::{InvalidJwks, JwksSource};

const DEADLINE: Duration = Duration::from_secs(10);
const MAX_SIZE: usize = 1 << 20;
/// CA bundles to try for `https` without a CA file: a pod's cluster CA, then the system's.
const SYSTEM_BUNDLES: &[&str] = &[
    "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
];

/// Why keys could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// A file or a connection failed.
    #[error("{source_name}: {error}")]
    Io {
        /// The file or address.
        source_name: String,
        /// What the system said.
        error: io::Error,
    },
    /// The server's answer was no good.
    #[error("{url}: {reason}")]
    Http {
        /// The address.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// It took too long.
    #[error("{0}: no answer in time")]
    Deadline(String),
    /// What was read is no key set.
    #[error(transparent)]
    Invalid(#[from] InvalidJwks),
}

/// The text of the key set.
pub(super) async fn fetch(source: &JwksSource) -> Result<Vec<u8>, FetchError> {
    match source {
        JwksSource::File(path) => tokio::fs::read(path).await.map_err(|error| FetchError::Io {
            source_name: path.display().to_string(),
            error,
        }),
        JwksSource::Url { url, ca_file } => {
            tokio::time::timeout(DEADLINE, get(url, ca_file.as_deref()))
                .await
                .map_err(|_| FetchError::Deadline(url.to_string()))?
        }
    }
}

async fn get(url: &http::Uri, ca_file: Option<&Path>) -> Result<Vec<u8>, FetchError> {
    let io = |error| FetchError::Io {
        source_name: url.to_string(),
        error,
    };
    let bad = |reason: String| FetchError::Http {
        url: url.to_string(),
        reason,
    };
    let host = url.host().ok_or_else(|| bad("no host".to_owned()))?;
    let host = host.trim_matches(['[', ']']);
    let is_tls = url.scheme_str() == Some("https");
    let port = url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let stream = TcpStream::connect((host, port)).await.map_err(io)?;
    if !is_tls {
        return request(stream, url).await.map_err(bad);
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|error| bad(error.to_string()))?;
    let roots = read_roots(ca_file).map_err(io)?;
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(io)?;
    request(stream, url).await.map_err(bad)
}

async fn request(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    url: &http::Uri,
) -> Result<Vec<u8>, String> {
    let text = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(text)?;
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let request = http::Request::get(path)
        .header(
            http::header::HOST,
            url.authority().map_or("", |authority| authority.as_str()),
        )
        .header(
            http::header::ACCEPT,
            "application/jwk-set+json, application/json",
        )
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    // The connection is driven here, beside the exchange: no task outlives the deadline.
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(text)?;
        if response.status() != http::StatusCode::OK {
            return Err(format!("answered {}", response.status()));
        }
        let body = Limited::new(response.into_body(), MAX_SIZE).collect().await;
        let body = body.map_err(|error| error.to_string())?;
        Ok(body.to_bytes().to_vec())
    };
    let drive = async {
        // A failure of the connection shows in the exchange as well.
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        outcome = exchange => outcome,
        () = drive => Err("connection closed".to_owned()),
    }
}

fn read_roots(ca_file: Option<&Path>) -> io::Result<RootCertStore> {
    let files: Vec<&Path> = match ca_file {
        Some(file) => vec![file],
        None => SYSTEM_BUNDLES
            .iter()
            .map(Path::new)
            .filter(|file| file.exists())
            .collect(),
    };
    let mut roots = RootCertStore::empty();
    for file in files {
        let text = std::fs::read(file)?;
        let certificates = CertificateDer::pem_slice_iter(&text).filter_map(Result::ok);
        roots.add_parsable_certificates(certificates);
    }
    if roots.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "no CA certificates to verify the server with (set --oidc-ca-cert)",
        ));
    }
    Ok(roots)
}
