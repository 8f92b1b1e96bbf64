//! Parsers against tables (what is refused, what is read) and against noise: whatever comes, in whatever pieces, nothing panics
//! and the result is the same.

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};
use proptest::prelude::*;

use super::head::{parse_request, parse_response};
use super::{Decoded, Decoder, Framing, HeadLimits, InvalidHead, RequestHead};

const LIMITS: HeadLimits = HeadLimits {
    bytes: 60 << 10,
    count: 100,
    allows_chunked_length: false,
    allows_any_method: false,
};

fn request(text: &str) -> Result<Option<RequestHead>, InvalidHead> {
    parse_request(&mut BytesMut::from(text), LIMITS, false)
}

fn refused(text: &str) -> InvalidHead {
    match request(text) {
        Err(error) => error,
        Ok(head) => panic!("{text:?} is {head:?}"),
    }
}

#[test]
fn ambiguous_requests_are_refused_by_their_envoy_names() {
    let head = |rest: &str| format!("POST /p HTTP/1.1\r\nhost: a\r\n{rest}\r\n\r\n");
    for (rest, error) in [
        (
            "content-length: 3\r\ntransfer-encoding: chunked",
            InvalidHead::LengthAndChunked,
        ),
        (
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
            InvalidHead::TransferEncoding,
        ),
        (
            "transfer-encoding: gzip, chunked",
            InvalidHead::TransferEncoding,
        ),
        ("transfer-encoding: identity", InvalidHead::TransferEncoding),
        ("transfer-encoding: xchunked", InvalidHead::TransferEncoding),
        ("content-length: 1\r\ncontent-length: 1", InvalidHead::Codec),
        ("content-length: 1, 1", InvalidHead::Codec),
        ("content-length: +1", InvalidHead::Codec),
        ("content-length: -1", InvalidHead::Codec),
        ("content-length: ", InvalidHead::Codec),
        ("content-length: 99999999999999999999", InvalidHead::Codec),
        ("host: b", InvalidHead::Codec),
        ("x : y", InvalidHead::Codec),
        ("x y: z", InvalidHead::Codec),
        (": z", InvalidHead::Codec),
        ("x: a\r\n b", InvalidHead::Codec),
        ("x: a\0b", InvalidHead::Codec),
    ] {
        assert_eq!(refused(&head(rest)), error, "{rest:?}");
    }
    for (text, error) in [
        ("G@T / HTTP/1.1\r\nhost: a\r\n\r\n", InvalidHead::Codec),
        ("FOO / HTTP/1.1\r\nhost: a\r\n\r\n", InvalidHead::Codec),
        ("GET /a b HTTP/1.1\r\nhost: a\r\n\r\n", InvalidHead::Codec),
        ("GET /#x HTTP/1.1\r\nhost: a\r\n\r\n", InvalidHead::Path),
        ("GET foo HTTP/1.1\r\nhost: a\r\n\r\n", InvalidHead::Codec),
        ("GET / HTTP/2.0\r\nhost: a\r\n\r\n", InvalidHead::Version),
        ("GET /\r\n\r\n", InvalidHead::Version),
        (
            "GET / HTTP/1.1\r\nhost: a b\r\n\r\n",
            InvalidHead::Authority,
        ),
        (
            "GET / HTTP/1.1\r\nhost: a/b\r\n\r\n",
            InvalidHead::Authority,
        ),
        (
            "CONNECT a:1 HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n",
            InvalidHead::BodyDisallowed,
        ),
        ("CONNECT /x HTTP/1.1\r\nhost: a\r\n\r\n", InvalidHead::Url),
        ("\x16\x03\x01\x02\r\n\r\n", InvalidHead::Codec),
    ] {
        assert_eq!(refused(text), error, "{text:?}");
    }
    let many: String = (0..101).map(|index| format!("h{index}: v\r\n")).collect();
    assert_eq!(refused(&head(&many)), InvalidHead::TooMany);
    assert_eq!(
        refused(&head(&format!("x: {}", "y".repeat(61 << 10)))),
        InvalidHead::TooLarge
    );
    assert_eq!(refused(&"x".repeat(61 << 10)), InvalidHead::TooLarge);
}

#[test]
fn requests_are_read_as_they_are_meant() {
    let read = |text: &str| request(text).unwrap().unwrap();
    let head = read("\r\nGET /a?b HTTP/1.1\r\nHost: h\r\nX-A:  v \r\nConnection: close\r\n\r\n");
    assert_eq!(head.headers.path.as_str(), "/a?b");
    assert_eq!(head.headers.authority, "h");
    assert_eq!(head.headers.map["x-a"], "v");
    assert!(!head.keeps_alive);
    assert_eq!(head.framing, Framing::Empty);
    let head = read("GET http://b:81/x HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(
        (head.headers.host(), head.headers.path.as_str()),
        ("b:81", "/x")
    );
    let head = read("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: Chunked\r\n\r\n");
    assert_eq!(head.framing, Framing::Chunked);
    let head = read("POST / HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\n");
    assert!(head.keeps_alive && head.framing == Framing::Length(5));
    let head = read("CONNECT a:1 HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!(head.headers.host(), "a:1");
    let head =
        read("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
    assert_eq!(head.headers.upgrade.unwrap(), "websocket");
    assert!(request("GET / HTTP/1.1\r\nhost: a\r\n").unwrap().is_none());
    assert!(request("GE").unwrap().is_none());
}

#[test]
fn responses_are_framed_as_the_protocol_says() {
    let framing = |text: &str, method: Method| {
        parse_response(&mut BytesMut::from(text), LIMITS, &method).map(|head| {
            head.map(|head| (head.headers.status.as_u16(), head.framing, head.keeps_alive))
        })
    };
    let ok = |status, framing, keeps_alive| Ok(Some((status, framing, keeps_alive)));
    let get = Method::GET;
    assert_eq!(
        framing("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", get.clone()),
        ok(200, Framing::Length(2), true)
    );
    assert_eq!(
        framing("HTTP/1.1 200\r\n\r\n", get.clone()),
        ok(200, Framing::UntilClose, false)
    );
    assert_eq!(
        framing("HTTP/1.1 304 No\r\ncontent-length: 2\r\n\r\n", get.clone()),
        ok(304, Framing::Empty, true)
    );
    assert_eq!(
        framing(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            Method::HEAD
        ),
        ok(200, Framing::Empty, true)
    );
    assert_eq!(
        framing("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n", get.clone()),
        ok(200, Framing::Length(2), false)
    );
    assert_eq!(
        framing(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            get.clone()
        ),
        ok(200, Framing::Empty, false)
    );
    for text in [
        "garbage\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\n",
        "HTTP/1.1 204 No\r\ncontent-length: 3\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
    ] {
        assert!(framing(text, get.clone()).is_err(), "{text:?}");
    }
    let mut folded = BytesMut::from("HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 0\r\n\r\n");
    let head = parse_response(&mut folded, LIMITS, &get).unwrap().unwrap();
    assert_eq!(head.headers.status, StatusCode::OK);
    assert_eq!(head.headers.map["x"], "a b");
}

/// Decodes `input` given in pieces: the body, and whether it ended well.
fn decode(framing: Framing, input: &[u8], pieces: &[usize]) -> (Vec<u8>, Option<bool>) {
    let mut decoder = Decoder::new(framing);
    let mut buffer = BytesMut::new();
    let mut body = Vec::new();
    let mut rest = input;
    let mut cuts = pieces.iter().cycle();
    loop {
        match decoder.decode(&mut buffer) {
            Ok(Decoded::Data(data)) => body.extend_from_slice(&data),
            Ok(Decoded::End | Decoded::Trailers(_)) => return (body, Some(true)),
            Ok(Decoded::More) if rest.is_empty() => {
                return (body, Some(decoder.close().is_ok()));
            }
            Ok(Decoded::More) => {
                let count = cuts.next().copied().unwrap_or(1).clamp(1, rest.len());
                buffer.extend_from_slice(&rest[..count]);
                rest = &rest[count..];
            }
            Err(_) => return (body, None),
        }
    }
}

#[test]
fn chunks_are_decoded_strictly() {
    let whole = |text: &str| decode(Framing::Chunked, text.as_bytes(), &[usize::MAX]);
    assert_eq!(
        whole("3;x=y\r\nabc\r\n2 \r\nde\r\n0\r\nt: v\r\n\r\n"),
        (b"abcde".to_vec(), Some(true))
    );
    for text in [
        "zz\r\nabc\r\n0\r\n\r\n",
        "3\r\nabcXX0\r\n\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3;\rx\r\nabc\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        ";x\r\nabc\r\n0\r\n\r\n",
        "-1\r\n",
    ] {
        assert_eq!(whole(text).1, None, "{text:?}");
    }
    assert_eq!(whole("3\r\nab").1, Some(false));
    assert_eq!(decode(Framing::Length(3), b"ab", &[1]).1, Some(false));
    assert_eq!(
        decode(Framing::UntilClose, b"ab", &[1]),
        (b"ab".to_vec(), Some(true))
    );
}

/// Bytes that often look like HTTP.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        Just(b"GET ".to_vec()),
        Just(b"POST ".to_vec()),
        Just(b"/p?q".to_vec()),
        Just(b" HTTP/1.1".to_vec()),
        Just(b"HTTP/1.1 200 OK".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"\r\n\r\n".to_vec()),
        Just(b"\n".to_vec()),
        Just(b"host: a".to_vec()),
        Just(b"content-length: 3".to_vec()),
        Just(b"transfer-encoding: chunked".to_vec()),
        Just(b"0\r\n".to_vec()),
        Just(b"3\r\nabc\r\n".to_vec()),
        Just(b"connection: close, upgrade".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..6),
    ];
    proptest::collection::vec(word, 0..16).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn requests_never_panic_and_do_not_depend_on_pieces(bytes in noise(), cut in 0usize..64) {
        let whole = parse_request(&mut BytesMut::from(bytes.as_slice()), LIMITS, false);
        let mut input = BytesMut::from(&bytes[..cut.min(bytes.len())]);
        let first = parse_request(&mut input, LIMITS, false);
        if let Ok(None) = first {
            input.extend_from_slice(&bytes[cut.min(bytes.len())..]);
            let second = parse_request(&mut input, LIMITS, false);
            prop_assert_eq!(format!("{second:?}"), format!("{whole:?}"));
        }
    }

    #[test]
    fn responses_never_panic(bytes in noise()) {
        let _ = parse_response(&mut BytesMut::from(bytes.as_slice()), LIMITS, &Method::GET);
    }

    #[test]
    fn bodies_do_not_depend_on_pieces(bytes in noise(), pieces in proptest::collection::vec(1usize..9, 1..5)) {
        for framing in [Framing::Chunked, Framing::Length(7), Framing::UntilClose] {
            let whole = decode(framing, &bytes, &[usize::MAX]);
            let cut = decode(framing, &bytes, &pieces);
            prop_assert_eq!(&whole, &cut);
        }
    }

    #[test]
    fn what_is_chunked_is_read_back(data in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..9000), 0..5)) {
        let mut output = super::Output::default();
        for piece in &data {
            output.put_chunk(Bytes::copy_from_slice(piece));
        }
        output.put(|flat| super::encode::end_chunks(None, flat));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut written = Vec::new();
        runtime.block_on(std::future::poll_fn(|context| output.poll_write(&mut written, context))).unwrap();
        prop_assert!(output.is_empty());
        prop_assert_eq!(decode(Framing::Chunked, &written, &[1000]), (data.concat(), Some(true)));
    }
}

#[test]
fn fuzz_http1_heads() {
    crate::fuzz::fuzz("http1_heads", |bytes| {
        let mut rest = BytesMut::from(bytes);
        let whole = parse_request(&mut rest, LIMITS, false);
        let mut input = BytesMut::new();
        for byte in bytes {
            input.extend_from_slice(&[*byte]);
            match parse_request(&mut input, LIMITS, false) {
                Ok(None) => {}
                Ok(early) => {
                    assert_eq!(
                        format!("{early:?}"),
                        format!("{:?}", whole.as_ref().unwrap())
                    );
                    break;
                }
                // More of it may tell better what is wrong.
                Err(_) => {
                    assert!(whole.is_err());
                    break;
                }
            }
        }
        for method in [Method::GET, Method::HEAD, Method::CONNECT] {
            let _ = parse_response(&mut BytesMut::from(bytes), LIMITS, &method);
        }
    });
}

#[test]
fn fuzz_http1_bodies() {
    crate::fuzz::fuzz("http1_bodies", |bytes| {
        for framing in [Framing::Chunked, Framing::Length(7), Framing::UntilClose] {
            let whole = decode(framing, bytes, &[usize::MAX]);
            assert_eq!(decode(framing, bytes, &[1]), whole);
            assert_eq!(decode(framing, bytes, &[3, 1, 5]), whole);
        }
    });
}
