//! The head of a request, as the codec parsed it.

use http::StatusCode;
use http::header::{self, HeaderValue};

use crate::http::headers::{RequestHeaders, Scheme};
use crate::http::local_reply::LocalReply;

/// A head that is refused, with the answer.
pub(super) type Refused = Box<(RequestHeaders, LocalReply)>;

/// The head of a request as the codec parsed it.
pub(super) fn request_headers(
    parts: http::request::Parts,
    is_tls: bool,
) -> Result<RequestHeaders, Refused> {
    let mut map = parts.headers;
    let uri = parts.uri.into_parts();
    let host_count = map.get_all(header::HOST).iter().count();
    let host = map.remove(header::HOST);
    let authority = match uri.authority {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => host,
    };
    let is_upgrade = map
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    let upgrade = match parts.extensions.get::<hyper::ext::Protocol>() {
        Some(protocol) => HeaderValue::from_str(protocol.as_str()).ok(),
        None if is_upgrade => map.get(header::UPGRADE).cloned(),
        None => None,
    };
    let headers = RequestHeaders {
        method: parts.method,
        scheme: if is_tls { Scheme::Https } else { Scheme::Http },
        authority: authority.unwrap_or_else(|| HeaderValue::from_static("")),
        path: uri
            .path_and_query
            .unwrap_or_else(|| http::uri::PathAndQuery::from_static("/")),
        upgrade,
        map,
    };
    if host_count > 1 {
        let reply = LocalReply::new(StatusCode::BAD_REQUEST, "", "http1.codec_error").closing();
        return Err(Box::new((headers, reply)));
    }
    Ok(headers)
}
