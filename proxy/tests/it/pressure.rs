//! Back-pressure: who does not read holds up the one who sends, through the whole proxy, and loses nothing by it.

use crate::{
    certificates::Authority,
    process::Process,
    running::{PATIENCE, over_http2, static_cluster, tcp_listener, web_listener},
};
use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use http_body_util::{BodyExt as _, StreamBody, combinators::BoxBody};
use hyper::{Request, Response, body::Frame, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_rustls::TlsConnector;

const PIECE: usize = 64 << 10;
const PIECES: u64 = 1024;
/// All that is sent: 64 MiB.
const ALL: u64 = PIECES * PIECE as u64;
/// What the windows of two connections, their sockets' buffers and the proxy may hold of it; the kernel is generous with buffers.
const HELD: u64 = 40 << 20;
/// What the proxy itself may hold of it, in MiB.
const HELD_BY_PROXY: f64 = 8.0;

type Body = BoxBody<Bytes, Infallible>;

/// Counts what its sender could get rid of; a gate keeps the receiver from reading until the sender is stuck.
#[derive(Clone)]
struct Flow {
    sent: Arc<AtomicU64>,
    gate: watch::Sender<bool>,
}

impl Flow {
    fn new() -> Self {
        let sent = Arc::default();
        Self {
            sent,
            gate: watch::channel(false).0,
        }
    }

    /// A body that counts what is taken of it.
    fn body(&self) -> Body {
        let sent = self.sent.clone();
        let piece = Bytes::from(vec![b'x'; PIECE]);
        let pieces = futures::stream::iter((0..PIECES).map(move |_| {
            sent.fetch_add(PIECE as u64, Relaxed);
            Ok(Frame::data(piece.clone()))
        }));
        StreamBody::new(pieces).boxed()
    }

    /// Waits for the gate, then reads a body to its end.
    async fn swallow(&self, mut body: Incoming) -> u64 {
        self.gate
            .subscribe()
            .wait_for(|is_open| *is_open)
            .await
            .unwrap();
        let mut got = 0;
        while let Some(frame) = body.frame().await {
            got += frame
                .unwrap()
                .into_data()
                .map_or(0, |data| data.len() as u64);
        }
        got
    }

    /// Waits until nothing more can be sent; it is far from all, and little of it is in the proxy. Then the receiver may read.
    async fn stalls(&self, what: String, proxy: &Process) {
        let before = proxy.own_mib();
        let (mut last, mut since) = (0, tokio::time::Instant::now());
        let deadline = since + PATIENCE;
        loop {
            let sent = self.sent.load(Relaxed);
            if sent != last {
                (last, since) = (sent, tokio::time::Instant::now());
            } else if last > 0 && since.elapsed() > Duration::from_millis(400) {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "{what}: no stall");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(last < HELD, "{what}: {last} bytes are held");
        let grown = proxy.own_mib() - before;
        assert!(grown < HELD_BY_PROXY, "{what}: {grown} MiB in the proxy");
        self.gate.send_replace(true);
    }
}

/// An upstream that sends all of `down` to who asks, and reads what it is sent at the gate of `up`; HTTP/1 and HTTP/2.
async fn web(down: Flow, up: Flow) -> SocketAddr {
    let listener = listen();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            let (down, up) = (down.clone(), up.clone());
            let service = service_fn(move |request: Request<Incoming>| {
                let (down, up) = (down.clone(), up.clone());
                async move {
                    if request.method() == "GET" {
                        return Ok::<_, Infallible>(Response::new(down.body()));
                    }
                    let got = up.swallow(request.into_body()).await;
                    Ok(Response::new(BoxBody::new(got.to_string())))
                }
            });
            tokio::spawn(async move {
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

/// A listener whose connections have small buffers.
fn listen() -> TcpListener {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(256 << 10).unwrap();
    socket.set_send_buffer_size(256 << 10).unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    socket.listen(16).unwrap()
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

async fn connect(to: SocketAddr, ca: Option<&Authority>) -> Box<dyn Stream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(256 << 10).unwrap();
    socket.set_send_buffer_size(256 << 10).unwrap();
    let stream = socket.connect(to).await.unwrap();
    // Small windows are opened by small frames.
    stream.set_nodelay(true).unwrap();
    let Some(ca) = ca else {
        return Box::new(stream);
    };
    let name = "server.test".try_into().unwrap();
    let connector = TlsConnector::from(Arc::new(ca.client(None)));
    Box::new(connector.connect(name, stream).await.unwrap())
}

/// The transport socket of a chain whose certificate `ca` has signed.
pub(crate) fn transport(ca: &Authority) -> String {
    let server = ca.sign("server.test");
    let quoted = |text: &str| serde_json::to_string(text).unwrap();
    format!(
        r#"transport_socket: {{name: tls, typed_config: {{"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext,
        common_tls_context: {{tls_certificates: [{{certificate_chain: {{inline_string: {}}}, private_key: {{inline_string: {}}}}}]}}}}}}, "#,
        quoted(&server.pem),
        quoted(&server.key)
    )
}

/// Sends all both ways through an HTTP listener, one after the other.
async fn through_http(what: &str, is_http2: bool, upstream_http2: bool, ca: Option<&Authority>) {
    let (down, up) = (Flow::new(), Flow::new());
    let windows = "initial_stream_window_size: 65536, initial_connection_window_size: 65536";
    let mut cluster = static_cluster("c", web(down.clone(), up.clone()).await);
    if upstream_http2 {
        cluster = over_http2(&cluster, windows);
    }
    let more = format!("http2_protocol_options: {{{windows}}},");
    let routes = "[{match: {prefix: /}, route: {cluster: c, timeout: 0s}}]";
    let transport = ca.map(transport).unwrap_or_default();
    let proxy = Process::serving(&web_listener(&more, routes, &transport), &[cluster], &[]).await;
    let io = TokioIo::new(connect(proxy.address("web").await, ca).await);
    let mut send = sender(io, is_http2).await;
    let request = |method, body| {
        let request = Request::builder().method(method).uri("http://a/");
        request.header("host", "a").body(body).unwrap()
    };
    let nothing = BoxBody::new(http_body_util::Empty::new());
    let response = send(request("GET", nothing)).await;
    let receiving = down.swallow(response.into_body());
    let (got, ()) = tokio::join!(receiving, down.stalls(format!("{what}, down"), &proxy));
    assert_eq!(got, ALL, "{what}");
    let sending = send(request("POST", up.body()));
    let (response, ()) = tokio::join!(sending, up.stalls(format!("{what}, up"), &proxy));
    let got = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(got, ALL.to_string(), "{what}");
}

/// Sends requests on one connection.
type Sender = Box<dyn FnMut(Request<Body>) -> BoxFuture<'static, Response<Incoming>>>;

async fn sender(io: TokioIo<Box<dyn Stream>>, is_http2: bool) -> Sender {
    if is_http2 {
        let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(65536)
            .initial_connection_window_size(65536)
            .handshake(io);
        let (mut sender, connection) = builder.await.unwrap();
        tokio::spawn(connection);
        Box::new(move |request| sender.send_request(request).map(Result::unwrap).boxed())
    } else {
        let (sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let sender = Arc::new(tokio::sync::Mutex::new(sender));
        Box::new(move |request| {
            let sender = sender.clone();
            async move {
                let mut sender = sender.lock().await;
                // The end of an answer is seen before the connection is free for the next request.
                sender.ready().await.unwrap();
                sender.send_request(request).await.unwrap()
            }
            .boxed()
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_http_holds_up_who_sends() {
    through_http("HTTP/1", false, false, None).await;
    through_http("HTTP/2", true, true, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_holds_up_who_sends_across_versions_and_tls() {
    through_http("HTTP/1 to HTTP/2", false, true, None).await;
    through_http(
        "HTTP/2 to HTTP/1 over TLS",
        true,
        false,
        Some(&Authority::new("ca")),
    )
    .await;
}

/// Sends all of a flow over raw bytes.
async fn pour(flow: Flow, mut stream: impl AsyncWrite + Unpin) {
    let piece = vec![b'x'; PIECE];
    for _ in 0..PIECES {
        stream.write_all(&piece).await.unwrap();
        flow.sent.fetch_add(PIECE as u64, Relaxed);
    }
    stream.shutdown().await.unwrap();
}

/// Reads raw bytes to their end, from when the gate is open.
async fn drink(flow: Flow, mut stream: impl AsyncRead + Unpin) -> u64 {
    flow.gate
        .subscribe()
        .wait_for(|is_open| *is_open)
        .await
        .unwrap();
    let (mut got, mut piece) = (0, vec![0; PIECE]);
    loop {
        match stream.read(&mut piece).await.unwrap() {
            0 => return got,
            count => got += count as u64,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_bytes_holds_up_who_sends() {
    let ca = Authority::new("ca");
    for tls in [None, Some(&ca)] {
        let (down, up) = (Flow::new(), Flow::new());
        let listener = listen();
        let cluster = static_cluster("c", listener.local_addr().unwrap());
        let transport = tls.map(transport).unwrap_or_default();
        let web = tcp_listener("web", "c").replace(
            "filter_chains: [{",
            &format!("filter_chains: [{{{transport}"),
        );
        let proxy = Process::serving(&web, &[cluster], &[]).await;
        let (client, server) =
            tokio::join!(connect(proxy.address("web").await, tls), listener.accept());
        let (client_reads, client_writes) = tokio::io::split(client);
        let (server_reads, server_writes) = TcpStream::into_split(server.unwrap().0);
        let what = if tls.is_some() { "TLS" } else { "TCP" };
        let (_, got, ()) = tokio::join!(
            pour(down.clone(), server_writes),
            drink(down.clone(), client_reads),
            down.stalls(format!("{what}, down"), &proxy),
        );
        assert_eq!(got, ALL, "{what}");
        let (_, got, ()) = tokio::join!(
            pour(up.clone(), client_writes),
            drink(up.clone(), server_reads),
            up.stalls(format!("{what}, up"), &proxy),
        );
        assert_eq!(got, ALL, "{what}");
    }
}

#[tokio::test]
async fn who_leaves_the_end_of_a_response_unread_is_cut_off() {
    let body = "x".repeat(4096);
    let routes = format!(
        "[{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: {body}}}}}}}]"
    );
    let of_connection =
        "stream_idle_timeout: 0s, common_http_protocol_options: {idle_timeout: 1s},";
    for limit in ["stream_flush_timeout: 1s,", of_connection] {
        let proxy = Process::serving(&web_listener(limit, &routes, ""), &[], &[]).await;
        let mut client = TcpStream::connect(proxy.address("web").await)
            .await
            .unwrap();
        // Responses fill what there is of buffers, until the end of one does not fit.
        let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        timeout(PATIENCE, async {
            while client.write_all(request).await.is_ok() {}
        })
        .await
        .unwrap();
        proxy.stat_is("http.web.downstream_cx_active", 0).await;
        proxy
            .stat_is("http.web.downstream_cx_idle_timeout", 1)
            .await;
    }
}
