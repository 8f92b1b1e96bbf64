//! Where a request goes: its target in origin, absolute, authority or asterisk form, and its one host.

use bytes::Bytes;
use http::HeaderValue;
use http::Method;
use http::uri::{Authority, PathAndQuery};

use crate::http::headers::Scheme;

use super::InvalidHead;

/// Scheme, authority and path of a target.
type Target = (Scheme, Option<HeaderValue>, PathAndQuery);

/// Origin, absolute, authority or asterisk form.
pub(super) fn target_of(
    block: &Bytes,
    target: &str,
    method: &Method,
    is_tls: bool,
) -> Result<Target, InvalidHead> {
    let scheme = if is_tls { Scheme::Https } else { Scheme::Http };
    if !target.is_ascii() {
        return Err(InvalidHead::Codec);
    }
    if *method == Method::CONNECT {
        let authority = Authority::try_from(target).map_err(|_| InvalidHead::Url)?;
        if authority.port().is_none() {
            return Err(InvalidHead::Url);
        }
        let value = HeaderValue::from_str(authority.as_str()).map_err(|_| InvalidHead::Url)?;
        return Ok((scheme, Some(value), PathAndQuery::from_static("/")));
    }
    if target.contains('#') {
        return Err(InvalidHead::Path);
    }
    let path = |text: &str| {
        PathAndQuery::from_maybe_shared(block.slice_ref(text.as_bytes()))
            .map_err(|_| InvalidHead::Url)
    };
    if target.starts_with('/') || target == "*" && *method == Method::OPTIONS {
        return Ok((scheme, None, path(target)?));
    }
    let (scheme, rest) = match target.split_once("://") {
        Some((name, rest)) if name.eq_ignore_ascii_case("http") => (Scheme::Http, rest),
        Some((name, rest)) if name.eq_ignore_ascii_case("https") => (Scheme::Https, rest),
        _ => return Err(InvalidHead::Codec),
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(end);
    // Who the client says it is has no place in a host.
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    if host.is_empty() || !is_host(host.as_bytes()) {
        return Err(InvalidHead::Authority);
    }
    let host = HeaderValue::from_str(host).map_err(|_| InvalidHead::Authority)?;
    let path = match rest {
        "" => PathAndQuery::from_static("/"),
        rest => path(rest)?,
    };
    Ok((scheme, Some(host), path))
}

/// The host, of which there must not be several.
pub(super) fn one_host(
    host: Option<HeaderValue>,
    count: usize,
) -> Result<Option<HeaderValue>, InvalidHead> {
    if count > 1 {
        return Err(InvalidHead::Codec);
    }
    if host.as_ref().is_some_and(|host| !is_host(host.as_bytes())) {
        return Err(InvalidHead::Authority);
    }
    Ok(host)
}

fn is_host(host: &[u8]) -> bool {
    host.iter()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:[]%@".contains(byte))
}
