//! HTTP/2 clients that ask for more than they wait for, or never come to the point.

use crate::{
    frames::{self, CONTINUATION, END_HEADERS, END_STREAM, GET, HEADERS, RST_STREAM, field, frame},
    http::echo,
    process::Process,
    running::{PATIENCE, nobody, static_cluster, web_listener},
};
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const ROUTES: &str = "[{match: {prefix: /}, route: {cluster: c, timeout: 0s}}]";

/// Sends until the other side has had enough, `most` times at the most; how many times, and whether it has ended.
async fn flood(stream: TcpStream, most: usize, mut next: impl FnMut(usize) -> Vec<u8>) -> bool {
    let (mut read, mut write) = stream.into_split();
    let reader = tokio::spawn(async move {
        let mut heard = [0; 4096];
        while read.read(&mut heard).await.is_ok_and(|count| count > 0) {}
    });
    for turn in 0..most {
        if reader.is_finished() || write.write_all(&next(turn)).await.is_err() {
            break;
        }
    }
    // Everything has been said: only the proxy can end this now.
    tokio::time::timeout(PATIENCE, reader).await.is_ok()
}

/// An upstream that takes connections and says nothing.
async fn silent() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    address
}

#[tokio::test]
async fn a_client_that_resets_what_it_has_just_asked_for_is_cut_off() {
    let cluster = static_cluster("c", silent().await);
    let proxy = Process::serving(&web_listener("", ROUTES, ""), &[cluster], &[]).await;
    let address = proxy.address("web").await;
    let client = frames::connect(address, &[]).await;
    let ended = flood(client, 20_000, |turn| {
        let stream = u32::try_from(2 * turn + 1).unwrap();
        let cancel = frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]);
        [
            frame(HEADERS, END_HEADERS | END_STREAM, stream, GET),
            cancel,
        ]
        .concat()
    });
    assert!(ended.await);
    proxy
        .stat_is("http.web.downstream_rq_too_many_premature_resets", 1)
        .await;
    proxy.stat_is("http.web.downstream_cx_active", 0).await;
    proxy.stat_is("http.web.downstream_rq_active", 0).await;
    proxy.stat_is("cluster.c.upstream_rq_active", 0).await;
    // It was cut off early.
    let total = proxy.stat("http.web.downstream_rq_total").await;
    assert!(total < 5000, "{total}");
    // Somebody who resets now and then is not.
    let mut client = frames::connect(address, &[]).await;
    for stream in [1, 3, 5_u32] {
        let cancel = frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]);
        let head = frame(HEADERS, END_HEADERS | END_STREAM, stream, GET);
        client.write_all(&[head, cancel].concat()).await.unwrap();
    }
    client
        .write_all(&frame(frames::PING, 0, 0, &[7; 8]))
        .await
        .unwrap();
    let answer = frames::next_of(&mut client, frames::PING).await.unwrap();
    assert_eq!((answer.flags, answer.payload), (frames::ACK, vec![7; 8]));
}

/// As in Envoy, for which a request that is refused before it is one counts as broken off.
#[tokio::test]
async fn a_client_whose_requests_are_refused_for_their_names_is_cut_off() {
    let cluster = static_cluster("c", silent().await);
    let options =
        "common_http_protocol_options: {headers_with_underscores_action: REJECT_REQUEST},";
    let proxy = Process::serving(&web_listener(options, ROUTES, ""), &[cluster], &[]).await;
    let client = frames::connect(proxy.address("web").await, &[]).await;
    let block = [GET, &field("x_y", b"z")].concat();
    let ended = flood(client, 20_000, |turn| {
        let stream = u32::try_from(2 * turn + 1).unwrap();
        frame(HEADERS, END_HEADERS | END_STREAM, stream, &block)
    });
    assert!(ended.await);
    proxy
        .stat_is("http.web.downstream_rq_too_many_premature_resets", 1)
        .await;
    proxy.stat_is("http.web.downstream_cx_active", 0).await;
}

#[tokio::test]
async fn a_head_without_end_ends_the_connection_and_takes_no_memory() {
    let (_held, nobody) = nobody();
    let cluster = static_cluster("c", nobody);
    let proxy = Process::serving(&web_listener("", ROUTES, ""), &[cluster], &[]).await;
    let address = proxy.address("web").await;
    let before = proxy.own_mib();
    let block: Vec<u8> = std::iter::repeat_n(field("x-flood", &[b'x'; 100]), 100)
        .flatten()
        .collect();
    for piece in [&block[..], &[]] {
        let mut client = frames::connect(address, &[]).await;
        client
            .write_all(&frame(HEADERS, END_STREAM, 1, GET))
            .await
            .unwrap();
        let ended = flood(client, 20_000, |_| frame(CONTINUATION, 0, 1, piece));
        assert!(ended.await, "{} bytes a piece", piece.len());
        proxy.stat_is("http.web.downstream_cx_active", 0).await;
    }
    let grown = proxy.own_mib() - before;
    assert!(grown < 8.0, "{grown} MiB");
    assert_eq!(proxy.stat("cluster.c.upstream_rq_total").await, 0);
}

#[tokio::test]
async fn pseudo_headers_that_would_be_read_in_two_ways_are_not_forwarded() {
    let cluster = static_cluster("c", echo().await);
    let proxy = Process::serving(&web_listener("", ROUTES, ""), &[cluster], &[]).await;
    let address = proxy.address("web").await;
    let good = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "a"),
    ];
    let smuggled = "/ HTTP/1.1\r\nhost: b\r\n\r\nGET /x";
    let bad = [
        (":path", "/a b"),
        (":path", "/a\r\nx: y"),
        (":path", smuggled),
        (":path", "/a\nb"),
        (":path", "/a\0"),
        (":path", ""),
        (":path", "a"),
        (":method", "GE T"),
        (":method", "GET / HTTP/1.1\r\nhost: b\r\n\r\nGET"),
        (":method", ""),
        (":authority", "a b"),
        (":authority", "a\r\nx: y"),
        (":authority", "a\nb"),
        (":scheme", "ht tp\r\n"),
        (":status", "200"),
        (":path", "/twice"),
        ("transfer-encoding", "chunked"),
        ("connection", "keep-alive"),
        ("x y", "z"),
        ("X-Upper", "z"),
        ("x", "a\r\nb: c"),
        ("x", "a\nb"),
        ("x\r\nb", "c"),
    ];
    for (index, (name, value)) in bad.into_iter().enumerate() {
        let mut block: Vec<u8> = good
            .iter()
            .filter(|(known, _)| *known != name || value == "/twice")
            .flat_map(|(name, value)| field(name, value.as_bytes()))
            .collect();
        block.extend(field(name, value.as_bytes()));
        // Pseudo headers come first.
        if name.starts_with(':') {
            block = [
                field(name, value.as_bytes()),
                good.iter()
                    .filter(|(known, _)| *known != name || value == "/twice")
                    .flat_map(|(name, value)| field(name, value.as_bytes()))
                    .collect(),
            ]
            .concat();
        }
        let mut client = frames::connect(address, &[]).await;
        client
            .write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block))
            .await
            .unwrap();
        // Refused by an answer, a reset, or the end of the connection.
        let refusal = loop {
            match frames::next(&mut client).await {
                Some(frame) if frame.stream == 1 => break frame.kind,
                Some(frame) if frame.kind != frames::GOAWAY => {}
                _ => break frames::GOAWAY,
            }
        };
        assert!([HEADERS, RST_STREAM, frames::GOAWAY].contains(&refusal));
        let forwarded = proxy.stat("cluster.c.upstream_rq_total").await;
        assert_eq!(forwarded, 0, "number {index}: {name:?}: {value:?}");
    }
    let mut client = frames::connect(address, &[]).await;
    client
        .write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, GET))
        .await
        .unwrap();
    assert!(frames::next_of(&mut client, HEADERS).await.is_some());
    assert_eq!(proxy.stat("cluster.c.upstream_rq_total").await, 1);
}
