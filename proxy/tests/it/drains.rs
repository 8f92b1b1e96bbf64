//! Drains by hand, as an operator or an agent starts them.

use crate::{
    process::Process,
    running::{eventually, http, web_listener},
};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const HELLO: &str =
    "[{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: hello}}}]";

/// Asks on a connection that goes on; the answer.
async fn ask(stream: &mut TcpStream) -> String {
    let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"hello") {
        let count = stream.read_buf(&mut answer).await.unwrap();
        assert!(count > 0, "closed instead of answered");
    }
    String::from_utf8(answer).unwrap()
}

async fn asked(to: SocketAddr) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let answer = ask(&mut stream).await;
    (stream, answer)
}

#[tokio::test]
async fn idle_connections_learn_of_a_drain_by_their_next_answer() {
    for path in ["/drain_listeners?graceful", "/drain_listeners"] {
        let listener = web_listener("", HELLO, "");
        let proxy = Process::serving(&listener, &[], &["--drain-time-s", "60"]).await;
        let address = proxy.address("web").await;
        let (mut idle, answer) = asked(address).await;
        assert!(!answer.contains("connection: close"), "{answer}");
        let (mut busy, _) = asked(address).await;
        let mut unused = TcpStream::connect(address).await.unwrap();
        // It is idle for longer than anything on its way could take.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(proxy.post(path).await.0, 200);
        if path.ends_with("graceful") {
            assert_eq!(http(address, "GET", "/").await.0, 200);
        } else {
            eventually("refusal", || async {
                TcpStream::connect(address).await.err()
            })
            .await;
        }
        // Envoy begins with few connections, so that it may take some answers.
        let told = async {
            while !ask(&mut busy).await.contains("connection: close") {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(crate::running::PATIENCE, told)
            .await
            .unwrap();
        assert_eq!(busy.read(&mut [0]).await.unwrap(), 0);
        ask(&mut idle).await;
        ask(&mut unused).await;
    }
}

#[tokio::test]
async fn only_inbound_listeners_stop_where_that_is_asked_for() {
    let out = web_listener("", HELLO, "");
    let inbound = out.replacen("name: web,", "name: in, traffic_direction: INBOUND,", 1);
    let listeners = format!("{out}, {inbound}");
    let proxy = Process::serving(&listeners, &[], &["--drain-time-s", "60"]).await;
    let (out, inbound) = (proxy.address("web").await, proxy.address("in").await);
    let (mut kept, _) = asked(out).await;
    assert_eq!(proxy.post("/drain_listeners?inboundonly").await.0, 200);
    eventually("refusal", || async {
        TcpStream::connect(inbound).await.err()
    })
    .await;
    assert_eq!(http(out, "GET", "/").await.0, 200);
    assert!(!ask(&mut kept).await.contains("connection: close"));
    proxy.stat_is("listener_manager.listener_stopped", 1).await;
}
