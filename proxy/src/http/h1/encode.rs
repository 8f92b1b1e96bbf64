//! Heads as bytes: names in lower case, as Envoy writes them, and what says where the body ends last.

use http::header::{self, HeaderMap, HeaderName};
use http::{Method, StatusCode};

use crate::http::headers::{RequestHeaders, ResponseHeaders};

/// Room for a head and a small body behind it.
const ROOM: usize = 2 << 10;

/// How the body that follows a head is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyFraming {
    /// None follows, whatever the head says.
    None,
    /// As it is: by the length that the head says, or to the end of the connection.
    Plain,
    /// In chunks.
    Chunked,
}

/// Writes a request's head without its last lines; [`end_request`] adds those.
pub(crate) fn request(headers: &RequestHeaders, out: &mut Vec<u8>) {
    out.reserve(ROOM.max(256 + headers.map.len() * 48));
    let is_extended_connect = headers.method == Method::CONNECT && headers.upgrade.is_some();
    // An extended CONNECT becomes the upgrade that it stands for.
    let method = if is_extended_connect {
        "GET"
    } else {
        headers.method.as_str()
    };
    out.extend_from_slice(method.as_bytes());
    out.push(b' ');
    if headers.method == Method::CONNECT && !is_extended_connect {
        out.extend_from_slice(headers.authority.as_bytes());
    } else {
        out.extend_from_slice(headers.path.as_str().as_bytes());
    }
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    out.extend_from_slice(headers.authority.as_bytes());
    out.extend_from_slice(b"\r\n");
    fields(&headers.map, out, |name| {
        headers.upgrade.is_some() && (name == header::CONNECTION || name == header::UPGRADE)
    });
    if let Some(upgrade) = &headers.upgrade {
        out.extend_from_slice(b"connection: upgrade\r\nupgrade: ");
        out.extend_from_slice(upgrade.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

/// Ends a request's head, by what is known of its body.
pub(crate) fn end_request(
    headers: &RequestFraming,
    is_empty: bool,
    out: &mut Vec<u8>,
) -> BodyFraming {
    let framing = if headers.has_length {
        BodyFraming::Plain
    } else if is_empty {
        if !headers.is_bodiless && !headers.is_tunnel {
            out.extend_from_slice(b"content-length: 0\r\n");
        }
        BodyFraming::Plain
    } else {
        // Whoever asks for an upgrade keeps to this too: an upstream that refuses it must not read the body as a request.
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        BodyFraming::Chunked
    };
    out.extend_from_slice(b"\r\n");
    framing
}

/// What a request's head says of the body's framing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestFraming {
    has_length: bool,
    /// A method that has no body.
    is_bodiless: bool,
    /// What follows is no body.
    is_tunnel: bool,
}

impl RequestFraming {
    /// Of a request.
    pub(crate) fn of(headers: &RequestHeaders) -> Self {
        RequestFraming {
            has_length: headers.map.contains_key(header::CONTENT_LENGTH),
            is_bodiless: matches!(
                headers.method,
                Method::GET | Method::HEAD | Method::DELETE | Method::TRACE | Method::CONNECT
            ),
            is_tunnel: headers.upgrade.is_some() || headers.method == Method::CONNECT,
        }
    }
}

/// What a response is an answer to, and what becomes of the connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ResponseContext {
    /// The request was a HEAD.
    pub(crate) is_head: bool,
    /// The request was HTTP/1.0, and that is spoken here.
    pub(crate) is_old: bool,
    /// Header names are written in proper case.
    pub(crate) has_proper_case: bool,
    /// Nothing follows the head.
    pub(crate) is_empty: bool,
    /// The connection is closed after it.
    pub(crate) closes: bool,
    /// The connection becomes a tunnel.
    pub(crate) is_tunnel: bool,
}

/// Writes a response's head.
pub(crate) fn response(
    head: &ResponseHeaders,
    context: ResponseContext,
    out: &mut Vec<u8>,
) -> BodyFraming {
    out.reserve(ROOM.max(192 + head.map.len() * 48));
    let start = out.len();
    status_line(head.status, context.is_old, out);
    fields(&head.map, out, |name| {
        context.closes && name == header::CONNECTION && !context.is_tunnel
    });
    if context.closes && !context.is_tunnel {
        out.extend_from_slice(b"connection: close\r\n");
    } else if context.is_old && !context.is_tunnel {
        out.extend_from_slice(b"connection: keep-alive\r\n");
    }
    let has_length = head.map.contains_key(header::CONTENT_LENGTH);
    let never_has_body = head.status.is_informational()
        || head.status == StatusCode::NO_CONTENT
        || head.status == StatusCode::NOT_MODIFIED
        || context.is_tunnel;
    let framing = if never_has_body {
        BodyFraming::None
    } else if has_length {
        BodyFraming::Plain
    } else if context.is_empty && !context.is_head {
        out.extend_from_slice(b"content-length: 0\r\n");
        BodyFraming::None
    } else if context.is_old {
        BodyFraming::Plain
    } else {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        BodyFraming::Chunked
    };
    out.extend_from_slice(b"\r\n");
    if context.has_proper_case {
        proper_case(&mut out[start..]);
    }
    if context.is_head {
        BodyFraming::None
    } else {
        framing
    }
}

/// Writes the names in a head in proper case: `Content-Length`.
pub(crate) fn proper_case(head: &mut [u8]) {
    let mut lines = head.split_inclusive_mut(|byte| *byte == b'\n');
    // The first line has no name.
    lines.next();
    for line in lines {
        let mut begins = true;
        for byte in line.iter_mut().take_while(|byte| **byte != b':') {
            if begins {
                byte.make_ascii_uppercase();
            }
            begins = !byte.is_ascii_alphanumeric();
        }
    }
}

/// The bytes of a head's fields, without its first and its last line.
pub(crate) fn field_bytes(head: &[u8]) -> usize {
    let line = memchr::memchr(b'\n', head).map_or(0, |at| at + 1);
    head.len().saturating_sub(line + b"\r\n".len())
}

/// The bytes of trailers.
pub(crate) fn trailer_bytes(trailers: &HeaderMap) -> usize {
    let lines = trailers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + b": \r\n".len());
    lines.sum()
}

/// Ends a chunked body.
pub(crate) fn end_chunks(trailers: Option<&HeaderMap>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n");
    if let Some(trailers) = trailers {
        fields(trailers, out, |name| {
            name == header::CONTENT_LENGTH || name == header::TRANSFER_ENCODING
        });
    }
    out.extend_from_slice(b"\r\n");
}

fn status_line(status: StatusCode, is_old: bool, out: &mut Vec<u8>) {
    if status == StatusCode::OK && !is_old {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        return;
    }
    out.extend_from_slice(if is_old { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    // QUIRK: Envoy does not know the teapot.
    let reason = match status {
        StatusCode::IM_A_TEAPOT => None,
        status => status.canonical_reason(),
    };
    out.extend_from_slice(reason.unwrap_or("Unknown").as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn fields(map: &HeaderMap, out: &mut Vec<u8>, is_left_out: impl Fn(&HeaderName) -> bool) {
    for (name, value) in map {
        if is_left_out(name) {
            continue;
        }
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}
