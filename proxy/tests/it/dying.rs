//! Upstreams that die at every byte of what they say, whatever they speak: each request has an end, and none a false one.

use crate::{
    certificates::{self, Authority},
    frames::{self, DATA, END_HEADERS, END_STREAM, HEADERS, SETTINGS, frame},
    process::Process,
    running::{over_http2, over_tls, static_cluster, web_listener},
};
use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

/// A connection that dies once it has said so much; what is said after that nobody hears.
struct Mortal {
    stream: TcpStream,
    left: usize,
    said: Arc<AtomicUsize>,
}

impl AsyncRead for Mortal {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Mortal {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let heard = bytes.len().min(self.left);
        if heard > 0 {
            let Poll::Ready(written) =
                Pin::new(&mut self.stream).poll_write(context, &bytes[..heard])?
            else {
                return Poll::Pending;
            };
            self.left -= written;
            self.said.fetch_add(written, Relaxed);
            return Poll::Ready(Ok(written));
        }
        self.said.fetch_add(bytes.len(), Relaxed);
        // Nothing is lost of what has been said before.
        let _ = Pin::new(&mut self.stream).poll_shutdown(context);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Where upstreams die, and how far what they say went.
#[derive(Clone, Default)]
struct Life {
    limit: Arc<AtomicUsize>,
    said: Arc<AtomicUsize>,
    /// With the last byte of the response.
    whole: Arc<AtomicUsize>,
}

/// An upstream of mortal connections that waits for a request and answers with `hello`.
async fn upstream(is_http2: bool, tls: Option<TlsAcceptor>, life: Life) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            life.said.store(0, Relaxed);
            let left = life.limit.load(Relaxed);
            let said = life.said.clone();
            let mut stream = Mortal { stream, left, said };
            if left == 0 {
                stream.shutdown().await.unwrap();
            }
            let (tls, life) = (tls.clone(), life.clone());
            tokio::spawn(async move {
                let mut stream: Box<dyn Stream> = match tls {
                    None => Box::new(stream),
                    Some(tls) => match tls.accept(stream).await {
                        Ok(stream) => Box::new(stream),
                        Err(_) => return,
                    },
                };
                let _ = answer(&mut stream, is_http2, &life).await;
            });
        }
    });
    address
}

async fn answer(stream: &mut Box<dyn Stream>, is_http2: bool, life: &Life) -> std::io::Result<()> {
    let response = if is_http2 {
        stream.read_exact(&mut [0; frames::PREFACE.len()]).await?;
        frames::next_of(stream, HEADERS).await;
        [
            frame(SETTINGS, 0, 0, &[]),
            // `:status: 200`.
            frame(HEADERS, END_HEADERS, 1, &[0x88]),
            frame(DATA, 0, 1, b"hel"),
            frame(DATA, END_STREAM, 1, b"lo"),
        ]
        .concat()
    } else {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
        }
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
            .to_vec()
    };
    stream.write_all(&response).await?;
    stream.flush().await?;
    life.whole.store(life.said.load(Relaxed), Relaxed);
    stream.shutdown().await?;
    // Closing with something unread would take back what was said.
    tokio::io::copy(stream, &mut tokio::io::sink())
        .await
        .map(|_| ())
}

/// What a client gets of a response: its status, and whether it came whole.
async fn ask(to: SocketAddr) -> (u16, bool) {
    let mut client = TcpStream::connect(to).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    client.write_all(request).await.unwrap();
    let mut text = String::new();
    client.read_to_string(&mut text).await.unwrap();
    let status = text.split(' ').nth(1).unwrap_or_else(|| panic!("{text:?}"));
    let is_whole = text.ends_with("0\r\n\r\n");
    if is_whole && status == "200" {
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        let pieces: String = body.split("\r\n").skip(1).step_by(2).collect();
        assert_eq!(pieces, "hello");
    }
    (status.parse().unwrap(), is_whole)
}

async fn dies_at_every_byte(is_http2: bool, is_tls: bool) {
    let protocol = if is_http2 { "h2" } else { "http/1.1" };
    let life = Life::default();
    let tls = is_tls.then(|| {
        let identity = Authority::new("ca").sign("server.test");
        TlsAcceptor::from(Arc::new(certificates::server(&identity, &[protocol])))
    });
    let mut cluster = static_cluster("c", upstream(is_http2, tls, life.clone()).await);
    if is_http2 {
        cluster = over_http2(&cluster, "");
    }
    if is_tls {
        cluster = over_tls(&cluster, &format!("alpn_protocols: ['{protocol}']"));
    }
    let routes = "[{match: {prefix: /}, route: {cluster: c, timeout: 0s}}]";
    let proxy = Process::serving(&web_listener("", routes, ""), &[cluster], &[]).await;
    let address = proxy.address("web").await;
    let before = proxy.descriptors();
    let mut statuses = Vec::new();
    for limit in 0.. {
        life.limit.store(limit, Relaxed);
        life.whole.store(usize::MAX, Relaxed);
        let (status, is_whole) = ask(address).await;
        if status == 200 && is_whole {
            assert!(
                life.whole.load(Relaxed) <= limit,
                "{protocol}, {is_tls}: {limit}"
            );
            break;
        }
        assert!([200, 502, 503].contains(&status), "{limit}: {status}");
        // What has an end in the middle has the status that came before it.
        assert!(status == 200 || statuses.last() != Some(&200), "{limit}");
        statuses.push(status);
        assert!(
            life.whole.load(Relaxed) > limit,
            "{protocol}, {is_tls}: {limit} bytes were enough"
        );
    }
    assert_eq!(statuses[0], 503);
    // TLS shows nothing of a record before it has all of it; else the head comes before the body.
    assert_eq!(statuses.contains(&200), !is_tls);
    proxy.stat_is("cluster.c.upstream_cx_active", 0).await;
    proxy.stat_is("cluster.c.upstream_rq_active", 0).await;
    proxy.stat_is("http.web.downstream_rq_active", 0).await;
    proxy.has_closed_all_but(before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_that_ends_at_any_byte_leaves_no_request_without_an_end() {
    dies_at_every_byte(true, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_that_ends_at_any_byte_leaves_no_request_without_an_end() {
    dies_at_every_byte(false, true).await;
    dies_at_every_byte(true, true).await;
}
