//! The decompressor: unpacks requests and responses whose `content-encoding` is the configured library's.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap, HeaderValue,
};
use prost_types::Any;
use proto::envoy::extensions::filters::http::decompressor::v3 as wire;
use wire::decompressor::CommonDirectionConfig;

use crate::http::filter::{
    FilterContext, FilterFactory, FilterKind, FilterStatus, HttpFilter, unpack,
};
use crate::http::headers::{RequestHeaders, ResponseHeaders, text_of};
use crate::http::stream::Stream;
use crate::invalid::{At as _, Invalid};
use crate::runtime::RuntimeFlag;
use crate::stat_group;

use super::{Decoder, Kind, check_name, has_request_body, has_word, typed};

/// A body that grows more than so many times is a bomb; its rest is thrown away.
const MAX_RATIO: usize = 100;
/// Packed bytes are unpacked in steps of this, so that a bomb is noticed early.
const STEP: usize = 4 << 10;

/// The filter's row.
pub(crate) const KIND: FilterKind = FilterKind {
    message: "envoy.extensions.filters.http.decompressor.v3.Decompressor",
    name: "envoy.filters.http.decompressor",
    build,
    routes: &[],
};

stat_group! {
    /// `http.<prefix>.decompressor.<name>.<library>.{request,response}.…`
    struct DecompressorStats {
        decompressed: Counter, not_decompressed: Counter, total_compressed_bytes: Counter,
        total_uncompressed_bytes: Counter,
    }
}

struct Config {
    kind: Kind,
    request: Direction,
    response: Direction,
    advertises: bool,
}

struct Direction {
    enabled: RuntimeFlag,
    ignores_no_transform: bool,
    stats: Arc<DecompressorStats>,
}

struct Factory(Arc<Config>);

struct Decompressor {
    config: Arc<Config>,
    request: Option<Unpacking>,
    response: Option<Unpacking>,
}

struct Unpacking {
    decoder: Decoder,
    is_broken: bool,
}

fn build(any: &Any, context: &FilterContext<'_>) -> Result<Arc<dyn FilterFactory>, Invalid> {
    let config: wire::Decompressor = unpack(any)?;
    let library = config.decompressor_library.as_ref();
    let (name, library) = typed(library).at("decompressor_library")?;
    check_name(name).at("decompressor_library")?;
    let message = proto::type_url::message_name(&library.type_url);
    let kind = match message {
        "envoy.extensions.compression.gzip.decompressor.v3.Gzip" => Kind::Gzip,
        "envoy.extensions.compression.brotli.decompressor.v3.Brotli" => Kind::Brotli,
        "envoy.extensions.compression.zstd.decompressor.v3.Zstd" => Kind::Zstd,
        _ => {
            return Err(Invalid::unsupported(&format!(
                "decompressor library {message}"
            )));
        }
    };
    let scope = context.scope.scope("decompressor").scope(name);
    let scope = scope.scope(kind.name());
    let direction = |common: Option<&CommonDirectionConfig>, word: &str| Direction {
        enabled: RuntimeFlag::or_on(common.and_then(|common| common.enabled.as_ref())),
        ignores_no_transform: common.is_some_and(|common| common.ignore_no_transform_header),
        stats: scope.scope(word).group(),
    };
    let request = config.request_direction_config.as_ref();
    let response = config.response_direction_config.as_ref();
    Ok(Arc::new(Factory(Arc::new(Config {
        kind,
        request: direction(request.and_then(|d| d.common_config.as_ref()), "request"),
        response: direction(response.and_then(|d| d.common_config.as_ref()), "response"),
        advertises: request
            .and_then(|direction| direction.advertise_accept_encoding)
            .unwrap_or(true),
    }))))
}

impl FilterFactory for Factory {
    fn create(&self) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(Decompressor {
            config: self.0.clone(),
            request: None,
            response: None,
        }))
    }
}

impl Direction {
    /// Takes the coding out of a head whose body is going to be unpacked.
    fn begin(&self, kind: Kind, map: &mut HeaderMap) -> Option<Unpacking> {
        if !self.enabled.now() {
            return None;
        }
        let is_ours = text_of(map, &CONTENT_ENCODING)
            .and_then(|text| text.split(',').next_back())
            .is_some_and(|word| word.trim().eq_ignore_ascii_case(kind.coding()));
        let may = self.ignores_no_transform || !has_word(map, &CACHE_CONTROL, "no-transform");
        let decoder = Decoder::try_new(kind).ok().filter(|_| is_ours && may);
        let Some(decoder) = decoder else {
            self.stats.not_decompressed.inc();
            return None;
        };
        self.stats.decompressed.inc();
        map.remove(CONTENT_LENGTH);
        let rest = text_of(map, &CONTENT_ENCODING)
            .and_then(|text| text.rsplit_once(','))
            .and_then(|(rest, _)| HeaderValue::from_str(rest.trim()).ok());
        match rest {
            Some(rest) => map.insert(CONTENT_ENCODING, rest),
            None => map.remove(CONTENT_ENCODING),
        };
        Some(Unpacking {
            decoder,
            is_broken: false,
        })
    }
}

impl Unpacking {
    fn piece(&mut self, data: &[u8], stats: &DecompressorStats) -> Bytes {
        stats.total_compressed_bytes.add(data.len() as u64);
        let limit = data.len().saturating_mul(MAX_RATIO).max(64 << 10);
        let mut out = Vec::new();
        for step in data.chunks(STEP) {
            if self.is_broken {
                break;
            }
            match self.decoder.piece(step) {
                Ok(unpacked) => out.extend(unpacked),
                Err(error) => {
                    tracing::debug!(target: "decompressor", %error, "a body cannot be unpacked");
                    self.is_broken = true;
                }
            }
            if out.len() > limit {
                tracing::warn!(target: "decompressor", "a body grows too much, its rest is thrown away");
                self.is_broken = true;
            }
        }
        stats.total_uncompressed_bytes.add(out.len() as u64);
        out.into()
    }
}

impl HttpFilter for Decompressor {
    fn decode_headers(
        &mut self,
        headers: &mut RequestHeaders,
        stream: &mut Stream,
    ) -> FilterStatus {
        let config = &self.config;
        let map = &mut headers.map;
        if config.advertises
            && config.response.enabled.now()
            && !has_word(map, &ACCEPT_ENCODING, config.kind.coding())
        {
            let value = match text_of(map, &ACCEPT_ENCODING) {
                Some(text) => format!("{text},{}", config.kind.coding()),
                None => config.kind.coding().to_owned(),
            };
            if let Ok(value) = HeaderValue::try_from(value) {
                map.insert(ACCEPT_ENCODING, value);
            }
        }
        if has_request_body(stream) {
            self.request = config.request.begin(config.kind, map);
        }
        FilterStatus::Continue
    }

    fn decode_data(&mut self, data: Bytes, _: &mut Stream) -> Bytes {
        match &mut self.request {
            Some(unpacking) => unpacking.piece(&data, &self.config.request.stats),
            None => data,
        }
    }

    fn encode_headers(&mut self, headers: &mut ResponseHeaders, stream: &mut Stream) {
        if !stream.is_response_bodyless {
            let config = &self.config;
            self.response = config.response.begin(config.kind, &mut headers.map);
        }
    }

    fn encode_data(&mut self, data: Bytes, _: &mut Stream) -> Bytes {
        match &mut self.response {
            Some(unpacking) => unpacking.piece(&data, &self.config.response.stats),
            None => data,
        }
    }

    fn sees_data(&self) -> bool {
        self.request.is_some() || self.response.is_some()
    }
}
