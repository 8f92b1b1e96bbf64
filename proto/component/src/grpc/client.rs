//! A channel to another component: connects when first used and again after each failure.

use crate::tls::ClientTls;
use hyper_util::rt::TokioIo;
use std::{io, path::PathBuf, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tonic::transport::{Channel, Endpoint, Uri};

/// Timeouts of a channel.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// For TCP connect and TLS handshake together.
    pub connect_timeout: Duration,
    /// Interval between pings.
    pub keepalive_interval: Duration,
    /// How long to wait for the answer to a ping.
    pub keepalive_timeout: Duration,
    /// Deadline of each call (none for streams).
    pub call_timeout: Option<Duration>,
}

/// What is dialled.
#[derive(Clone)]
enum Target {
    Unix(PathBuf),
    /// `HOST:PORT`.
    Tcp(String),
}

/// A connection of any kind.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A target that cannot be dialled.
#[derive(Debug, thiserror::Error)]
#[error("`{target}` is not a gRPC target: {reason} (write HOST:PORT or unix:///PATH)")]
pub struct InvalidTarget {
    target: String,
    reason: String,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
            call_timeout: None,
        }
    }
}

/// A channel to `HOST:PORT` (also with `tcp://`, `http://`, `dns:///`) or `unix:///PATH`, plaintext or TLS.
///
/// Nothing is dialled until the first call; a call fails fast (`Unavailable`) when the connect does.
pub fn channel(
    target: &str,
    tls: Option<ClientTls>,
    options: &ClientOptions,
) -> Result<Channel, InvalidTarget> {
    let invalid = |reason: String| InvalidTarget {
        target: target.to_owned(),
        reason,
    };
    let (authority, target) = match target.strip_prefix("unix:") {
        Some(path) => {
            let path = PathBuf::from(path.strip_prefix("//").unwrap_or(path));
            ("localhost".to_owned(), Target::Unix(path))
        }
        None => {
            let authority = ["tcp://", "http://", "https://", "dns:///"]
                .iter()
                .find_map(|scheme| target.strip_prefix(scheme))
                .unwrap_or(target);
            if !authority
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
            {
                return Err(invalid("host and port are needed".to_owned()));
            }
            (authority.to_owned(), Target::Tcp(authority.to_owned()))
        }
    };
    let endpoint = endpoint(&authority, tls.is_some(), options).map_err(invalid)?;
    let tls = tls.filter(|_| matches!(target, Target::Tcp(_)));
    // One type of connector: tonic and HTTP/2 are compiled anew for each.
    let connector = tower::service_fn(move |uri: Uri| connect(target.clone(), tls.clone(), uri));
    Ok(endpoint.connect_with_connector_lazy(connector))
}

async fn connect(
    target: Target,
    tls: Option<ClientTls>,
    uri: Uri,
) -> io::Result<TokioIo<Box<dyn Io>>> {
    let stream: Box<dyn Io> = match (target, tls) {
        (Target::Unix(path), _) => Box::new(UnixStream::connect(path).await?),
        (Target::Tcp(authority), None) => Box::new(dial(&authority).await?),
        (Target::Tcp(authority), Some(tls)) => {
            let name = tls.server_name(uri.host().unwrap_or_default())?;
            let stream = dial(&authority).await?;
            Box::new(tls.connector().connect(name, stream).await?)
        }
    };
    Ok(TokioIo::new(stream))
}

fn endpoint(authority: &str, is_tls: bool, options: &ClientOptions) -> Result<Endpoint, String> {
    // The connector does TLS itself, so the endpoint must not look like one that tonic encrypts.
    let mut endpoint = Endpoint::from_shared(format!("http://{authority}"))
        .map_err(|error| error.to_string())?
        .connect_timeout(options.connect_timeout)
        .http2_keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(16 << 20);
    if is_tls {
        let origin = format!("https://{authority}").parse();
        endpoint =
            endpoint.origin(origin.map_err(|error: http::uri::InvalidUri| error.to_string())?);
    }
    if let Some(timeout) = options.call_timeout {
        endpoint = endpoint.timeout(timeout);
    }
    Ok(endpoint)
}

async fn dial(authority: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(authority).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
