//! gRPC-Web: browsers' gRPC (binary or base64, trailers in the body) translated to gRPC for the upstream, and back.

use std::sync::Arc;

use base64::engine::general_purpose::STANDARD;
use base64::{DecodeError, Engine as _};
use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use prost_types::Any;
use proto::envoy::extensions::filters::http::grpc_web::v3 as wire;

use crate::http::headers::{RequestHeaders, ResponseHeaders, names};
use crate::http::local_reply::LocalReply;
use crate::http::stream::Stream;
use crate::invalid::Invalid;
use crate::stream_info::Rpc;

use super::{FilterContext, FilterFactory, FilterKind, FilterStatus, HttpFilter};

/// The flag of a frame that carries trailers.
const TRAILERS_FLAG: u8 = 0x80;

/// The filter's row.
pub(crate) const KIND: FilterKind = FilterKind {
    message: "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb",
    name: "envoy.filters.http.grpc_web",
    build,
    routes: &[],
};

struct Factory;

#[derive(Default)]
struct GrpcWeb {
    is_active: bool,
    is_text_request: bool,
    is_text_response: bool,
    is_grpc_response: bool,
    /// Base64 characters that do not make a whole group yet.
    undecoded: Vec<u8>,
    /// Bytes that do not make a whole base64 group yet.
    unencoded: Vec<u8>,
}

fn build(any: &Any, _context: &FilterContext<'_>) -> Result<Arc<dyn FilterFactory>, Invalid> {
    let _: wire::GrpcWeb = super::unpack(any)?;
    Ok(Arc::new(Factory))
}

impl FilterFactory for Factory {
    fn create(&self) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(GrpcWeb::default()))
    }
}

impl GrpcWeb {
    fn decode(&mut self, data: &[u8]) -> Result<Bytes, DecodeError> {
        self.undecoded.extend_from_slice(data);
        let whole = self.undecoded.len() / 4 * 4;
        let rest = self.undecoded.split_off(whole);
        // Padding may stand in the middle, where one encoded message ends and the next begins.
        let mut out = BytesMut::with_capacity(whole / 4 * 3);
        for group in self.undecoded.chunks(4) {
            out.put_slice(&STANDARD.decode(group)?);
        }
        self.undecoded = rest;
        Ok(out.freeze())
    }

    fn encode(&mut self, data: &[u8], is_last: bool) -> Bytes {
        if !self.is_text_response {
            return Bytes::copy_from_slice(data);
        }
        self.unencoded.extend_from_slice(data);
        let whole = if is_last {
            self.unencoded.len()
        } else {
            self.unencoded.len() / 3 * 3
        };
        let rest = self.unencoded.split_off(whole);
        let encoded = STANDARD.encode(&self.unencoded);
        self.unencoded = rest;
        Bytes::from(encoded)
    }
}

/// What a client is told whose text is none; as in Envoy gRPC's own status says it, and HTTP's too.
fn not_base64() -> LocalReply {
    let message = HeaderValue::from_static("Bad gRPC-web request, invalid base64 data.");
    let mut reply = LocalReply::new(StatusCode::BAD_REQUEST, "", "grpc_base_64_decode_failed")
        .header(
            &header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc-web+proto"),
        )
        .header(&header::CONTENT_LENGTH, HeaderValue::from_static("0"))
        .header(&names::GRPC_STATUS, HeaderValue::from_static("13"))
        .header(&names::GRPC_MESSAGE, message)
        .closing();
    reply.is_plain = true;
    reply
}

impl HttpFilter for GrpcWeb {
    fn decode_headers(
        &mut self,
        headers: &mut RequestHeaders,
        stream: &mut Stream,
    ) -> FilterStatus {
        let content_type = headers.text(&header::CONTENT_TYPE).unwrap_or_default();
        let is_text = content_type.starts_with("application/grpc-web-text");
        if !content_type.starts_with("application/grpc-web") || headers.method != Method::POST {
            return FilterStatus::Continue;
        }
        self.is_active = true;
        stream.info.rpc = Rpc::Web;
        self.is_text_request = is_text;
        let accept = headers.text(&header::ACCEPT).unwrap_or_default();
        self.is_text_response =
            accept.contains("application/grpc-web-text") || accept.is_empty() && is_text;
        headers.map.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        );
        headers
            .map
            .insert(header::TE, HeaderValue::from_static("trailers"));
        headers.map.insert(
            header::HeaderName::from_static("grpc-accept-encoding"),
            HeaderValue::from_static("identity"),
        );
        headers.map.remove(header::CONTENT_LENGTH);
        FilterStatus::Continue
    }

    fn decode_data(&mut self, data: Bytes, stream: &mut Stream) -> Bytes {
        if !self.is_active || !self.is_text_request {
            return data;
        }
        self.decode(&data).unwrap_or_else(|_| {
            stream.refusal = Some(Box::new(not_base64()));
            Bytes::new()
        })
    }

    fn encode_headers(&mut self, headers: &mut ResponseHeaders, _stream: &mut Stream) {
        if !self.is_active {
            return;
        }
        self.is_grpc_response = crate::http::headers::is_grpc(&headers.map);
        if !self.is_grpc_response || headers.status != StatusCode::OK {
            return;
        }
        let kind = if self.is_text_response {
            "application/grpc-web-text+proto"
        } else {
            "application/grpc-web+proto"
        };
        headers
            .map
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.map.remove(header::CONTENT_LENGTH);
    }

    fn encode_data(&mut self, data: Bytes, _stream: &mut Stream) -> Bytes {
        if self.is_active && self.is_grpc_response {
            self.encode(&data, false)
        } else {
            data
        }
    }

    fn encode_end(&mut self, trailers: &mut HeaderMap, _stream: &mut Stream) -> Option<Bytes> {
        if !self.is_active || !self.is_grpc_response || trailers.is_empty() {
            return None;
        }
        let mut text = Vec::new();
        for (name, value) in trailers.drain().scan(None, |last, (name, value)| {
            *last = name.or_else(|| last.take());
            last.clone().map(|name| (name, value))
        }) {
            text.extend_from_slice(name.as_str().as_bytes());
            text.push(b':');
            text.extend_from_slice(value.as_bytes());
            text.extend_from_slice(b"\r\n");
        }
        let mut frame = Vec::with_capacity(text.len() + 5);
        frame.push(TRAILERS_FLAG);
        frame.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
        frame.extend_from_slice(&text);
        Some(self.encode(&frame, true))
    }

    fn sees_data(&self) -> bool {
        self.is_active
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_grpc_web() {
        crate::fuzz::fuzz("grpc_web", |bytes| {
            let whole = GrpcWeb::default().decode(bytes);
            let mut filter = GrpcWeb::default();
            let pieces: Result<Vec<Bytes>, _> =
                bytes.chunks(3).map(|piece| filter.decode(piece)).collect();
            assert_eq!(
                pieces.ok().map(|pieces| pieces.concat()),
                whole.ok().map(|whole| whole.to_vec())
            );
            // What was encoded in pieces is read back.
            let new = || GrpcWeb {
                is_text_response: true,
                ..GrpcWeb::default()
            };
            let mut filter = new();
            let mut text: Vec<u8> = bytes
                .chunks(5)
                .flat_map(|piece| filter.encode(piece, false))
                .collect();
            text.extend(filter.encode(&[], true));
            assert_eq!(GrpcWeb::default().decode(&text).unwrap(), bytes);
        });
    }
}
