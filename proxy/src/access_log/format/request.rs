//! What operators read of a request's head beside its fields.

use std::borrow::Cow;
use std::sync::OnceLock;

use http::HeaderMap;

use crate::http::headers::{RequestHeaders, names};

use super::FormatContext;
use super::operator::{Map, put};

/// Where the path is taken from.
#[derive(Debug, Clone, Copy)]
pub(super) enum PathSource {
    /// As it came, else as it is.
    OriginalElsePath,
    Original,
    Path,
}

/// Where the server's name is taken from.
#[derive(Debug, Clone, Copy)]
pub(super) struct ServerName {
    pub(super) from: NameFrom,
    pub(super) host: HostSource,
}

/// TLS or HTTP.
#[derive(Debug, Clone, Copy)]
pub(super) enum NameFrom {
    TlsOnly,
    TlsElseHost,
    Host,
}

/// Which host.
#[derive(Debug, Clone, Copy)]
pub(super) enum HostSource {
    OriginalElseHost,
    Original,
    Host,
}

impl PathSource {
    pub(super) fn of(self, request: &RequestHeaders) -> Option<&str> {
        let original = || request.text(&names::X_ENVOY_ORIGINAL_PATH);
        match self {
            PathSource::OriginalElsePath => original().or(Some(request.path.as_str())),
            PathSource::Original => original(),
            PathSource::Path => Some(request.path.as_str()),
        }
    }
}

impl ServerName {
    pub(super) fn write(self, context: &FormatContext<'_>, out: &mut String) -> bool {
        let of_tls = context.info.connection.server_name.as_deref();
        let of_host = || {
            let request = context.request?;
            let original = || request.text(&names::X_ENVOY_ORIGINAL_HOST);
            match self.host {
                HostSource::OriginalElseHost => original().or(Some(request.host())),
                HostSource::Original => original(),
                HostSource::Host => Some(request.host()),
            }
        };
        let name = match self.from {
            NameFrom::TlsOnly => of_tls.map(as_host),
            NameFrom::TlsElseHost => of_tls.map(as_host).or_else(|| of_host().map(Cow::Borrowed)),
            NameFrom::Host => of_host().map(Cow::Borrowed),
        };
        put(name.as_deref(), out)
    }
}

/// A name that a client may have made of any bytes: as Envoy writes those that no host can have, so that they cannot pass for lines.
fn as_host(name: &str) -> Cow<'_, str> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    if name.bytes().all(fits) {
        return Cow::Borrowed(name);
    }
    let safe = name
        .bytes()
        .map(|byte| if fits(byte) { char::from(byte) } else { '_' });
    Cow::Owned("invalid:".chars().chain(safe).collect())
}

/// The names and values of all fields of a head, pseudo headers too, without what stands between them.
pub(super) fn header_bytes(context: &FormatContext<'_>, map: Map) -> u64 {
    let of_map = |map: &HeaderMap| {
        let sizes = map
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len());
        sizes.sum::<usize>()
    };
    let size = match map {
        Map::Request => context.request.map(|head| {
            let pseudo = [
                (":authority", head.authority.len()),
                (":path", head.path.as_str().len()),
                (":method", head.method.as_str().len()),
                (":scheme", head.scheme.as_str().len()),
            ];
            let pseudo = pseudo.iter().map(|(name, length)| name.len() + length);
            of_map(&head.map) + pseudo.sum::<usize>()
        }),
        Map::Response => context
            .response
            .map(|head| of_map(&head.map) + ":status".len() + head.status.as_str().len()),
        Map::Trailers => context.trailers.map(of_map),
    };
    size.unwrap_or(0) as u64
}

/// The value of a query parameter, decoded.
pub(super) fn query_value<'a>(query: Option<&'a str>, name: &str) -> Option<Cow<'a, str>> {
    query?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(key) == name).then(|| decoded(value))
    })
}

fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = tail
            .get(..2)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let code = code.filter(|digits| is_hex(digits));
        let code = code.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match code.filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned().into()
}

/// The parameters, with those characters decoded that may stand in a query. QUIRK: a `%` that encodes nothing goes.
pub(super) fn decoded_query(query: &str) -> String {
    let mut out = String::with_capacity(query.len());
    let mut rest = query;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let digits = rest.get(..2).filter(|digits| is_hex(digits));
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if byte.is_ascii_graphic() && !b"\"<>{}^|\\".contains(&byte) => {
                out.push(byte.into());
                rest = &rest[2..];
            }
            Some(_) => out.push('%'),
            None => {}
        }
    }
    out.push_str(rest);
    out
}

fn is_hex(digits: &str) -> bool {
    digits.bytes().all(|digit| digit.is_ascii_hexdigit())
}

/// A request's id; a TCP connection has one of its own, made of its number and what is drawn once.
pub(super) fn write_stream_id(context: &FormatContext<'_>, out: &mut String) -> bool {
    static SEED: OnceLock<u64> = OnceLock::new();
    if let Some(request) = context.request {
        return put(request.text(&names::X_REQUEST_ID), out);
    }
    let seed = *SEED.get_or_init(|| uuid::Uuid::new_v4().as_u64_pair().0);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&seed.to_be_bytes());
    bytes[8..].copy_from_slice(&context.info.connection.id.to_be_bytes());
    let id = uuid::Builder::from_random_bytes(bytes).into_uuid();
    put(Some(&id.to_string()), out)
}

#[cfg(test)]
mod tests {
    use super::as_host;

    #[test]
    fn names_that_no_host_has_cannot_pass_for_lines() {
        assert_eq!(as_host("a-1.example"), "a-1.example");
        assert_eq!(as_host("a\n[x] GET /\u{e9}"), "invalid:a__x__GET____");
    }
}
