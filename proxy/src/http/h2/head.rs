//! Heads from fields: what a request, a response or trailers must have and must not (RFC 9113, 8).

use super::hpack::{Broken, Decoder, Encoder, Name, OVERHEAD};
use crate::http::headers::{RequestHeaders, ResponseHeaders, Scheme, names};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header, uri::PathAndQuery};

/// How much a head may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadLimits {
    /// Bytes of names and values.
    pub(crate) bytes: usize,
    /// Number of fields.
    pub(crate) count: usize,
}

/// What is wrong with a head that could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It is no head of HTTP.
    Malformed,
    /// It has more bytes than it may.
    TooLarge,
    /// It has more fields than it may.
    TooMany,
}

/// Fields by what they are.
#[derive(Default)]
struct Fields {
    method: Option<HeaderValue>,
    scheme: Option<HeaderValue>,
    authority: Option<HeaderValue>,
    path: Option<HeaderValue>,
    protocol: Option<HeaderValue>,
    status: Option<HeaderValue>,
    map: HeaderMap,
    is_malformed: bool,
    /// Of names and values.
    bytes: usize,
}

/// Room for the headers that a head usually has, with those that are added on the way.
const USUAL: usize = 12;

/// Writes headers or trailers; how much they are.
pub(super) fn put_fields(map: &HeaderMap, encoder: &mut Encoder, out: &mut Vec<u8>) -> u64 {
    let mut bytes = 0;
    for (name, value) in map {
        encoder.header(name, value, out);
        bytes += name.as_str().len() + value.len();
    }
    bytes as u64
}

/// Reads a block whole, whatever is in it: the tables of both ends must stay the same.
fn read(
    decoder: &mut Decoder,
    block: &[u8],
    limits: HeadLimits,
    usual: usize,
) -> Result<Result<Fields, Refused>, Broken> {
    let mut fields = Fields {
        map: HeaderMap::with_capacity(usual),
        ..Fields::default()
    };
    let (mut bytes, mut count) = (0, 0);
    decoder.decode(block, |name, value, size| {
        bytes += size - OVERHEAD;
        count += 1;
        if bytes <= limits.bytes && count <= limits.count {
            fields.add(name, value);
        }
    })?;
    fields.bytes = bytes;
    Ok(if bytes > limits.bytes {
        Err(Refused::TooLarge)
    } else if count > limits.count {
        Err(Refused::TooMany)
    } else if fields.is_malformed {
        Err(Refused::Malformed)
    } else {
        Ok(fields)
    })
}

impl Fields {
    fn add(&mut self, name: &Name, value: HeaderValue) {
        let pseudo = match name {
            Name::Header(name) => {
                self.is_malformed |=
                    is_of_connection(name, &value) || self.map.try_append(name, value).is_err();
                return;
            }
            Name::Method => &mut self.method,
            Name::Scheme => &mut self.scheme,
            Name::Authority => &mut self.authority,
            Name::Path => &mut self.path,
            Name::Protocol => &mut self.protocol,
            Name::Status => &mut self.status,
            Name::Invalid => {
                self.is_malformed = true;
                return;
            }
        };
        // Once, and before all headers.
        self.is_malformed |= pseudo.replace(value).is_some() || !self.map.is_empty();
    }

    fn has_pseudo(&self) -> bool {
        self.method.is_some()
            || self.scheme.is_some()
            || self.authority.is_some()
            || self.path.is_some()
            || self.protocol.is_some()
            || self.status.is_some()
    }
}

/// Headers that speak of an HTTP/1 connection.
fn is_of_connection(name: &http::HeaderName, value: &HeaderValue) -> bool {
    match *name {
        header::CONNECTION | header::TRANSFER_ENCODING | header::UPGRADE => true,
        header::TE => !value.as_bytes().eq_ignore_ascii_case(b"trailers"),
        _ => name == names::PROXY_CONNECTION || name == names::KEEP_ALIVE,
    }
}

/// A request's head, with the bytes of its names and values.
pub(super) fn request(
    decoder: &mut Decoder,
    block: &[u8],
    limits: HeadLimits,
    is_tls: bool,
    allows_connect_protocol: bool,
) -> Result<Result<(RequestHeaders, u64), Refused>, Broken> {
    let fields = read(decoder, block, limits, USUAL)?;
    Ok(fields.and_then(|fields| {
        let bytes = fields.bytes as u64;
        let head = request_of(fields, is_tls, allows_connect_protocol);
        head.map(|head| (head, bytes)).ok_or(Refused::Malformed)
    }))
}

fn request_of(
    mut fields: Fields,
    is_tls: bool,
    allows_connect_protocol: bool,
) -> Option<RequestHeaders> {
    let method = match fields.method?.as_bytes() {
        b"GET" => Method::GET,
        b"POST" => Method::POST,
        other => Method::from_bytes(other).ok()?,
    };
    let is_connect = method == Method::CONNECT && fields.protocol.is_none();
    let is_allowed = match &fields.protocol {
        Some(_) => method == Method::CONNECT && allows_connect_protocol,
        None => true,
    };
    // Of a CONNECT there is an authority and nothing else.
    let is_whole = fields.scheme.is_none() == is_connect && fields.path.is_none() == is_connect;
    if fields.status.is_some()
        || !is_allowed
        || !is_whole
        || is_connect && fields.authority.is_none()
    {
        return None;
    }
    let host = fields.map.remove(header::HOST);
    let authority = fields
        .authority
        .or(host)
        .unwrap_or(HeaderValue::from_static(""));
    if !authority
        .as_bytes()
        .iter()
        .all(|byte| is_of_authority(*byte))
    {
        return None;
    }
    let path = match fields.path {
        None => PathAndQuery::from_static("/"),
        Some(path) => path_of(path.as_bytes(), &method)?,
    };
    join_cookies(&mut fields.map);
    Some(RequestHeaders {
        method,
        scheme: if is_tls { Scheme::Https } else { Scheme::Http },
        authority,
        path,
        upgrade: fields.protocol,
        map: fields.map,
    })
}

fn path_of(path: &[u8], method: &Method) -> Option<PathAndQuery> {
    match path {
        b"/" => Some(PathAndQuery::from_static("/")),
        [b'/', ..] => PathAndQuery::try_from(path).ok(),
        b"*" if *method == Method::OPTIONS => Some(PathAndQuery::from_static("*")),
        _ => None,
    }
}

/// What may be in `host:port`, with a user before it (which the connection manager sees to).
fn is_of_authority(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@[]%".contains(&byte)
}

/// HTTP/2 may send a cookie in pieces.
fn join_cookies(map: &mut HeaderMap) {
    let mut cookies = map.get_all(header::COOKIE).iter();
    if cookies.next().is_none() || cookies.next().is_none() {
        return;
    }
    let all: Vec<&[u8]> = map
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        map.insert(header::COOKIE, joined);
    }
}

/// A response's head, with the bytes of its names and values.
pub(super) fn response(
    decoder: &mut Decoder,
    block: &[u8],
    limits: HeadLimits,
) -> Result<Result<(ResponseHeaders, u64), Refused>, Broken> {
    let fields = read(decoder, block, limits, USUAL)?;
    Ok(fields.and_then(|mut fields| {
        let status = fields.status.take().ok_or(Refused::Malformed)?;
        if fields.has_pseudo() {
            return Err(Refused::Malformed);
        }
        let head = ResponseHeaders {
            status: StatusCode::from_bytes(status.as_bytes()).map_err(|_| Refused::Malformed)?,
            map: fields.map,
        };
        Ok((head, fields.bytes as u64))
    }))
}

/// Trailers, with the bytes of their names and values.
pub(super) fn trailers(
    decoder: &mut Decoder,
    block: &[u8],
    limits: HeadLimits,
) -> Result<Result<(HeaderMap, u64), Refused>, Broken> {
    let fields = read(decoder, block, limits, 0)?;
    Ok(fields.and_then(|fields| {
        if fields.has_pseudo() {
            return Err(Refused::Malformed);
        }
        Ok((fields.map, fields.bytes as u64))
    }))
}
