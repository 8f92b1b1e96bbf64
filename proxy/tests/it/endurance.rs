//! Endurance: many connections, many streams, many clients that take their time; and nothing of it stays behind in the process.

use crate::{
    frames::{self, DATA, END_HEADERS, END_STREAM, GET, HEADERS, POST, RST_STREAM, frame},
    process::Process,
    running::{PATIENCE, http, over_http2, static_cluster, web_listener},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{collections::BTreeMap, convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Barrier,
    task::JoinSet,
};

const ROUTES: &str = "[{match: {path: /hello}, direct_response: {status: 200, body: {inline_string: hello}}}, \
    {match: {prefix: /}, route: {cluster: c, timeout: 0s}}]";

const HELLO: &str =
    "[{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: hello}}}]";

/// Lets this process and those it starts open so many files as the system allows; returns how many of `wanted` connections that
/// is enough for, with a note if not for all.
fn room_for(wanted: usize) -> usize {
    let limits = || std::fs::read_to_string("/proc/self/limits").unwrap();
    let text = limits();
    let line = text.lines().find(|line| line.starts_with("Max open files"));
    let mut numbers = line.unwrap().split_whitespace().skip(3);
    let [soft, hard] = [(); 2].map(|()| numbers.next().unwrap().parse().unwrap_or(usize::MAX));
    if soft < hard {
        let own = std::process::id().to_string();
        let raised = std::process::Command::new("prlimit")
            .args(["--pid", &own, &format!("--nofile={hard}:{hard}")])
            .status();
        assert!(raised.is_ok_and(|status| status.success()));
    }
    let room = hard.saturating_sub(2000).min(wanted);
    if room < wanted {
        eprintln!("only {room} connections: no more than {hard} files may be open");
    }
    room
}

/// So many connections, each of which has had an answer.
async fn crowd(to: SocketAddr, count: usize) -> Vec<TcpStream> {
    let one = || async {
        let mut stream = TcpStream::connect(to).await.unwrap();
        let request = b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"hello") {
            assert!(stream.read_buf(&mut answer).await.unwrap() > 0);
        }
        stream
    };
    let mut crowd = Vec::with_capacity(count);
    while crowd.len() < count {
        let batch = (0..(count - crowd.len()).min(100)).map(|_| one());
        crowd.extend(futures::future::join_all(batch).await);
    }
    crowd
}

#[tokio::test]
async fn an_idle_proxy_has_no_huge_pages() {
    let proxy = Process::serving(&web_listener("", HELLO, ""), &[], &[]).await;
    assert_eq!(proxy.huge_pages(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_are_held_and_let_go() {
    let count = room_for(10_000);
    let proxy = Process::serving(&web_listener("", HELLO, ""), &[], &[]).await;
    let address = proxy.address("web").await;
    let descriptors = proxy.descriptors();
    let mut needed: f64 = 0.0;
    for round in 0..3 {
        let before = proxy.own_mib();
        let crowd = crowd(address, count).await;
        let active = "http.web.downstream_cx_active";
        proxy.stat_is(active, count as u64).await;
        // Before, the admin interface may have had one or two.
        assert!(proxy.descriptors() + 8 >= descriptors + count);
        // Whoever comes now is served like the first.
        assert_eq!(http(address, "GET", "/hello").await.0, 200);
        let each = (proxy.own_mib() - before) * 1024.0 / count as f64;
        assert!(each < 24.0, "an idle connection takes {each:.1} KiB");
        drop(crowd);
        proxy.stat_is(active, 0).await;
        proxy.has_closed_all_but(descriptors).await;
        // A round needs what those before have given back: a leak of 2 KiB for each would be 20 MiB.
        if round < 2 {
            needed = needed.max(proxy.own_mib());
        }
    }
    proxy.has_given_back_all_but(needed + 16.0).await;
}

/// An upstream over HTTP/2 that answers nobody before `count` requests are there.
async fn gathering(count: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let barrier = Arc::new(Barrier::new(count));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let barrier = barrier.clone();
            let service = service_fn(move |_: Request<Incoming>| {
                let barrier = barrier.clone();
                async move {
                    barrier.wait().await;
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"all"))))
                }
            });
            let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            server.max_concurrent_streams(2000);
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_share_a_connection_on_both_sides() {
    let cluster = static_cluster("c", gathering(1000).await);
    let cluster = over_http2(&cluster, "max_concurrent_streams: 2000");
    let proxy = Process::serving(&web_listener("", ROUTES, ""), &[cluster], &[]).await;
    let address = proxy.address("web").await;
    let descriptors = proxy.descriptors();
    let mut needed: f64 = 0.0;
    for round in 1..=3 {
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        let connection = tokio::spawn(connection);
        let all = (0..1000).map(|_| {
            let request = Request::get("http://a/").body(Empty::<Bytes>::new());
            sender.send_request(request.unwrap())
        });
        let all = tokio::time::timeout(PATIENCE, futures::future::join_all(all)).await;
        for response in all.unwrap() {
            let response = response.unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(
                response.into_body().collect().await.unwrap().to_bytes(),
                "all"
            );
        }
        drop(sender);
        let _ = connection.await;
        proxy
            .stat_is("cluster.c.upstream_rq_total", 1000 * round)
            .await;
        proxy.stat_is("http.web.downstream_rq_active", 0).await;
        proxy.stat_is("cluster.c.upstream_rq_active", 0).await;
        // One connection to the upstream stays for others.
        proxy.has_closed_all_but(descriptors + 1).await;
        if round < 3 {
            needed = needed.max(proxy.own_mib());
        }
    }
    assert_eq!(proxy.stat("cluster.c.upstream_cx_total").await, 1);
    proxy.has_given_back_all_but(needed + 8.0).await;
}

/// How a client can take its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Slow {
    Head,
    Body,
    Reader,
    BodyOfHttp2,
    ReaderOfHttp2,
}

/// The pace of those who drip.
const DRIP: Duration = Duration::from_millis(100);

/// Drips `drop` until the other side has had enough; what that one has said.
async fn drip(mut stream: TcpStream, drop: &[u8]) -> Vec<u8> {
    let (mut read, mut write) = stream.split();
    let mut said = Vec::new();
    let mut pace = tokio::time::interval(DRIP);
    loop {
        tokio::select! {
            got = read.read_buf(&mut said) => if got.unwrap_or(0) == 0 || said.starts_with(b"HTTP/1.1 408 ") {
                return said;
            },
            _ = pace.tick() => if write.write_all(drop).await.is_err() {
                // What was said before the end may still be there.
                let _ = read.read_to_end(&mut said).await;
                return said;
            },
        }
    }
}

/// A client that never comes to an end of its own; returns when the proxy ends it.
async fn dawdle(to: SocketAddr, how: Slow) {
    let mut stream = match how {
        // No room for any response.
        Slow::ReaderOfHttp2 => frames::connect(to, &[0, 4, 0, 0, 0, 0]).await,
        Slow::BodyOfHttp2 => frames::connect(to, &[]).await,
        Slow::Head | Slow::Body | Slow::Reader => TcpStream::connect(to).await.unwrap(),
    };
    let opening = match how {
        Slow::Head => b"GET / HTTP/1.1\r\nhost: a\r\nx-long: ".to_vec(),
        Slow::Body => b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n".to_vec(),
        Slow::Reader => b"GET /big HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(),
        Slow::BodyOfHttp2 => frame(HEADERS, END_HEADERS, 1, POST),
        Slow::ReaderOfHttp2 => frame(HEADERS, END_HEADERS | END_STREAM, 1, GET),
    };
    stream.write_all(&opening).await.unwrap();
    match how {
        Slow::Head => drop(drip(stream, b"x").await),
        Slow::Body => drop(drip(stream, b"1\r\nx\r\n").await),
        Slow::Reader => {
            // Nothing is read, so that only an attempt to write shows that the proxy has gone.
            let mut pace = tokio::time::interval(DRIP);
            while stream.write_all(b"\r\n").await.is_ok() {
                pace.tick().await;
            }
        }
        Slow::BodyOfHttp2 => {
            let mut pace = tokio::time::interval(DRIP);
            loop {
                tokio::select! {
                    frame = frames::next(&mut stream) => match frame {
                        Some(frame) if frame.kind != RST_STREAM && frame.flags & END_STREAM == 0 || frame.stream == 0 => {}
                        _ => return,
                    },
                    _ = pace.tick() => stream.write_all(&frame(DATA, 0, 1, b"x")).await.unwrap(),
                }
            }
        }
        Slow::ReaderOfHttp2 => drop(frames::next_of(&mut stream, RST_STREAM).await),
    }
}

/// An upstream that answers `/big` with more than any buffer holds, and reads everything else without an answer.
async fn patient() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                    if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                if head.starts_with(b"GET ") {
                    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n";
                    let _ = stream.write_all(head).await;
                    while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
                }
                let mut rest = [0; 4096];
                while stream.read(&mut rest).await.is_ok_and(|count| count > 0) {}
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_take_their_time_are_ended_and_hinder_nobody() {
    const EACH: usize = 60;
    let more = "request_headers_timeout: 1s, request_timeout: 2s, stream_idle_timeout: 1s, delayed_close_timeout: 0.1s,";
    let breakers = "circuit_breakers: {thresholds: [{max_connections: 10000, max_requests: 10000, max_pending_requests: 10000}]}";
    let cluster = static_cluster("c", patient().await).replacen('{', &format!("{{{breakers}, "), 1);
    let proxy = Process::serving(&web_listener(more, ROUTES, ""), &[cluster], &[]).await;
    let address = proxy.address("web").await;
    let descriptors = proxy.descriptors();
    let mut dawdlers = JoinSet::new();
    let mut left = BTreeMap::new();
    for _ in 0..EACH {
        for how in [
            Slow::Head,
            Slow::Body,
            Slow::Reader,
            Slow::BodyOfHttp2,
            Slow::ReaderOfHttp2,
        ] {
            dawdlers.spawn(async move {
                dawdle(address, how).await;
                how
            });
            *left.entry(how).or_insert(0) += 1;
        }
    }
    let mut served = 0;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !dawdlers.is_empty() {
        // Others are served meanwhile.
        let (status, body) = http(address, "GET", "/hello").await;
        assert_eq!((status, body.as_str()), (200, "hello"));
        served += 1;
        assert!(tokio::time::Instant::now() < deadline, "{left:?}");
        let ended = tokio::time::timeout(DRIP, dawdlers.join_next()).await;
        if let Ok(Some(ended)) = ended {
            *left.get_mut(&ended.unwrap()).unwrap() -= 1;
        }
    }
    assert!(served > 0);
    proxy.stat_is("http.web.downstream_rq_active", 0).await;
    proxy.stat_is("cluster.c.upstream_rq_active", 0).await;
    proxy.has_closed_all_but(descriptors).await;
    let each = EACH as u64;
    proxy
        .stat_is("http.web.downstream_rq_header_timeout", each)
        .await;
    proxy
        .stat_is("http.web.downstream_rq_timeout", 2 * each)
        .await;
    proxy
        .stat_is("http.web.downstream_rq_idle_timeout", 2 * each)
        .await;
}
