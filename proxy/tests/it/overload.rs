//! The overload manager's resets: of the streams of HTTP/2 those go that hold most, whoever made them hold it. And what it sheds.

use crate::{
    frames::{self, frame},
    http::echo,
    running::{PATIENCE, Running, eventually, http, over_http2, static_cluster, web_listener},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{
    convert::Infallible,
    net::SocketAddr,
    path::Path,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const SHED_CLOSE: &str = "envoy.load_shed_points.http2_server_go_away_and_close_on_dispatch";
const COUNT: &str = "envoy.overload_actions.reset_high_memory_stream.count";
/// More than the windows of the client, which does not read, and of its connection.
const LARGE: usize = 512 << 10;

/// An upstream of HTTP/2 with a large answer to GET; to anything else it says how much it was sent.
async fn web() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|request: Request<Incoming>| async move {
                let answer = if request.method() == "GET" {
                    vec![b'x'; LARGE]
                } else {
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    body.len().to_string().into_bytes()
                };
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(answer))))
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

/// A proxy that keeps a request's body for its filter until all of it is there.
async fn proxy(file: &Path) -> Running {
    let filter = r#"http_filters: [{name: buffer, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer, max_request_bytes: 10000000}}, "#;
    let cluster = over_http2(
        &static_cluster("c", web().await),
        "initial_stream_window_size: 1048576, initial_connection_window_size: 1048576",
    );
    let routes = "[{match: {prefix: /}, route: {cluster: c, timeout: 0s}}]";
    let listener = web_listener("", routes, "").replace("http_filters: [", filter);
    Running::start(&format!(
        r#"static_resources: {{listeners: [{listener}], clusters: [{cluster}]}}
overload_manager:
  refresh_interval: 0.01s
  buffer_factory_config: {{minimum_account_to_track_power_of_two: 14}}
  resource_monitors:
  - {{name: injected, typed_config: {{"@type": type.googleapis.com/envoy.extensions.resource_monitors.injected_resource.v3.InjectedResourceConfig, filename: {}}}}}
  actions:
  - {{name: envoy.overload_actions.reset_high_memory_stream, triggers: [{{name: injected, scaled: {{scaling_threshold: 0, saturation_threshold: 1}}}}]}}
"#,
        file.display()
    ))
    .await
}

/// Changes the pressure, which is at least `least` in a thousand, again and again until so many streams were reset.
async fn press(file: &Path, least: u32, proxy: &Running, count: u64) {
    let turn = AtomicU32::new(0);
    eventually("resets", || async {
        let more = turn.fetch_add(1, Relaxed) % 10;
        let text = format!("0.{}", least + more);
        tokio::fs::write(file, text).await.unwrap();
        (proxy.stat(COUNT).await >= count).then_some(())
    })
    .await;
    assert_eq!(proxy.stat(COUNT).await, count);
}

#[tokio::test]
async fn streams_that_hold_most_are_reset_first_and_small_ones_never() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pressure");
    std::fs::write(&file, "0").unwrap();
    let proxy = proxy(&file).await;
    let io = TcpStream::connect(proxy.address("web").await)
        .await
        .unwrap();
    // The client's window is of 64 KiB: the rest of the answer stays on its way.
    let (mut client, connection) = h2::client::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let mut open = |method: &str, is_whole: bool| {
        let request = Request::builder().method(method).uri("http://a/");
        client
            .send_request(request.body(()).unwrap(), is_whole)
            .unwrap()
    };
    let (unread, _) = open("GET", true);
    let unread = unread.await.unwrap();
    let (medium, mut sending) = open("POST", false);
    sending
        .send_data(Bytes::from(vec![b'x'; 40 << 10]), false)
        .unwrap();
    let (small, mut rest) = open("POST", false);
    rest.send_data(Bytes::from_static(b"hello"), false).unwrap();
    // From 128 KiB on.
    press(&file, 500, &proxy, 1).await;
    let mut body = unread.into_body();
    let error = loop {
        match body.data().await.expect("not all of it") {
            Ok(data) => body.flow_control().release_capacity(data.len()).unwrap(),
            Err(error) => break error,
        }
    };
    assert_eq!(error.reason(), Some(h2::Reason::INTERNAL_ERROR));
    // All classes.
    press(&file, 950, &proxy, 2).await;
    let error = medium.await.unwrap_err();
    assert_eq!(error.reason(), Some(h2::Reason::INTERNAL_ERROR));
    rest.send_data(Bytes::from_static(b" you"), true).unwrap();
    let mut answer = small.await.unwrap().into_body();
    assert_eq!(answer.data().await.unwrap().unwrap(), "9");
    proxy.stat_is("http.web.downstream_rq_rx_reset", 2).await;
    proxy.stop().await;
}

/// A proxy that lets connections of HTTP/2 go as soon as the pressure in `file` is great.
async fn shedding(file: &Path) -> Running {
    let cluster = static_cluster("c", echo().await);
    let listener = web_listener("", "[{match: {prefix: /}, route: {cluster: c}}]", "");
    Running::start(&format!(
        r#"static_resources: {{listeners: [{listener}], clusters: [{cluster}]}}
overload_manager:
  refresh_interval: 0.01s
  resource_monitors:
  - {{name: injected, typed_config: {{"@type": type.googleapis.com/envoy.extensions.resource_monitors.injected_resource.v3.InjectedResourceConfig, filename: {}}}}}
  loadshed_points:
  - {{name: {SHED_CLOSE}, triggers: [{{name: injected, threshold: {{value: 0.9}}}}]}}
"#,
        file.display()
    ))
    .await
}

/// Waits until connections are let go.
async fn is_pressed(proxy: &Running) {
    let scale = format!("overload.{SHED_CLOSE}.scale_percent");
    eventually("pressure", || async {
        (proxy.stat(&scale).await == 100).then_some(())
    })
    .await;
}

/// A connection that is shed just when its client breaks the protocol ends as any other, and its worker goes on.
#[tokio::test]
async fn a_shed_connection_that_breaks_the_protocol_ends() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pressure");
    std::fs::write(&file, "0").unwrap();
    let proxy = shedding(&file).await;
    let address = proxy.address("web").await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(frames::PREFACE).await.unwrap();
    let hello = frames::next(&mut client).await.unwrap();
    assert_eq!(hello.kind, frames::SETTINGS);
    std::fs::write(&file, "1").unwrap();
    is_pressed(&proxy).await;
    // Data of no stream, in what the connection itself reads first.
    let garbage = [
        frame(frames::SETTINGS, 0, 0, &[]),
        frame(frames::DATA, 0, 1, b"x"),
    ];
    client.write_all(&garbage.concat()).await.unwrap();
    let end = async { while frames::next(&mut client).await.is_some() {} };
    tokio::time::timeout(PATIENCE, end).await.unwrap();
    // Whichever worker they come to.
    for _ in 0..32 {
        let answer = tokio::time::timeout(PATIENCE, http(address, "GET", "/"));
        assert_eq!(answer.await.unwrap().0, 200);
    }
    proxy.stop().await;
}

/// What comes with the preface is shed as well, and who sends more than is read still hears why.
#[tokio::test]
async fn a_connection_is_shed_with_all_that_it_sends_and_is_not_reset() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pressure");
    std::fs::write(&file, "1").unwrap();
    let proxy = shedding(&file).await;
    is_pressed(&proxy).await;
    let mut client = TcpStream::connect(proxy.address("web").await)
        .await
        .unwrap();
    let data = frame(frames::DATA, 0, 1, &[b'x'; 16 << 10]);
    let all = [
        frames::PREFACE,
        &frame(frames::SETTINGS, 0, 0, &[]),
        &frame(frames::HEADERS, frames::END_HEADERS, 1, frames::POST),
        &data.repeat(32),
    ];
    client.write_all(&all.concat()).await.unwrap();
    let mut kinds = Vec::new();
    while let Some(frame) = frames::next(&mut client).await {
        assert_ne!(frame.kind, frames::HEADERS);
        kinds.push(frame.kind);
    }
    assert_eq!(kinds.last(), Some(&frames::GOAWAY));
    // Its end, and no error.
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    proxy.stop().await;
}
