//! Both ends against each other, against the `h2` crate, and against peers that break the rules.

mod rules;

use super::*;
use crate::http::headers::{ResponseHeaders, Scheme};
use ::h2::{client as their_client, server as their_server};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, uri::PathAndQuery};
use std::{future::Future, future::poll_fn, sync::Arc, time::Duration};
use tokio::{
    io::{DuplexStream, duplex},
    task::{LocalSet, spawn_local},
};

const OPTIONS: Options = Options {
    max_concurrent_streams: 100,
    stream_window: 70_000,
    connection_window: 100_000,
    head: HeadLimits {
        bytes: 8 << 10,
        count: 20,
    },
    allows_connect_protocol: true,
    is_tolerant: true,
    flood: FloodLimits::USUAL,
};
/// More than all windows.
const BIG: usize = 300_000;

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let patience = Duration::from_secs(60);
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(patience, test).await.unwrap();
    });
}

fn head(method: Method, path: &'static str) -> RequestHeaders {
    let mut map = HeaderMap::new();
    map.insert("x-own", HeaderValue::from_static("1"));
    RequestHeaders {
        method,
        scheme: Scheme::Http,
        authority: HeaderValue::from_static("a.test"),
        path: PathAndQuery::from_static(path),
        upgrade: None,
        map,
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

fn trailers() -> HeaderMap {
    let mut map = HeaderMap::new();
    map.insert("grpc-status", HeaderValue::from_static("0"));
    map
}

async fn send_all(send: &mut Send, mut data: &[u8]) -> Result<(), Error> {
    while !data.is_empty() {
        let room = poll_fn(|context| send.poll_room(context)).await?;
        let (piece, rest) = data.split_at(room.min(data.len()));
        send.send_data(piece, false)?;
        data = rest;
    }
    Ok(())
}

async fn read_all(receive: &mut Receive) -> Result<(Vec<u8>, Option<HeaderMap>), Error> {
    let (mut body, mut last) = (Vec::new(), None);
    while let Some(frame) = poll_fn(|context| receive.poll_frame(context)).await {
        match frame?.into_data() {
            Ok(data) => body.extend_from_slice(&data),
            Err(frame) => last = frame.into_trailers().ok(),
        }
    }
    Ok((body, last))
}

/// Our server: says back what it is sent, with trailers.
async fn serve(stream: DuplexStream, options: Options) -> Option<Error> {
    let mut connection = Connection::server(stream, &[], options, Arc::default(), false);
    if let Err(error) = poll_fn(|context| connection.poll_preface(context)).await {
        return Some(error);
    }
    while let Some(incoming) = poll_fn(|context| connection.poll(context)).await {
        let Incoming {
            head,
            mut receive,
            mut send,
        } = match incoming {
            Ok(incoming) => incoming,
            Err(error) => return Some(error),
        };
        spawn_local(async move {
            let mut map = head.map;
            map.insert("x-path", HeaderValue::from_str(head.path.as_str()).unwrap());
            let status = StatusCode::OK;
            send.send_head(&ResponseHeaders { status, map }, false)?;
            while let Some(frame) = poll_fn(|context| receive.poll_frame(context)).await {
                if let Ok(data) = frame?.into_data() {
                    send_all(&mut send, &data).await?;
                }
            }
            send.send_trailers(&trailers())
        });
    }
    None
}

/// A request through our client: its status, its body, its trailers.
async fn ask(
    requests: &Requests,
    body: &[u8],
) -> Result<(ResponseHeaders, Vec<u8>, Option<HeaderMap>), Error> {
    requests.ready().await?;
    let (mut receive, mut send) = requests.send(&head(Method::POST, "/echo"), false)?;
    let sending = async {
        send_all(&mut send, body).await?;
        send.send_data(&[], true)
    };
    let receiving = async {
        let head = poll_fn(|context| receive.poll_head(context)).await?;
        let (body, trailers) = read_all(&mut receive).await?;
        Ok((head, body, trailers))
    };
    let (sent, received) = tokio::join!(sending, receiving);
    sent?;
    received
}

fn client(stream: DuplexStream) -> Requests {
    let (connection, requests) = Connection::client(stream, OPTIONS, Arc::default());
    spawn_local(connection.run(None));
    requests
}

#[test]
fn both_ends_are_ours() {
    run(async {
        let (near, far) = duplex(5000);
        let server = spawn_local(serve(far, OPTIONS));
        let requests = client(near);
        let calls = (0..30).map(|index| {
            let requests = requests.clone();
            async move {
                (
                    index,
                    ask(&requests, &pattern(index * BIG / 30)).await.unwrap(),
                )
            }
        });
        for (index, (head, body, last)) in futures::future::join_all(calls).await {
            assert_eq!(
                (head.status, &head.map["x-own"], &head.map["x-path"]),
                (
                    StatusCode::OK,
                    &HeaderValue::from_static("1"),
                    &HeaderValue::from_static("/echo")
                )
            );
            assert!(body == pattern(index * BIG / 30));
            assert_eq!(last, Some(trailers()));
        }
        // Without anybody who could ask, the connection ends.
        drop(requests);
        assert_eq!(server.await.unwrap(), None);
    });
}

#[test]
fn their_client_is_served() {
    run(async {
        let (near, far) = duplex(5000);
        spawn_local(serve(far, OPTIONS));
        let (sender, connection) = their_client::handshake(near).await.unwrap();
        spawn_local(connection);
        let calls = (0..10).map(|index| {
            let mut sender = sender.clone();
            async move {
                let request = Request::post("http://a.test/echo?x=1")
                    .header("x-own", "1")
                    .body(())
                    .unwrap();
                let (response, mut send) = sender.send_request(request, false).unwrap();
                send.reserve_capacity(BIG);
                send.send_data(Bytes::from(pattern(index * BIG / 10)), true)
                    .unwrap();
                let response = response.await.unwrap();
                assert_eq!(response.headers()["x-path"], "/echo?x=1");
                let mut body = response.into_body();
                let mut all = Vec::new();
                while let Some(data) = body.data().await {
                    let data = data.unwrap();
                    body.flow_control().release_capacity(data.len()).unwrap();
                    all.extend_from_slice(&data);
                }
                assert!(all == pattern(index * BIG / 10));
                assert_eq!(body.trailers().await.unwrap(), Some(trailers()));
            }
        });
        futures::future::join_all(calls).await;
    });
}

/// Their server: answers by the path.
async fn their_server(stream: DuplexStream) {
    let mut connection = their_server::Builder::new()
        .max_concurrent_streams(2)
        .handshake::<_, Bytes>(stream)
        .await
        .unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        match request.uri().path() {
            "/reset" => respond.send_reset(::h2::Reason::ENHANCE_YOUR_CALM),
            "/away" => connection.abrupt_shutdown(::h2::Reason::NO_ERROR),
            _ => {
                spawn_local(async move {
                    let response = Response::builder()
                        .header("content-length", BIG)
                        .body(())
                        .unwrap();
                    let mut send = respond.send_response(response, false).unwrap();
                    send.send_data(Bytes::from(pattern(BIG)), true).unwrap();
                    let mut body = request.into_body();
                    while body.data().await.is_some() {}
                });
            }
        }
    }
}

#[test]
fn their_server_is_asked() {
    run(async {
        let (near, far) = duplex(5000);
        spawn_local(their_server(far));
        let requests = client(near);
        let get = |path| {
            let requests = requests.clone();
            async move {
                requests.ready().await?;
                let (mut receive, _send) = requests.send(&head(Method::GET, path), true)?;
                let head = poll_fn(|context| receive.poll_head(context)).await?;
                Ok((head.status, read_all(&mut receive).await?.0))
            }
        };
        // Until the first answer nobody knows how many the server takes.
        assert_eq!(get("/").await.map(|(status, _)| status), Ok(StatusCode::OK));
        // More than the server takes at once: they wait for each other.
        for answer in futures::future::join_all((0..9).map(|_| get("/"))).await {
            assert!(answer == Ok((StatusCode::OK, pattern(BIG))));
        }
        assert_eq!(
            get("/reset").await,
            Err(Error::Reset(Reason::ENHANCE_YOUR_CALM))
        );
        assert!(requests.is_usable());
        let gone = get("/away").await.unwrap_err();
        assert!(matches!(gone, Error::GoAway(_) | Error::Closed), "{gone:?}");
        assert!(!requests.is_usable());
    });
}

#[test]
fn who_does_not_read_holds_up_the_sender() {
    run(async {
        let (near, far) = duplex(5000);
        let (connection, requests) = Connection::client(near, OPTIONS, Arc::default());
        spawn_local(connection.run(None));
        let mut server = Connection::server(far, &[], OPTIONS, Arc::default(), false);
        poll_fn(|context| server.poll_preface(context))
            .await
            .unwrap();
        let (_receive, mut send) = requests.send(&head(Method::POST, "/"), false).unwrap();
        let incoming = poll_fn(|context| server.poll(context))
            .await
            .unwrap()
            .unwrap();
        let driven =
            spawn_local(async move { poll_fn(|context| server.poll(context)).await.is_none() });
        let mut sent = 0;
        // Until there is no room for so long that the windows must be the reason.
        while let Ok(room) = tokio::time::timeout(
            Duration::from_millis(300),
            poll_fn(|context| send.poll_room(context)),
        )
        .await
        {
            let piece = pattern(room.unwrap());
            sent += piece.len();
            send.send_data(&piece, false).unwrap();
        }
        assert_eq!(sent, OPTIONS.stream_window as usize);
        // What is read makes room again.
        let mut receive = incoming.receive;
        let mut taken = 0;
        while taken < sent {
            let frame = poll_fn(|context| receive.poll_frame(context))
                .await
                .unwrap()
                .unwrap();
            taken += frame.into_data().unwrap().len();
        }
        assert!(poll_fn(|context| send.poll_room(context)).await.is_ok());
        // A stream that is let go of gives back what nobody has read, so that others can use it.
        send.send_data(&pattern(1000), false).unwrap();
        drop((receive, incoming.send));
        assert_eq!(
            poll_fn(|context| send.poll_reset(context)).await,
            Error::Reset(Reason::CANCEL)
        );
        drop((send, _receive, requests));
        assert!(driven.await.unwrap());
    });
}
