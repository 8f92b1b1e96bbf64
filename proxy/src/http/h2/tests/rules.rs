//! Peers that break the rules.

use super::{
    super::{Error, Options, PREFACE, Reason, frame},
    OPTIONS, pattern, run, serve,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
    task::spawn_local,
};

/// What our server makes of bytes behind the preface and empty settings: its error, and what it says.
async fn provoke(bytes: &[u8], options: Options) -> (Option<Error>, Vec<(u8, u32, Vec<u8>)>) {
    let (mut near, far) = duplex(1 << 20);
    let server = spawn_local(serve(far, options));
    near.write_all(PREFACE).await.unwrap();
    near.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    near.write_all(bytes).await.unwrap();
    near.shutdown().await.unwrap();
    let mut said = Vec::new();
    near.read_to_end(&mut said).await.unwrap();
    let mut frames = Vec::new();
    let mut rest = &said[..];
    while let Some(head) = frame::Head::parse(rest) {
        let (frame, after) = rest.split_at(frame::HEAD + head.length);
        frames.push((head.kind, head.stream, frame[frame::HEAD..].to_vec()));
        rest = after;
    }
    (server.await.unwrap(), frames)
}

fn raw(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::put(kind, flags, stream, payload, &mut out);
    out
}

/// `POST http /echo`, with an authority.
const POST: &[u8] = b"\x83\x86\x84\x41\x01a";

/// The connection ends, and the peer hears why.
async fn is_ended(name: &str, bytes: &[u8], reason: Reason) {
    let narrow = Options {
        connection_window: 0,
        stream_window: 1 << 20,
        ..OPTIONS
    };
    let (error, said) = provoke(bytes, narrow).await;
    assert_eq!(error, Some(Error::Protocol(reason)), "{name}");
    let away = said
        .iter()
        .rfind(|(kind, ..)| *kind == frame::GOAWAY)
        .expect(name);
    assert_eq!(away.2[4..8], reason.0.to_be_bytes(), "{name}");
}

#[test]
fn rules_of_the_connection_are_kept() {
    run(async {
        let cut = [
            raw(frame::HEADERS, 0, 1, POST),
            raw(frame::PING, 0, 0, &[0; 8]),
        ]
        .concat();
        for (name, bytes) in [
            ("data before a head", raw(frame::DATA, 0, 1, b"x")),
            ("a pushed stream", raw(frame::PUSH_PROMISE, 0, 1, &[0; 4])),
            ("an odd window", raw(frame::WINDOW_UPDATE, 0, 0, &[0; 4])),
            (
                "a head of an even stream",
                raw(frame::HEADERS, frame::END_HEADERS, 2, POST),
            ),
            ("something inside a head", cut),
        ] {
            is_ended(name, &bytes, Reason::PROTOCOL_ERROR).await;
        }
        let broken = raw(frame::HEADERS, frame::END_HEADERS, 1, &[0xff]);
        is_ended("a broken table", &broken, Reason::COMPRESSION_ERROR).await;
        let long = [0, 0x40, 1, 0, 0, 0, 0, 0, 1];
        is_ended("a long frame", &long, Reason::FRAME_SIZE_ERROR).await;
        let post = raw(frame::HEADERS, frame::END_HEADERS, 1, POST);
        let data = raw(frame::DATA, 0, 1, &pattern(16_000)).repeat(7);
        let more = [post, data].concat();
        is_ended(
            "more data than there is room for",
            &more,
            Reason::FLOW_CONTROL_ERROR,
        )
        .await;
    });
}

#[test]
fn frames_that_bring_nothing_are_bounded() {
    run(async {
        let post = raw(frame::HEADERS, frame::END_HEADERS, 1, POST);
        let empty = raw(frame::DATA, 0, 1, b"").repeat(2);
        let windows = raw(frame::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]).repeat(8);
        for (name, bytes) in [
            ("empty frames", [post.clone(), empty].concat()),
            (
                "priorities",
                raw(frame::PRIORITY, 0, 1, &[0, 0, 0, 9, 0]).repeat(101),
            ),
            ("windows", [post, windows].concat()),
            ("pings", raw(frame::PING, 0, 0, &[0; 8]).repeat(1001)),
        ] {
            is_ended(name, &bytes, Reason::ENHANCE_YOUR_CALM).await;
        }
    });
}

#[test]
fn rules_of_a_stream_end_the_stream_or_where_configured_the_connection() {
    run(async {
        let request = |block: &[u8]| {
            raw(
                frame::HEADERS,
                frame::END_HEADERS | frame::END_STREAM,
                1,
                block,
            )
        };
        let long = [POST, b"\x00\x01x\x7f\x89\x3f", &[b'y'; 8200][..]].concat();
        let many = [POST, &b"\x00\x01x\x01y".repeat(20)[..]].concat();
        for (name, bytes, reason) in [
            (
                "no path",
                request(b"\x83\x86\x41\x01a"),
                Reason::PROTOCOL_ERROR,
            ),
            (
                "two methods",
                request(&[b"\x82", POST].concat()),
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a status",
                request(&[b"\x88", POST].concat()),
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a blank in the authority",
                request(b"\x83\x86\x84\x41\x03a b"),
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a header of HTTP/1",
                request(&[POST, b"\x00\x0aconnection\x05close"].concat()),
                Reason::PROTOCOL_ERROR,
            ),
            (
                "less than was promised",
                request(&[POST, b"\x0f\x0d\x012"].concat()),
                Reason::PROTOCOL_ERROR,
            ),
            ("a head too long", request(&long), Reason::INTERNAL_ERROR),
            ("too many fields", request(&many), Reason::INTERNAL_ERROR),
        ] {
            let (error, said) = provoke(&bytes, OPTIONS).await;
            assert_eq!(error, None, "{name}");
            let reset = said
                .iter()
                .find(|(kind, ..)| *kind == frame::RST_STREAM)
                .expect(name);
            assert_eq!(
                (reset.1, &reset.2[..]),
                (1, &reason.0.to_be_bytes()[..]),
                "{name}"
            );
            let strict = Options {
                is_tolerant: false,
                ..OPTIONS
            };
            let (error, _) = provoke(&bytes, strict).await;
            let is_http = reason == Reason::INTERNAL_ERROR;
            assert_eq!(
                error,
                (!is_http).then_some(Error::Protocol(reason)),
                "{name}"
            );
        }
    });
}

#[test]
fn a_wrong_preface_is_answered_by_nothing() {
    run(async {
        let (mut near, far) = duplex(1000);
        let server = spawn_local(serve(far, OPTIONS));
        near.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut said = Vec::new();
        near.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, b"");
        assert_eq!(
            server.await.unwrap(),
            Some(Error::Protocol(Reason::PROTOCOL_ERROR))
        );
    });
}

#[test]
fn fuzz_frames() {
    crate::fuzz::fuzz("http2_frames", |bytes| {
        run(async {
            provoke(bytes, OPTIONS).await;
        });
    });
}
