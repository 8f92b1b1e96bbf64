//! Heads of requests and responses: bytes → our own types, with the framing of what follows. The rules that Envoy applies
//! where two readers could disagree are applied here, each with Envoy's name for it.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};

use crate::http::headers::{RequestHeaders, ResponseHeaders};

use super::Framing;
use super::said::Said;
use super::target::{one_host, target_of};

/// Limits of a head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadLimits {
    /// All of it, in bytes.
    pub(crate) bytes: usize,
    /// Number of header fields.
    pub(crate) count: usize,
    /// A length may stand beside `transfer-encoding: chunked`; it goes, and the chunks count.
    pub(crate) allows_chunked_length: bool,
    /// A method may be any token, not only one of those that are known.
    pub(crate) allows_any_method: bool,
}

/// The head of a request.
#[derive(Debug)]
pub(crate) struct RequestHead {
    /// What filters see.
    pub(crate) headers: RequestHeaders,
    /// 1.0 or 1.1.
    pub(crate) version: Version,
    /// How its body ends.
    pub(crate) framing: Framing,
    /// The client wants the connection to go on.
    pub(crate) keeps_alive: bool,
    /// The client waits for `100 Continue`.
    pub(crate) expects_continue: bool,
    /// The bytes of its fields, as Envoy counts them.
    pub(crate) field_bytes: usize,
    /// Its target is a whole URL, whose host counts before this, its own.
    pub(crate) passed_over: Option<HeaderValue>,
}

/// The head of a response.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    /// What filters see.
    pub(crate) headers: ResponseHeaders,
    /// How its body ends.
    pub(crate) framing: Framing,
    /// The connection goes on afterwards.
    pub(crate) keeps_alive: bool,
    /// The bytes of its fields, as Envoy counts them.
    pub(crate) field_bytes: usize,
}

/// Why a head is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidHead {
    /// Not HTTP.
    #[error("http1.codec_error")]
    Codec,
    /// A character that does not belong there.
    #[error("http1.invalid_characters")]
    Characters,
    /// A target that is not one.
    #[error("http1.invalid_url")]
    Url,
    /// A host that is not one.
    #[error("http.invalid_authority")]
    Authority,
    /// A fragment in the path.
    #[error("path_normalization_failed")]
    Path,
    /// Not a version that is spoken here.
    #[error("low_version")]
    Version,
    /// Two ways to say where the body ends.
    #[error("http1.content_length_and_chunked_not_allowed")]
    LengthAndChunked,
    /// A transfer encoding other than chunked.
    #[error("http1.invalid_transfer_encoding")]
    TransferEncoding,
    /// A CONNECT with a body.
    #[error("http1.body_disallowed")]
    BodyDisallowed,
    /// Longer than allowed.
    #[error("http1.headers_too_large")]
    TooLarge,
    /// More fields than allowed.
    #[error("http1.too_many_headers")]
    TooMany,
}

impl InvalidHead {
    /// What the client is told.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            InvalidHead::TransferEncoding => StatusCode::NOT_IMPLEMENTED,
            InvalidHead::Version => StatusCode::UPGRADE_REQUIRED,
            InvalidHead::TooLarge | InvalidHead::TooMany => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// Where a head ends, and what its lines are like.
struct Outline {
    /// The end of the first line.
    line: usize,
    /// The lines after it, with the empty one.
    others: usize,
    length: usize,
    /// A line goes on in the next one.
    is_folded: bool,
}

/// Fields that the proxy may add to a request and to a response: the map need not grow for them.
const REQUEST_ADDS: usize = 8;
const RESPONSE_ADDS: usize = 4;

/// Room for this many fields is on the stack.
const SLOTS: usize = 104;

/// The head of a request at the beginning of `input`, taken out of it; `None` when it is not all there.
pub(crate) fn parse_request(
    input: &mut BytesMut,
    limits: HeadLimits,
    is_tls: bool,
) -> Result<Option<RequestHead>, InvalidHead> {
    let blank = input
        .iter()
        .take_while(|byte| matches!(byte, b'\r' | b'\n'))
        .count();
    if blank > 0 {
        let _ = input.split_to(blank);
    }
    let mut config = httparse::ParserConfig::default();
    config.allow_multiple_spaces_in_request_line_delimiters(true);
    let mut few = [const { MaybeUninit::uninit() }; SLOTS];
    let mut many;
    let slots: &mut [MaybeUninit<httparse::Header<'_>>] = if limits.count < SLOTS {
        &mut few[..=limits.count]
    } else {
        many = vec![MaybeUninit::uninit(); limits.count + 1];
        &mut many
    };
    // One place in the input stays borrowed by the parsed head, so that the bytes are taken out first.
    let Some(length) = request_length(&config, input, limits)? else {
        return Ok(None);
    };
    let block = input.split_to(length).freeze();
    let mut parsed = httparse::Request::new(&mut []);
    match config.parse_request_with_uninit_headers(&mut parsed, &block, slots) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) | Err(_) => return Err(InvalidHead::Codec),
    }
    if parsed.headers.len() > limits.count {
        return Err(InvalidHead::TooMany);
    }
    let method = parsed.method.unwrap_or_default();
    let method = limits.method(method).ok_or(InvalidHead::Codec)?;
    let version = if parsed.version == Some(0) {
        Version::HTTP_10
    } else {
        Version::HTTP_11
    };
    let target = parsed.path.unwrap_or_default();
    let mut said = Said::default();
    let (mut host, mut hosts) = (None, 0);
    let mut map = fields(&block, parsed.headers, REQUEST_ADDS, |name, value| {
        if *name == header::HOST {
            hosts += 1;
            host = Some(value);
            return None;
        }
        said.note(name, &value);
        Some(value)
    })?;
    let framing = said
        .ends(&mut map, limits)?
        .request_framing(&method, version)?;
    let (scheme, authority, path) = target_of(&block, target, &method, is_tls)?;
    let host = one_host(host, hosts)?.unwrap_or(HeaderValue::from_static(""));
    let passed_over = (authority.is_some() && method != Method::CONNECT).then(|| host.clone());
    let authority = authority.unwrap_or(host);
    let expects_continue = said.has_expect
        && version == Version::HTTP_11
        && map
            .get(header::EXPECT)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let upgrade = said
        .has_upgrade
        .then(|| map.get(header::UPGRADE).cloned())
        .flatten();
    Ok(Some(RequestHead {
        headers: RequestHeaders {
            method,
            scheme,
            authority,
            path,
            upgrade,
            map,
        },
        version,
        framing,
        keeps_alive: said.keeps_alive(version),
        expects_continue,
        field_bytes: field_bytes(parsed.headers),
        passed_over,
    }))
}

/// How long the head is; `None` when it is not all there.
fn request_length(
    config: &httparse::ParserConfig,
    input: &BytesMut,
    limits: HeadLimits,
) -> Result<Option<usize>, InvalidHead> {
    let Some(outline) = outline(input) else {
        if input.len() > limits.bytes {
            return Err(InvalidHead::TooLarge);
        }
        // What can never become a head is refused at once.
        let line = memchr::memchr(b'\n', input).map(|at| &input[..=at]);
        if line.is_some_and(has_other_version) {
            return Err(InvalidHead::Version);
        }
        let mut parsed = httparse::Request::new(&mut []);
        return match config.parse_request(&mut parsed, line.unwrap_or(input)) {
            Ok(_) | Err(httparse::Error::TooManyHeaders) => Ok(None),
            Err(_) => Err(InvalidHead::Codec),
        };
    };
    if outline.length > limits.bytes {
        return Err(InvalidHead::TooLarge);
    }
    if has_other_version(&input[..outline.line]) {
        return Err(InvalidHead::Version);
    }
    if outline.others > limits.count + 1 {
        return Err(InvalidHead::TooMany);
    }
    Ok(Some(outline.length))
}

/// Finds the end of a head, which is after its first empty line.
fn outline(input: &[u8]) -> Option<Outline> {
    let (mut line, mut others, mut is_folded) = (None, 0, false);
    for at in memchr::memchr_iter(b'\n', input) {
        line.get_or_insert(at);
        others += 1;
        let empty = match &input[at + 1..] {
            [b'\n', ..] => 1,
            [b'\r', b'\n', ..] => 2,
            [b' ' | b'\t', ..] => {
                is_folded = true;
                continue;
            }
            _ => continue,
        };
        return Some(Outline {
            line: line.unwrap_or(at),
            others,
            length: at + 1 + empty,
            is_folded,
        });
    }
    None
}

/// A whole request line with a version that is neither 1.0 nor 1.1, or (HTTP/0.9) with none.
fn has_other_version(line: &[u8]) -> bool {
    let mut words = line
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    match (words.next(), words.next(), words.next()) {
        (Some(method), Some(target), None) => {
            target.starts_with(b"/")
                && std::str::from_utf8(method).is_ok_and(|method| known_method(method).is_some())
        }
        (_, _, Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor])) => {
            major.is_ascii_digit()
                && minor.is_ascii_digit()
                && !matches!((major, minor), (b'1', b'0' | b'1'))
        }
        _ => false,
    }
}

impl HeadLimits {
    /// The method that goes by this name.
    fn method(self, text: &str) -> Option<Method> {
        known_method(text).or_else(|| {
            let any = self.allows_any_method.then_some(text)?;
            Method::from_bytes(any.as_bytes()).ok()
        })
    }
}

/// The methods that Envoy's parser knows.
fn known_method(text: &str) -> Option<Method> {
    const OTHERS: &[&str] = &[
        "COPY",
        "LOCK",
        "MKCOL",
        "MOVE",
        "PROPFIND",
        "PROPPATCH",
        "SEARCH",
        "UNLOCK",
        "BIND",
        "REBIND",
        "UNBIND",
        "ACL",
        "REPORT",
        "MKACTIVITY",
        "CHECKOUT",
        "MERGE",
        "M-SEARCH",
        "NOTIFY",
        "SUBSCRIBE",
        "UNSUBSCRIBE",
        "PURGE",
        "MKCALENDAR",
        "LINK",
        "UNLINK",
        "SOURCE",
    ];
    Some(match text {
        "GET" => Method::GET,
        "POST" => Method::POST,
        "PUT" => Method::PUT,
        "HEAD" => Method::HEAD,
        "DELETE" => Method::DELETE,
        "OPTIONS" => Method::OPTIONS,
        "PATCH" => Method::PATCH,
        "CONNECT" => Method::CONNECT,
        "TRACE" => Method::TRACE,
        other if OTHERS.contains(&other) => Method::from_bytes(other.as_bytes()).ok()?,
        _ => return None,
    })
}

/// The head of a response at the beginning of `input`, taken out of it; `None` when it is not all there.
pub(crate) fn parse_response(
    input: &mut BytesMut,
    limits: HeadLimits,
    request: &Method,
) -> Result<Option<ResponseHead>, InvalidHead> {
    let Some(outline) = outline(input) else {
        let is_status_line = input
            .iter()
            .zip(b"HTTP/1.")
            .all(|(one, other)| one == other);
        return match (is_status_line, input.len() > limits.bytes) {
            (false, _) => Err(InvalidHead::Codec),
            (true, true) => Err(InvalidHead::TooLarge),
            (true, false) => Ok(None),
        };
    };
    let block = input.split_to(outline.length);
    let block = if outline.is_folded {
        unfold(&block)
    } else {
        block.freeze()
    };
    let mut config = httparse::ParserConfig::default();
    config.allow_multiple_spaces_in_response_status_delimiters(true);
    let mut few = [const { MaybeUninit::uninit() }; SLOTS];
    let mut many;
    let slots: &mut [MaybeUninit<httparse::Header<'_>>] = if limits.count <= SLOTS {
        &mut few[..limits.count]
    } else {
        many = vec![MaybeUninit::uninit(); limits.count];
        &mut many
    };
    let mut parsed = httparse::Response::new(&mut []);
    match config.parse_response_with_uninit_headers(&mut parsed, &block, slots) {
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => return Err(InvalidHead::TooMany),
        Ok(httparse::Status::Partial) | Err(_) => return Err(InvalidHead::Codec),
    }
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(InvalidHead::Codec)?;
    let mut said = Said::default();
    let mut map = fields(&block, parsed.headers, RESPONSE_ADDS, |name, value| {
        said.note(name, &value);
        Some(value)
    })?;
    let framing = said
        .ends(&mut map, limits)?
        .response_framing(status, request)?;
    let version = match parsed.version {
        Some(0) => Version::HTTP_10,
        _ => Version::HTTP_11,
    };
    let keeps_alive = framing != Framing::UntilClose
        && said.keeps_alive(version)
        && status != StatusCode::SWITCHING_PROTOCOLS;
    Ok(Some(ResponseHead {
        headers: ResponseHeaders { status, map },
        framing,
        keeps_alive,
        field_bytes: field_bytes(parsed.headers),
    }))
}

/// A header line that goes on in the next one is made one line, as RFC 9112 asks of a proxy.
fn unfold(block: &[u8]) -> Bytes {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let mut lines = BytesMut::with_capacity(block.len());
    for line in block.split_inclusive(|byte| *byte == b'\n') {
        if line.first().is_some_and(is_blank) {
            lines.truncate(lines.trim_ascii_end().len());
            lines.extend_from_slice(b" ");
            lines.extend_from_slice(line.trim_ascii_start());
        } else {
            lines.extend_from_slice(line);
        }
    }
    lines.freeze()
}

/// QUIRK: three bytes for what stands around a name and its value, and for a head without fields.
fn field_bytes(parsed: &[httparse::Header<'_>]) -> usize {
    let fields = parsed
        .iter()
        .map(|field| field.name.len() + field.value.trim_ascii_end().len() + 3);
    fields.sum::<usize>().max(3)
}

/// Header fields as a map with room for `more`; their values stay where they are. `keep` sees each, and may keep its value out
/// of the map.
pub(super) fn fields(
    block: &Bytes,
    parsed: &[httparse::Header<'_>],
    more: usize,
    mut keep: impl FnMut(&HeaderName, HeaderValue) -> Option<HeaderValue>,
) -> Result<HeaderMap, InvalidHead> {
    let mut map = HeaderMap::with_capacity(parsed.len() + more);
    for field in parsed {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| InvalidHead::Codec)?;
        let value = HeaderValue::from_maybe_shared(block.slice_ref(field.value.trim_ascii_end()))
            .map_err(|_| InvalidHead::Characters)?;
        if let Some(value) = keep(&name, value) {
            map.try_append(name, value)
                .map_err(|_| InvalidHead::TooMany)?;
        }
    }
    Ok(map)
}
