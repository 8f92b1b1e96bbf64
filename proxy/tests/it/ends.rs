//! How connections come to their ends, and what both sides see of it: limits of requests and of age, drains, pings that nobody
//! answers, clients that do not close. Everything here holds of a real Envoy (`PROXY_BINARY`), too.

use crate::{
    frames::{
        self, ACK, END_HEADERS, END_STREAM, Frame, GET, GOAWAY, HEADERS, PING, SETTINGS, frame,
    },
    process::Process,
    running::{PATIENCE, over_http2, static_cluster, web_listener},
};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};

const ROUTES: &str = "[{match: {prefix: /}, route: {cluster: c, timeout: 0s}}]";
const HELLO: &str =
    "[{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: hello}}}]";
const OK: &[u8] = &[0x88];

/// Connections as an upstream gets them.
async fn accepting() -> (SocketAddr, mpsc::UnboundedReceiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = sender.send(stream);
        }
    });
    (address, receiver)
}

/// The next connection of an HTTP/2 upstream, after its greeting.
async fn greeted(connections: &mut mpsc::UnboundedReceiver<TcpStream>) -> TcpStream {
    let mut stream = timeout(PATIENCE, connections.recv())
        .await
        .unwrap()
        .unwrap();
    stream
        .read_exact(&mut [0; frames::PREFACE.len()])
        .await
        .unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    stream
}

/// The next frame of this kind; pings before it are answered.
async fn next_of(stream: &mut TcpStream, kind: u8) -> Option<Frame> {
    loop {
        let frame = timeout(PATIENCE, frames::next(stream)).await.unwrap()?;
        if frame.kind == kind {
            return Some(frame);
        }
        if frame.kind == PING && frame.flags != ACK {
            pong(stream, &frame).await;
        }
    }
}

async fn pong(stream: &mut TcpStream, ping: &Frame) {
    let answer = frames::frame(PING, ACK, 0, &ping.payload);
    // The other side may have ended meanwhile.
    let _ = stream.write_all(&answer).await;
}

/// A client that listens to what it is told about its connection.
struct Client {
    stream: TcpStream,
    /// The streams up to which it heard that they are served.
    goaways: Vec<u32>,
}

impl Client {
    /// The stream of the next response; `None` when the connection has ended.
    async fn response(&mut self) -> Option<u32> {
        loop {
            let frame = timeout(PATIENCE, frames::next(&mut self.stream))
                .await
                .unwrap()?;
            match frame.kind {
                HEADERS => return Some(frame.stream),
                PING if frame.flags != ACK => pong(&mut self.stream, &frame).await,
                GOAWAY => {
                    assert_eq!(frame.payload[4..8], [0; 4], "no error");
                    let last = frame.payload[..4].try_into().unwrap();
                    self.goaways.push(u32::from_be_bytes(last));
                }
                _ => {}
            }
        }
    }
}

async fn get(client: &mut TcpStream, stream: u32) {
    let head = frame(HEADERS, END_HEADERS | END_STREAM, stream, GET);
    client.write_all(&head).await.unwrap();
}

async fn answer(upstream: &mut TcpStream, stream: u32) {
    let head = frame(HEADERS, END_HEADERS | END_STREAM, stream, OK);
    upstream.write_all(&head).await.unwrap();
}

#[tokio::test]
async fn an_upstream_connection_has_no_more_requests_than_it_may() {
    let (host, mut connections) = accepting().await;
    let cluster = over_http2(&static_cluster("c", host), "").replacen(
        "explicit_http_config",
        "common_http_protocol_options: {max_requests_per_connection: 2}, explicit_http_config",
        1,
    );
    let proxy = Process::serving(&web_listener("", ROUTES, ""), &[cluster], &[]).await;
    let mut client = frames::connect(proxy.address("web").await, &[]).await;
    get(&mut client, 1).await;
    let mut first = greeted(&mut connections).await;
    assert_eq!(next_of(&mut first, HEADERS).await.unwrap().stream, 1);
    get(&mut client, 3).await;
    assert_eq!(next_of(&mut first, HEADERS).await.unwrap().stream, 3);
    // The third has a connection of its own, while those before it go on.
    get(&mut client, 5).await;
    let mut second = greeted(&mut connections).await;
    assert_eq!(next_of(&mut second, HEADERS).await.unwrap().stream, 1);
    answer(&mut second, 1).await;
    assert_eq!(next_of(&mut client, HEADERS).await.unwrap().stream, 5);
    for stream in [3, 1] {
        answer(&mut first, stream).await;
        assert_eq!(next_of(&mut client, HEADERS).await.unwrap().stream, stream);
    }
    // Nobody wants the first any more.
    while next_of(&mut first, GOAWAY).await.is_some() {}
    assert!(connections.try_recv().is_err());
    proxy.stat_is("cluster.c.upstream_cx_max_requests", 1).await;
    proxy.stat_is("cluster.c.upstream_cx_total", 2).await;
}

#[tokio::test]
async fn a_client_connection_has_no_more_requests_than_it_may() {
    let more = "common_http_protocol_options: {max_requests_per_connection: 2},";
    let proxy = Process::serving(&web_listener(more, HELLO, ""), &[], &[]).await;
    let mut client = TcpStream::connect(proxy.address("web").await)
        .await
        .unwrap();
    let mut answers = String::new();
    let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    client.write_all(&[&request[..]; 3].concat()).await.unwrap();
    timeout(PATIENCE, client.read_to_string(&mut answers))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{answers}");
    let (_, last) = answers.rsplit_once("HTTP/1.1").unwrap();
    assert_eq!(answers.matches("connection: close").count(), 1, "{answers}");
    assert!(last.contains("connection: close"), "{answers}");
    proxy
        .stat_is("http.web.downstream_cx_max_requests_reached", 1)
        .await;
}

#[tokio::test]
async fn a_client_of_http2_hears_that_it_may_ask_no_more() {
    let more =
        "drain_timeout: 0.2s, common_http_protocol_options: {max_requests_per_connection: 2},";
    let proxy = Process::serving(&web_listener(more, HELLO, ""), &[], &[]).await;
    let mut client = Client {
        stream: frames::connect(proxy.address("web").await, &[]).await,
        goaways: Vec::new(),
    };
    for stream in [1, 3] {
        get(&mut client.stream, stream).await;
        assert_eq!(client.response().await, Some(stream));
    }
    assert_eq!(client.response().await, None);
    assert_eq!(client.goaways, [u32::MAX >> 1, 3]);
    proxy
        .stat_is("http.web.downstream_cx_max_requests_reached", 1)
        .await;
}

/// A client with a stream that runs, and the upstream of it.
async fn running(more: &str) -> (Process, Client, TcpStream) {
    let (host, mut connections) = accepting().await;
    let cluster = over_http2(&static_cluster("c", host), "");
    let listener = web_listener(more, ROUTES, "");
    let proxy = Process::serving(&listener, &[cluster], &["--drain-time-s", "60"]).await;
    let mut client = frames::connect(proxy.address("web").await, &[]).await;
    get(&mut client, 1).await;
    let mut upstream = greeted(&mut connections).await;
    assert_eq!(next_of(&mut upstream, HEADERS).await.unwrap().stream, 1);
    let client = Client {
        stream: client,
        goaways: Vec::new(),
    };
    (proxy, client, upstream)
}

#[tokio::test]
async fn a_connection_that_is_old_says_so_and_ends_after_its_streams() {
    let more = "drain_timeout: 0.2s, common_http_protocol_options: {max_connection_duration: 2s},";
    let (proxy, mut client, mut upstream) = running(more).await;
    proxy
        .stat_is("http.web.downstream_cx_max_duration_reached", 1)
        .await;
    answer(&mut upstream, 1).await;
    assert_eq!(client.response().await, Some(1));
    assert_eq!(client.response().await, None);
    // First it is told to open no more streams, then which was the last.
    assert_eq!(client.goaways, [u32::MAX >> 1, 1]);
    proxy.stat_is("http.web.downstream_cx_active", 0).await;
}

#[tokio::test]
async fn a_drain_says_so_and_waits_for_streams() {
    let (proxy, mut client, mut upstream) = running("drain_timeout: 0.2s,").await;
    proxy.post("/drain_listeners?graceful").await;
    answer(&mut upstream, 1).await;
    assert_eq!(client.response().await, Some(1));
    // Envoy looks for a drain when a response begins, and takes some before it begins with a connection.
    let mut last = 1;
    while client.goaways.is_empty() {
        last += 2;
        get(&mut client.stream, last).await;
        let head = next_of(&mut upstream, HEADERS).await.unwrap();
        answer(&mut upstream, head.stream).await;
        assert_eq!(client.response().await, Some(last));
    }
    assert_eq!(client.response().await, None);
    assert_eq!(client.goaways, [u32::MAX >> 1, last]);
    proxy.stat_is("http.web.downstream_cx_active", 0).await;
}

/// Pings often; whoever answers has time for it.
const PATIENT: &str = "connection_keepalive: {interval: 0.1s, timeout: 60s}";
/// Who does not answer has little.
const STRICT: &str = "connection_keepalive: {interval: 0.1s, timeout: 0.3s}";

#[tokio::test]
async fn a_client_that_answers_pings_stays_and_one_that_does_not_goes() {
    for (options, answers) in [(PATIENT, true), (STRICT, false)] {
        let more = format!("http2_protocol_options: {{{options}}},");
        let proxy = Process::serving(&web_listener(&more, HELLO, ""), &[], &[]).await;
        let mut client = frames::connect(proxy.address("web").await, &[]).await;
        if !answers {
            assert!(next_of(&mut client, PING).await.is_some());
            while next_of(&mut client, PING).await.is_some() {}
            continue;
        }
        for _ in 0..4 {
            let ping = next_of(&mut client, PING).await.unwrap();
            pong(&mut client, &ping).await;
        }
        get(&mut client, 1).await;
        assert!(next_of(&mut client, HEADERS).await.is_some());
    }
}

#[tokio::test]
async fn a_client_that_answers_no_pings_goes_though_an_answer_is_due() {
    let (host, mut connections) = accepting().await;
    let more = format!("http2_protocol_options: {{{STRICT}}},");
    let cluster = over_http2(&static_cluster("c", host), PATIENT);
    let listener = web_listener(&more, ROUTES, "");
    let proxy = Process::serving(&listener, &[cluster], &[]).await;
    let mut client = frames::connect(proxy.address("web").await, &[]).await;
    get(&mut client, 1).await;
    let _upstream = greeted(&mut connections).await;
    while next_of(&mut client, PING).await.is_some() {}
    proxy.stat_is("http.web.downstream_cx_active", 0).await;
    proxy.stat_is("http.web.downstream_rq_active", 0).await;
}

#[tokio::test]
async fn an_upstream_that_answers_pings_stays_and_one_that_does_not_goes() {
    for (options, answers) in [(PATIENT, true), (STRICT, false)] {
        let (host, mut connections) = accepting().await;
        let cluster = over_http2(&static_cluster("c", host), options);
        let proxy = Process::serving(&web_listener("", ROUTES, ""), &[cluster], &[]).await;
        let mut client = frames::connect(proxy.address("web").await, &[]).await;
        get(&mut client, 1).await;
        let mut upstream = greeted(&mut connections).await;
        if answers {
            for _ in 0..4 {
                let ping = next_of(&mut upstream, PING).await.unwrap();
                pong(&mut upstream, &ping).await;
            }
            answer(&mut upstream, 1).await;
        } else {
            // What it was asked for is lost with it.
            while next_of(&mut upstream, PING).await.is_some() {}
            proxy.stat_is("cluster.c.upstream_cx_active", 0).await;
        }
        let head = next_of(&mut client, HEADERS).await.unwrap();
        assert_eq!(head.payload.starts_with(OK), answers);
    }
}

#[tokio::test]
async fn a_client_that_does_not_close_is_waited_for_and_no_longer() {
    for (delay, is_waited_for) in [("0.5s", true), ("0s", false)] {
        let more = format!("delayed_close_timeout: {delay},");
        let proxy = Process::serving(&web_listener(&more, HELLO, ""), &[], &[]).await;
        let mut client = TcpStream::connect(proxy.address("web").await)
            .await
            .unwrap();
        let before = tokio::time::Instant::now();
        client
            .write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, client.read_to_string(&mut answer))
            .await
            .unwrap()
            .unwrap();
        assert!(answer.ends_with("hello"), "{answer}");
        // It has said that it is over, and holds its side as long as it may.
        proxy.stat_is("http.web.downstream_cx_active", 0).await;
        assert!(!is_waited_for || before.elapsed() >= Duration::from_millis(500));
        let counted = u64::from(is_waited_for);
        proxy
            .stat_is("http.web.downstream_cx_delayed_close_timeout", counted)
            .await;
    }
}
