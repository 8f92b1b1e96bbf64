//! Tunneling: the bytes go through a proxy that is asked with CONNECT (or POST), on a connection of their own with HTTP/1.1, as a
//! stream of a shared one with HTTP/2.

use super::copy::Upstream;
use crate::{
    access_log::{Format, FormatContext},
    http::{
        h2::{Connection, FloodLimits, HeadLimits, Options, Requests, Tunnel},
        headers::{RequestHeaders, Scheme},
    },
    invalid::{At as _, Invalid},
    router::HeaderMutations,
    stream_info::StreamInfo,
    transport::{AlpnFallback, UpstreamStream},
    upstream::{Cluster, Host, PoolError, PoolErrorKind, Priority, TcpOptions, UpstreamProtocol},
    worker::Worker,
};
use bytes::{Buf as _, BytesMut};
use http::{HeaderMap, HeaderValue, Method, header, uri::PathAndQuery};
use proto::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::TunnelingConfig as Wire;
use std::{
    cell::RefCell,
    collections::HashMap,
    future::poll_fn,
    io,
    pin::Pin,
    rc::{Rc, Weak},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

/// The longest head of an answer.
const LONGEST_HEAD: usize = 64 << 10;
const MOST_HEADERS: usize = 100;

/// A checked `TunnelingConfig`.
pub(super) struct Tunneling {
    hostname: Format,
    post_path: Option<PathAndQuery>,
    headers: HeaderMutations,
}

/// What our end of a shared connection is like.
const OPTIONS: Options = Options {
    max_concurrent_streams: 0,
    stream_window: 1 << 20,
    connection_window: 1 << 24,
    head: HeadLimits {
        bytes: LONGEST_HEAD,
        count: MOST_HEADERS,
    },
    allows_connect_protocol: false,
    is_tolerant: true,
    flood: FloodLimits::USUAL,
};

/// A shared connection without tunnels ends after one to two of these.
const IDLE: Duration = Duration::from_secs(60);

/// The shared HTTP/2 connections of a worker, by host.
#[derive(Default)]
pub(crate) struct Tunnels(RefCell<HashMap<u64, Shared>>);

/// A shared connection; whoever holds a clone keeps it.
#[derive(Clone)]
struct Shared {
    sender: Requests,
    _in_use: Rc<()>,
}

/// A stream of an HTTP/2 connection.
pub(super) struct Http2Tunnel {
    tunnel: Tunnel,
    _connection: Shared,
}

impl TryFrom<&Wire> for Tunneling {
    type Error = Invalid;

    fn try_from(wire: &Wire) -> Result<Self, Invalid> {
        for (is_set, field) in [
            (
                wire.propagate_response_headers,
                "propagate_response_headers",
            ),
            (
                wire.propagate_response_trailers,
                "propagate_response_trailers",
            ),
            (wire.request_id_extension.is_some(), "request_id_extension"),
            (!wire.formatters.is_empty(), "formatters"),
        ] {
            if is_set {
                return Err(Invalid::new("not supported").at(field));
            }
        }
        if wire.hostname.is_empty() {
            return Err(Invalid::new("it is needed").at("hostname"));
        }
        if !wire.post_path.is_empty() && !wire.use_post {
            return Err(
                Invalid::new("Can't set a post path when POST method isn't used").at("post_path"),
            );
        }
        if !wire.post_path.is_empty() && !wire.post_path.starts_with('/') {
            return Err(Invalid::new("it must begin with a slash").at("post_path"));
        }
        let post_path = match wire.post_path.as_str() {
            "" => PathAndQuery::from_static("/"),
            path => PathAndQuery::try_from(path)
                .map_err(|error| Invalid::new(error.to_string()).at("post_path"))?,
        };
        Ok(Self {
            hostname: Format::parse(&wire.hostname).at("hostname")?,
            post_path: wire.use_post.then_some(post_path),
            headers: HeaderMutations::try_new(&wire.headers_to_add, &[]).at("headers_to_add")?,
        })
    }
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "errors are mapped by it, and those come by value"
)]
fn failed(text: impl ToString) -> PoolError {
    PoolError::new(PoolErrorKind::ConnectFailure, text.to_string())
}

impl Tunneling {
    /// Opens a tunnel through `host`, within the cluster's connect timeout.
    pub(super) async fn open(
        &self,
        worker: &Rc<Worker>,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        info: &StreamInfo,
    ) -> Result<Upstream, PoolError> {
        let opening = self.open_without_limit(worker, cluster, host, info);
        match tokio::time::timeout(cluster.config.connect_timeout, opening).await {
            Ok(outcome) => outcome,
            Err(_) => Err(PoolError::new(
                PoolErrorKind::ConnectTimeout,
                "connection timeout",
            )),
        }
    }

    async fn open_without_limit(
        &self,
        worker: &Rc<Worker>,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        info: &StreamInfo,
    ) -> Result<Upstream, PoolError> {
        let (authority, headers) = self.request(info);
        let authority = HeaderValue::try_from(authority).map_err(failed)?;
        let protocol = cluster.config.http.protocol;
        if protocol == UpstreamProtocol::Http2
            && let Some(shared) = worker.tunnels.ready(host.id).await
        {
            return self.http2(shared, authority, headers).await;
        }
        let alpn = match protocol {
            UpstreamProtocol::Http2 => AlpnFallback::Http2,
            UpstreamProtocol::Auto => AlpnFallback::Auto,
            UpstreamProtocol::Http1 | UpstreamProtocol::UseDownstream => AlpnFallback::Http1,
        };
        let options = TcpOptions {
            alpn,
            source: info.connection.upstream_source,
            client: Some(info.connection.addresses()),
        };
        let connected = worker
            .pools
            .tcp_with(cluster, host, Priority::Default, options)
            .await?;
        let is_http2 = protocol == UpstreamProtocol::Http2
            || (protocol == UpstreamProtocol::Auto && connected.stream.alpn() == Some(b"h2"));
        if is_http2 {
            cluster.stats.upstream_cx_http2_total.inc();
            let shared = worker
                .tunnels
                .start(Rc::downgrade(worker), cluster, host.id, connected.stream)
                .await?;
            return self.http2(shared, authority, headers).await;
        }
        cluster.stats.upstream_cx_http1_total.inc();
        self.http1(connected.stream, &authority, &headers).await
    }

    /// Whom to ask for, and with which further headers.
    fn request(&self, info: &StreamInfo) -> (String, HeaderMap) {
        let context = FormatContext::of(info);
        let authority = self.hostname.text(&context, "");
        let mut request = RequestHeaders {
            method: Method::CONNECT,
            scheme: Scheme::Http,
            authority: HeaderValue::from_static(""),
            path: http::uri::PathAndQuery::from_static("/"),
            upgrade: None,
            map: HeaderMap::new(),
        };
        self.headers.apply_to_request(&mut request, info);
        request.map.remove(header::HOST);
        (authority, request.map)
    }

    async fn http2(
        &self,
        shared: Shared,
        authority: HeaderValue,
        headers: HeaderMap,
    ) -> Result<Upstream, PoolError> {
        let (method, path) = match &self.post_path {
            None => (Method::CONNECT, PathAndQuery::from_static("/")),
            Some(path) => (Method::POST, path.clone()),
        };
        let request = RequestHeaders {
            method,
            scheme: Scheme::Http,
            authority,
            path,
            upgrade: None,
            map: headers,
        };
        let (mut receive, send) = shared.sender.send(&request, false).map_err(failed)?;
        let head = poll_fn(|context| receive.poll_head(context))
            .await
            .map_err(failed)?;
        if !head.status.is_success() {
            return Err(failed(format_args!("tunnel refused: {}", head.status)));
        }
        Ok(Upstream::Http2(Box::new(Http2Tunnel {
            tunnel: Tunnel::new(receive, send),
            _connection: shared,
        })))
    }

    async fn http1(
        &self,
        mut stream: UpstreamStream,
        authority: &HeaderValue,
        headers: &HeaderMap,
    ) -> Result<Upstream, PoolError> {
        if self.post_path.is_some() {
            return Err(failed("use_post needs an HTTP/2 cluster"));
        }
        let mut head = BytesMut::with_capacity(256);
        for part in [
            b"CONNECT ".as_slice(),
            authority.as_bytes(),
            b" HTTP/1.1\r\nhost: ",
            authority.as_bytes(),
            b"\r\n",
        ] {
            head.extend_from_slice(part);
        }
        for (name, value) in headers {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                head.extend_from_slice(part);
            }
        }
        head.extend_from_slice(b"\r\n");
        stream.write_all(&head).await.map_err(failed)?;
        stream.flush().await.map_err(failed)?;
        let mut answer = BytesMut::new();
        loop {
            if let Some(length) = answered(&answer)? {
                answer.advance(length);
                return Ok(Upstream::Stream(Box::new(stream), answer.freeze()));
            }
            if answer.len() > LONGEST_HEAD {
                return Err(failed("the answer's head is too long"));
            }
            if stream.read_buf(&mut answer).await.map_err(failed)? == 0 {
                return Err(failed("closed before it answered"));
            }
        }
    }
}

/// The length of the answer's head once it is whole; an error when it refuses.
fn answered(bytes: &[u8]) -> Result<Option<usize>, PoolError> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    match response.parse(bytes).map_err(failed)? {
        httparse::Status::Partial => Ok(None),
        httparse::Status::Complete(length) => match response.code {
            Some(200..=299) => Ok(Some(length)),
            code => Err(failed(format_args!(
                "tunnel refused: {}",
                code.unwrap_or(0)
            ))),
        },
    }
}

impl Tunnels {
    /// The shared connection to a host, if it takes another stream.
    async fn ready(&self, host: u64) -> Option<Shared> {
        let shared = self.0.borrow().get(&host).cloned()?;
        if shared.sender.ready().await.is_ok() {
            return Some(shared);
        }
        self.0.borrow_mut().remove(&host);
        None
    }

    /// Speaks HTTP/2 on a new connection, which others will share.
    async fn start(
        &self,
        worker: Weak<Worker>,
        cluster: &Cluster,
        host: u64,
        stream: UpstreamStream,
    ) -> Result<Shared, PoolError> {
        let stats = cluster.codecs.http2(&cluster.scope).clone();
        let (connection, sender) = Connection::client(stream, OPTIONS, stats);
        let in_use = Rc::new(());
        let idle = Rc::downgrade(&in_use);
        tokio::task::spawn_local(async move {
            let mut connection = std::pin::pin!(connection.run(None));
            loop {
                tokio::select! {
                    ended = &mut connection => {
                        if let Err(error) = ended {
                            tracing::debug!(target: "pool", %error, "tunnel connection ended");
                        }
                        return;
                    }
                    () = tokio::time::sleep(IDLE) => {}
                }
                // Only the map holds it: nobody has used it for a while.
                if idle.strong_count() <= 1
                    && let Some(worker) = worker.upgrade()
                {
                    worker.tunnels.0.borrow_mut().remove(&host);
                }
            }
        });
        sender.ready().await.map_err(failed)?;
        let shared = Shared {
            sender,
            _in_use: in_use,
        };
        self.0.borrow_mut().insert(host, shared.clone());
        Ok(shared)
    }

    /// Lets go of every connection that no tunnel uses.
    pub(crate) fn clear(&self) {
        self.0.borrow_mut().clear();
    }
}

impl AsyncRead for Http2Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tunnel).poll_read(cx, buf)
    }
}

impl AsyncWrite for Http2Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tunnel).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tunnel).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tunnel).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_connect_answers() {
        crate::fuzz::fuzz("connect_answers", |bytes| {
            if let Ok(Some(length)) = answered(bytes) {
                assert!(matches!(answered(&bytes[..length]), Ok(Some(same)) if same == length));
                assert!(!matches!(answered(&bytes[..length - 1]), Ok(Some(_))));
            }
        });
    }
}
