//! What a head says of what follows it: where its body ends, and whether the connection goes on.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};

use crate::http::headers::names;

use super::Framing;
use super::head::{HeadLimits, InvalidHead};

/// What the fields of a head say about its body and its connection, gathered while they are read.
#[derive(Default)]
pub(super) struct Said {
    /// `content-length`; within, none when it is not one, or there are several.
    length: Option<Option<u64>>,
    /// `transfer-encoding`: whether it is `chunked` and nothing else.
    encoding: Option<bool>,
    has_close: bool,
    has_keep_alive: bool,
    pub(super) has_upgrade: bool,
    pub(super) has_expect: bool,
}

/// How a head says that its body ends.
#[derive(Clone, Copy)]
pub(super) struct Ends {
    length: Option<u64>,
    is_chunked: bool,
}

impl Said {
    /// Sees a field.
    pub(super) fn note(&mut self, name: &HeaderName, value: &HeaderValue) {
        let value = value.as_bytes();
        if *name == header::CONTENT_LENGTH {
            let is_first = self.length.is_none();
            self.length = Some(length_of(value).filter(|_| is_first));
        } else if *name == header::TRANSFER_ENCODING {
            let is_first = self.encoding.is_none();
            self.encoding = Some(is_first && value.eq_ignore_ascii_case(b"chunked"));
        } else if *name == header::CONNECTION || *name == names::PROXY_CONNECTION {
            for token in value.split(|byte| *byte == b',') {
                let token = token.trim_ascii();
                self.has_close |= token.eq_ignore_ascii_case(b"close");
                self.has_keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
                self.has_upgrade |= token.eq_ignore_ascii_case(b"upgrade");
            }
        } else if *name == header::EXPECT {
            self.has_expect = true;
        }
    }

    /// The connection goes on afterwards.
    pub(super) fn keeps_alive(&self, version: Version) -> bool {
        !self.has_close && (self.has_keep_alive || version != Version::HTTP_10)
    }

    /// How the body ends, if that is said once and in a way that is understood.
    pub(super) fn ends(
        &self,
        map: &mut HeaderMap,
        limits: HeadLimits,
    ) -> Result<Ends, InvalidHead> {
        let length = if limits.allows_chunked_length && self.encoding.is_some() {
            map.remove(header::CONTENT_LENGTH);
            None
        } else {
            self.length
        };
        let length = length
            .map(|length| length.ok_or(InvalidHead::Codec))
            .transpose()?;
        match self.encoding {
            Some(false) if length.is_some() => Err(InvalidHead::LengthAndChunked),
            Some(false) => Err(InvalidHead::TransferEncoding),
            is_chunked => Ok(Ends {
                length,
                is_chunked: is_chunked.is_some(),
            }),
        }
    }
}

fn length_of(digits: &[u8]) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(digits).ok().filter(|_| is_number)?;
    text.parse().ok()
}

impl Ends {
    /// Of a request.
    pub(super) fn request_framing(
        self,
        method: &Method,
        version: Version,
    ) -> Result<Framing, InvalidHead> {
        if self.is_chunked && self.length.is_some() {
            return Err(InvalidHead::LengthAndChunked);
        }
        if self.is_chunked && version == Version::HTTP_10 {
            return Err(InvalidHead::TransferEncoding);
        }
        if *method == Method::CONNECT && (self.is_chunked || self.length.unwrap_or(0) > 0) {
            return Err(InvalidHead::BodyDisallowed);
        }
        Ok(match self.length {
            _ if self.is_chunked => Framing::Chunked,
            Some(length) if length > 0 => Framing::Length(length),
            _ => Framing::Empty,
        })
    }

    /// Of the response to a request.
    pub(super) fn response_framing(
        self,
        status: StatusCode,
        request: &Method,
    ) -> Result<Framing, InvalidHead> {
        if self.is_chunked && self.length.is_some() {
            return Err(InvalidHead::LengthAndChunked);
        }
        if status == StatusCode::NO_CONTENT && (self.is_chunked || self.length.unwrap_or(0) > 0) {
            return Err(InvalidHead::BodyDisallowed);
        }
        let is_bodiless = *request == Method::HEAD
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
            || *request == Method::CONNECT && status.is_success();
        Ok(match self.length {
            _ if is_bodiless => Framing::Empty,
            _ if self.is_chunked => Framing::Chunked,
            Some(0) => Framing::Empty,
            Some(length) => Framing::Length(length),
            None => Framing::UntilClose,
        })
    }
}
