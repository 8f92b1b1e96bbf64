//! Fields and the static table (RFC 7541, appendix A).

use http::header::{self, HeaderName, HeaderValue};
use std::sync::LazyLock;

/// A field's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::http::h2) enum Name {
    /// `:authority`
    Authority,
    /// `:method`
    Method,
    /// `:path`
    Path,
    /// `:protocol`
    Protocol,
    /// `:scheme`
    Scheme,
    /// `:status`
    Status,
    /// Of a header.
    Header(HeaderName),
    /// Not a name, or of a value that is none: whoever sends it is not understood.
    Invalid,
}

/// A name and a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::http::h2) struct Field {
    pub(in crate::http::h2) name: Name,
    pub(in crate::http::h2) value: HeaderValue,
    /// The bytes of its name as it came.
    pub(super) name_length: usize,
    /// What it counts in a table: its bytes as they came, and [`OVERHEAD`].
    pub(super) size: usize,
}

/// What a field counts beyond its bytes (RFC 7541, 4.1).
pub(in crate::http::h2) const OVERHEAD: usize = 32;

impl Name {
    /// A name as it is written.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        match bytes {
            b":authority" => Name::Authority,
            b":method" => Name::Method,
            b":path" => Name::Path,
            b":protocol" => Name::Protocol,
            b":scheme" => Name::Scheme,
            b":status" => Name::Status,
            // Upper case is not allowed, which this sees to.
            _ => HeaderName::from_lowercase(bytes).map_or(Name::Invalid, Name::Header),
        }
    }

    /// As it is written.
    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Name::Authority => b":authority",
            Name::Method => b":method",
            Name::Path => b":path",
            Name::Protocol => b":protocol",
            Name::Scheme => b":scheme",
            Name::Status => b":status",
            Name::Header(name) => name.as_str().as_bytes(),
            Name::Invalid => b"",
        }
    }
}

fn header(name: HeaderName, value: &'static str) -> Field {
    field(Name::Header(name), value)
}

fn field(name: Name, value: &'static str) -> Field {
    Field {
        name_length: name.as_bytes().len(),
        size: name.as_bytes().len() + value.len() + OVERHEAD,
        name,
        value: HeaderValue::from_static(value),
    }
}

/// The static table; the first has index 1.
pub(super) static TABLE: LazyLock<[Field; 61]> = LazyLock::new(|| {
    [
        field(Name::Authority, ""),
        field(Name::Method, "GET"),
        field(Name::Method, "POST"),
        field(Name::Path, "/"),
        field(Name::Path, "/index.html"),
        field(Name::Scheme, "http"),
        field(Name::Scheme, "https"),
        field(Name::Status, "200"),
        field(Name::Status, "204"),
        field(Name::Status, "206"),
        field(Name::Status, "304"),
        field(Name::Status, "400"),
        field(Name::Status, "404"),
        field(Name::Status, "500"),
        header(header::ACCEPT_CHARSET, ""),
        header(header::ACCEPT_ENCODING, "gzip, deflate"),
        header(header::ACCEPT_LANGUAGE, ""),
        header(header::ACCEPT_RANGES, ""),
        header(header::ACCEPT, ""),
        header(header::ACCESS_CONTROL_ALLOW_ORIGIN, ""),
        header(header::AGE, ""),
        header(header::ALLOW, ""),
        header(header::AUTHORIZATION, ""),
        header(header::CACHE_CONTROL, ""),
        header(header::CONTENT_DISPOSITION, ""),
        header(header::CONTENT_ENCODING, ""),
        header(header::CONTENT_LANGUAGE, ""),
        header(header::CONTENT_LENGTH, ""),
        header(header::CONTENT_LOCATION, ""),
        header(header::CONTENT_RANGE, ""),
        header(header::CONTENT_TYPE, ""),
        header(header::COOKIE, ""),
        header(header::DATE, ""),
        header(header::ETAG, ""),
        header(header::EXPECT, ""),
        header(header::EXPIRES, ""),
        header(header::FROM, ""),
        header(header::HOST, ""),
        header(header::IF_MATCH, ""),
        header(header::IF_MODIFIED_SINCE, ""),
        header(header::IF_NONE_MATCH, ""),
        header(header::IF_RANGE, ""),
        header(header::IF_UNMODIFIED_SINCE, ""),
        header(header::LAST_MODIFIED, ""),
        header(header::LINK, ""),
        header(header::LOCATION, ""),
        header(header::MAX_FORWARDS, ""),
        header(header::PROXY_AUTHENTICATE, ""),
        header(header::PROXY_AUTHORIZATION, ""),
        header(header::RANGE, ""),
        header(header::REFERER, ""),
        header(header::REFRESH, ""),
        header(header::RETRY_AFTER, ""),
        header(header::SERVER, ""),
        header(header::SET_COOKIE, ""),
        header(header::STRICT_TRANSPORT_SECURITY, ""),
        header(header::TRANSFER_ENCODING, ""),
        header(header::USER_AGENT, ""),
        header(header::VARY, ""),
        header(header::VIA, ""),
        header(header::WWW_AUTHENTICATE, ""),
    ]
});
