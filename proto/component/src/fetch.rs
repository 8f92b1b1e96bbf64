//! One small exchange over HTTP or HTTPS, with a deadline and without redirects: key sets, discovery documents, tokens.

use futures::future::BoxFuture;
use http::{Uri, header, uri::Scheme};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use std::{io, path::Path, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// The largest answer.
const LIMIT: usize = 1 << 20;
/// Where systems keep the authorities that they trust.
const SYSTEM: [&str; 2] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
];

/// Whom to trust.
#[derive(Clone, Copy, Debug)]
pub enum Roots<'a> {
    /// The authorities in this file.
    File(&'a Path),
    /// Those of the system, and those in these files that are there.
    SystemAnd(&'a [&'a str]),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The address cannot be asked.
    #[error("{0}")]
    Address(String),
    /// A file or the connection failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The answer was no good.
    #[error("{0}")]
    Answer(String),
    /// It took too long.
    #[error("no answer in time")]
    Deadline,
}

/// What `uri` answers with 200.
///
/// # Errors
/// When it does not, or not in time.
pub fn get<'a>(
    uri: &'a Uri,
    roots: Roots<'a>,
    deadline: Duration,
) -> BoxFuture<'a, Result<Vec<u8>, FetchError>> {
    Box::pin(async move {
        let request = http::Request::get(path(uri))
            .header(header::ACCEPT, "application/jwk-set+json, application/json");
        tokio::time::timeout(deadline, ask(uri, roots, request, String::new()))
            .await
            .map_err(|_| FetchError::Deadline)?
    })
}

/// What `uri` answers with 200 to the fields of a form.
///
/// # Errors
/// When it does not, or not in time.
pub fn post_form<'a>(
    uri: &'a Uri,
    form: String,
    authorization: Option<&'a str>,
    roots: Roots<'a>,
    deadline: Duration,
) -> BoxFuture<'a, Result<Vec<u8>, FetchError>> {
    Box::pin(async move {
        let mut request = http::Request::post(path(uri))
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(header::ACCEPT, "application/json");
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        tokio::time::timeout(deadline, ask(uri, roots, request, form))
            .await
            .map_err(|_| FetchError::Deadline)?
    })
}

fn path(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", |path| path.as_str())
}

async fn ask(
    uri: &Uri,
    roots: Roots<'_>,
    request: http::request::Builder,
    body: String,
) -> Result<Vec<u8>, FetchError> {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let request = request
        .header(header::HOST, authority)
        .body(Full::from(body))
        .map_err(|error| FetchError::Address(error.to_string()))?;
    let bad = |reason: &str| FetchError::Address(reason.to_owned());
    let host = uri.host().ok_or_else(|| bad("no host"))?;
    let host = host.trim_matches(['[', ']']);
    let is_tls = match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTPS => true,
        Some(scheme) if *scheme == Scheme::HTTP => false,
        _ => return Err(bad("neither http nor https")),
    };
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let stream = TcpStream::connect((host, port)).await?;
    if !is_tls {
        return exchange(stream, request).await.map_err(FetchError::Answer);
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|error| bad(&error.to_string()))?;
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(read_roots(roots)?)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name, stream).await?;
    exchange(stream, request).await.map_err(FetchError::Answer)
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: http::Request<Full<Bytes>>,
) -> Result<Vec<u8>, String> {
    let text = |error: hyper::Error| error.to_string();
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(text)?;
    // The connection is driven here, beside the exchange: no task outlives the deadline.
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(text)?;
        if response.status() != http::StatusCode::OK {
            return Err(format!("answered {}", response.status()));
        }
        let body = Limited::new(response.into_body(), LIMIT).collect().await;
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

fn read_roots(roots: Roots<'_>) -> io::Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    let mut add = |text: Vec<u8>| {
        let certificates = CertificateDer::pem_slice_iter(&text).filter_map(Result::ok);
        store.add_parsable_certificates(certificates);
    };
    match roots {
        Roots::File(file) => add(std::fs::read(file)?),
        Roots::SystemAnd(more) => {
            for file in more.iter().chain(&SYSTEM) {
                match std::fs::read(file) {
                    Ok(text) => add(text),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
    if store.is_empty() {
        let reason = "no CA certificates to verify the server with";
        return Err(io::Error::new(io::ErrorKind::NotFound, reason));
    }
    Ok(store)
}
