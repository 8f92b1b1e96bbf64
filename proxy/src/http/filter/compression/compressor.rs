//! The compressor: packs responses whose clients can unpack them and that are worth it, and requests to servers that are known
//! to unpack them.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG,
    HeaderMap, HeaderValue, VARY,
};
use prost_types::Any;
use proto::envoy::config::core::v3::RuntimeFeatureFlag;
use proto::envoy::extensions::filters::http::compressor::v3 as wire;
use wire::compressor::CommonDirectionConfig;

use crate::http::filter::{
    FilterContext, FilterFactory, FilterKind, FilterStatus, HttpFilter, RouteValue, unpack,
};
use crate::http::headers::{RequestHeaders, ResponseHeaders, text_of};
use crate::http::stream::Stream;
use crate::invalid::{At as _, Invalid};
use crate::runtime::RuntimeFlag;
use crate::stat_group;

use super::{Encoder, Kind, Library, check_name, has_request_body, has_word, typed};

const NAME: &str = "envoy.filters.http.compressor";
/// Shorter bodies are not worth it.
const MIN_LENGTH: u64 = 30;
/// What is compressed unless configured.
const CONTENT_TYPES: &[&str] = &[
    "application/javascript",
    "application/json",
    "application/xhtml+xml",
    "image/svg+xml",
    "text/css",
    "text/html",
    "text/plain",
    "text/xml",
];

/// The filter's row.
pub(crate) const KIND: FilterKind = FilterKind {
    message: "envoy.extensions.filters.http.compressor.v3.Compressor",
    name: NAME,
    build,
    routes: &[(
        "envoy.extensions.filters.http.compressor.v3.CompressorPerRoute",
        route,
    )],
};

stat_group! {
    /// `http.<prefix>.compressor.<name>.<library>.…`: what clients asked for.
    struct AskedStats {
        header_compressor_used: Counter, header_identity: Counter, header_not_valid: Counter, header_wildcard: Counter,
        no_accept_header: Counter, not_compressed_etag: Counter,
    }
}

stat_group! {
    /// The same with `request.`, and with `response.` where that direction is configured by itself.
    struct DirectionStats {
        compressed: Counter, content_length_too_small: Counter, not_compressed: Counter,
        total_compressed_bytes: Counter, total_uncompressed_bytes: Counter,
    }
}

struct Config {
    name: Box<str>,
    library: Library,
    request: Direction,
    response: Direction,
    refuses_etag: bool,
    weakens_etag: bool,
    removes_accept: bool,
    uncompressible: Vec<u32>,
    asked: Arc<AskedStats>,
}

/// What is packed one way.
struct Direction {
    enabled: RuntimeFlag,
    min_length: u64,
    types: Vec<String>,
    stats: Arc<DirectionStats>,
}

/// What a route has of its own.
#[derive(Default)]
struct PerRoute {
    /// Whether responses are packed.
    is_enabled: Option<bool>,
    removes_accept: Option<bool>,
    library: Option<Library>,
}

struct Factory(Arc<Config>);

struct Compressor {
    config: Arc<Config>,
    /// What the client takes.
    accepted: Option<HeaderValue>,
    is_off: bool,
    /// The route's, if it has one.
    library: Library,
    request: Option<Encoder>,
    response: Option<Encoder>,
}

#[allow(deprecated, reason = "control planes still send the older fields")]
fn build(any: &Any, context: &FilterContext<'_>) -> Result<Arc<dyn FilterFactory>, Invalid> {
    let config: wire::Compressor = unpack(any)?;
    check_supported(&config)?;
    let (name, library) = typed(config.compressor_library.as_ref()).at("compressor_library")?;
    check_name(name).at("compressor_library")?;
    let library = Library::try_new(&library).at("compressor_library")?;
    let scope = context.scope.scope("compressor").scope(name);
    let scope = scope.scope(library.kind().name());
    let direction = config.response_direction_config.clone();
    let common = match &direction {
        Some(direction) => direction.common_config.clone().unwrap_or_default(),
        None => CommonDirectionConfig {
            enabled: config.runtime_enabled.clone(),
            min_content_length: config.content_length,
            content_type: config.content_type.clone(),
            ..CommonDirectionConfig::default()
        },
    };
    let requests = config.request_direction_config.clone();
    let request = match requests {
        Some(requests) => requests.common_config.unwrap_or_default(),
        None => CommonDirectionConfig {
            enabled: Some(RuntimeFeatureFlag {
                default_value: Some(false),
                ..RuntimeFeatureFlag::default()
            }),
            ..CommonDirectionConfig::default()
        },
    };
    let stats = match &direction {
        Some(_) => scope.scope("response").group(),
        None => scope.group(),
    };
    Ok(Arc::new(Factory(Arc::new(Config {
        name: context.name.into(),
        library,
        request: Direction::try_new(request, scope.scope("request").group())
            .at("request_direction_config.common_config")?,
        response: Direction::try_new(common, stats)
            .at("response_direction_config.common_config")?,
        refuses_etag: direction
            .as_ref()
            .map_or(config.disable_on_etag_header, |d| d.disable_on_etag_header),
        weakens_etag: direction
            .as_ref()
            .is_some_and(|direction| direction.weaken_etag_on_compress),
        removes_accept: direction
            .as_ref()
            .map_or(config.remove_accept_encoding_header, |direction| {
                direction.remove_accept_encoding_header
            }),
        uncompressible: direction
            .map(|direction| direction.uncompressible_response_codes)
            .unwrap_or_default(),
        asked: scope.group(),
    }))))
}

/// What nobody follows is refused.
fn check_supported(config: &wire::Compressor) -> Result<(), Invalid> {
    let responses = config.response_direction_config.as_ref();
    if responses.is_some_and(|direction| direction.status_header_enabled) {
        let refused = Invalid::unsupported("status_header_enabled");
        return Err(refused).at("response_direction_config");
    }
    if config.choose_first {
        return Err(Invalid::unsupported("choose_first"));
    }
    Ok(())
}

fn route(any: &Any) -> Result<RouteValue, Invalid> {
    use wire::compressor_per_route::Override;
    let config: wire::CompressorPerRoute = unpack(any)?;
    Ok(Arc::new(match config.r#override {
        Some(Override::Disabled(is_disabled)) => PerRoute {
            is_enabled: Some(!is_disabled),
            ..PerRoute::default()
        },
        Some(Override::Overrides(overrides)) => PerRoute {
            is_enabled: overrides.response_direction_config.map(|_| true),
            removes_accept: overrides
                .response_direction_config
                .and_then(|direction| direction.remove_accept_encoding_header),
            library: overrides
                .compressor_library
                .as_ref()
                .map(|library| Library::try_new(&typed(Some(library))?.1))
                .transpose()
                .at("overrides.compressor_library")?,
        },
        None => return Err(Invalid::new("disabled or overrides is needed")),
    }))
}

impl FilterFactory for Factory {
    fn create(&self) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(Compressor {
            config: self.0.clone(),
            accepted: None,
            is_off: false,
            library: self.0.library,
            request: None,
            response: None,
        }))
    }
}

impl Direction {
    #[allow(deprecated, reason = "control planes still send the older fields")]
    fn try_new(wire: CommonDirectionConfig, stats: Arc<DirectionStats>) -> Result<Self, Invalid> {
        if !wire.content_type_matcher.is_empty() {
            return Err(Invalid::unsupported("content_type_matcher"));
        }
        let types = if wire.content_type.is_empty() {
            CONTENT_TYPES.iter().map(ToString::to_string).collect()
        } else {
            wire.content_type
        };
        let min_length = wire.min_content_length.filter(|length| *length > 0);
        Ok(Direction {
            enabled: RuntimeFlag::or_on(wire.enabled.as_ref()),
            min_length: min_length.map_or(MIN_LENGTH, u64::from),
            types,
            stats,
        })
    }

    fn is_long_enough(&self, map: &HeaderMap) -> bool {
        let length = text_of(map, &CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
        let is_short = length.is_some_and(|length| length < self.min_length);
        if is_short {
            self.stats.content_length_too_small.inc();
        }
        !is_short
    }

    fn pack(&self, encoder: &mut Encoder, data: &[u8]) -> Bytes {
        self.stats.total_uncompressed_bytes.add(data.len() as u64);
        // Writing to memory does not fail.
        let packed = encoder.piece(data).unwrap_or_default();
        self.stats.total_compressed_bytes.add(packed.len() as u64);
        packed
    }

    fn finish(&self, encoder: Encoder) -> Bytes {
        let rest = encoder.finish().unwrap_or_default();
        self.stats.total_compressed_bytes.add(rest.len() as u64);
        rest
    }

    /// Whether the content is of a kind that is compressed; what does not say what it is, is.
    fn is_packed_kind(&self, map: &HeaderMap) -> bool {
        text_of(map, &CONTENT_TYPE).is_none_or(|text| {
            let kind = text.split(';').next().unwrap_or_default().trim();
            self.types
                .iter()
                .any(|known| known.eq_ignore_ascii_case(kind))
        })
    }
}

impl Config {
    /// Whether a client takes our coding for a body of a kind that is compressed.
    fn is_accepted(
        &self,
        kind: Kind,
        accepted: Option<&HeaderValue>,
        is_packed_kind: bool,
    ) -> bool {
        let Some(text) = accepted.and_then(|value| value.to_str().ok()) else {
            self.asked.no_accept_header.inc();
            return false;
        };
        if !is_packed_kind {
            self.asked.header_not_valid.inc();
            return false;
        }
        let mut any = None;
        let mut identity = false;
        for word in text.split(',') {
            let mut parts = word.split(';').map(str::trim);
            let coding = parts.next().unwrap_or_default();
            let quality = parts
                .find_map(|part| part.strip_prefix("q=")?.trim().parse::<f32>().ok())
                .unwrap_or(1.0);
            if coding.eq_ignore_ascii_case(kind.coding()) {
                if quality > 0.0 {
                    self.asked.header_compressor_used.inc();
                }
                return quality > 0.0;
            }
            match coding {
                "*" => any = Some(quality > 0.0),
                "identity" => identity |= quality > 0.0,
                _ => {}
            }
        }
        match any {
            Some(true) => self.asked.header_wildcard.inc(),
            _ if identity => self.asked.header_identity.inc(),
            _ => self.asked.header_not_valid.inc(),
        }
        any == Some(true)
    }

    /// Whether a response of such a kind is one to compress, for clients that can read it.
    fn is_compressible(&self, head: &ResponseHeaders) -> bool {
        let map = &head.map;
        if self.refuses_etag && map.contains_key(ETAG) {
            self.asked.not_compressed_etag.inc();
            return false;
        }
        !has_word(map, &CACHE_CONTROL, "no-transform")
            && !map.contains_key(CONTENT_ENCODING)
            && !self
                .uncompressible
                .contains(&u32::from(head.status.as_u16()))
            && head.status != http::StatusCode::PARTIAL_CONTENT
    }

    /// A strong validator does not hold for other bytes.
    fn change_etag(&self, map: &mut HeaderMap) {
        let Some(etag) = map.get(ETAG).cloned() else {
            return;
        };
        if etag.as_bytes().starts_with(b"W/") || etag.as_bytes().starts_with(b"w/") {
            return;
        }
        map.remove(ETAG);
        if self.weakens_etag
            && let Ok(weak) = HeaderValue::from_bytes(&[b"W/", etag.as_bytes()].concat())
        {
            map.insert(ETAG, weak);
        }
    }
}

fn add_vary(map: &mut HeaderMap) {
    if has_word(map, &VARY, "accept-encoding") || has_word(map, &VARY, "*") {
        return;
    }
    let value = match text_of(map, &VARY) {
        Some(vary) => format!("{vary}, Accept-Encoding"),
        None => "Accept-Encoding".to_owned(),
    };
    if let Ok(value) = HeaderValue::try_from(value) {
        map.insert(VARY, value);
    }
}

/// A head whose body is going to be packed.
fn mark(map: &mut HeaderMap, kind: Kind) {
    map.remove(CONTENT_LENGTH);
    map.insert(CONTENT_ENCODING, HeaderValue::from_static(kind.coding()));
}

impl Compressor {
    /// Begins to pack the request, if it is one to pack.
    fn pack_request(&self, headers: &mut RequestHeaders, stream: &Stream) -> Option<Encoder> {
        let direction = &self.config.request;
        let is_packed = has_request_body(stream)
            && direction.enabled.now()
            && headers.upgrade.is_none()
            && direction.is_long_enough(&headers.map)
            && direction.is_packed_kind(&headers.map)
            && !headers.map.contains_key(CONTENT_ENCODING);
        let encoder = is_packed.then(|| self.library.encoder().ok()).flatten();
        let Some(encoder) = encoder else {
            direction.stats.not_compressed.inc();
            return None;
        };
        direction.stats.compressed.inc();
        mark(&mut headers.map, self.library.kind());
        Some(encoder)
    }
}

impl HttpFilter for Compressor {
    fn decode_headers(
        &mut self,
        headers: &mut RequestHeaders,
        stream: &mut Stream,
    ) -> FilterStatus {
        let config = self.config.clone();
        let of_route = stream.config_of::<PerRoute>(&config.name, NAME);
        self.library = of_route
            .and_then(|route| route.library)
            .unwrap_or(config.library);
        let is_on = of_route.and_then(|route| route.is_enabled);
        self.is_off = !is_on.unwrap_or_else(|| config.response.enabled.now());
        if !self.is_off {
            self.accepted = headers.map.get(ACCEPT_ENCODING).cloned();
            let removes = of_route.and_then(|route| route.removes_accept);
            if removes.unwrap_or(config.removes_accept) {
                headers.map.remove(ACCEPT_ENCODING);
            }
        }
        self.request = self.pack_request(headers, stream);
        FilterStatus::Continue
    }

    fn decode_data(&mut self, data: Bytes, _: &mut Stream) -> Bytes {
        match &mut self.request {
            Some(encoder) => self.config.request.pack(encoder, &data),
            None => data,
        }
    }

    fn decode_end(&mut self, _: &mut Stream) -> Bytes {
        let encoder = self.request.take();
        encoder.map_or_else(Bytes::new, |encoder| self.config.request.finish(encoder))
    }

    fn encode_headers(&mut self, headers: &mut ResponseHeaders, stream: &mut Stream) {
        // The answer to a HEAD says what the one to a GET would.
        let is_head = stream.is_response_bodyless && headers.map.contains_key(CONTENT_LENGTH);
        let is_empty = stream.is_response_bodyless && !is_head;
        if headers.status.is_informational() {
            return;
        }
        let config = self.config.clone();
        if self.is_off || is_empty {
            config.response.stats.not_compressed.inc();
            return;
        }
        let is_packed_kind = config.response.is_packed_kind(&headers.map);
        let is_long_enough = config.response.is_long_enough(&headers.map);
        let kind = self.library.kind();
        let accepts =
            is_long_enough && config.is_accepted(kind, self.accepted.as_ref(), is_packed_kind);
        if !is_long_enough || !is_packed_kind || !config.is_compressible(headers) {
            config.response.stats.not_compressed.inc();
            return;
        }
        add_vary(&mut headers.map);
        let encoder = self.library.encoder().ok();
        let Some(encoder) = encoder.filter(|_| accepts && !is_head) else {
            config.response.stats.not_compressed.inc();
            return;
        };
        config.response.stats.compressed.inc();
        config.change_etag(&mut headers.map);
        mark(&mut headers.map, kind);
        self.response = Some(encoder);
    }

    fn encode_data(&mut self, data: Bytes, _: &mut Stream) -> Bytes {
        match &mut self.response {
            Some(encoder) => self.config.response.pack(encoder, &data),
            None => data,
        }
    }

    fn encode_end(&mut self, _: &mut HeaderMap, _: &mut Stream) -> Option<Bytes> {
        let rest = self.config.response.finish(self.response.take()?);
        (!rest.is_empty()).then_some(rest)
    }

    fn sees_data(&self) -> bool {
        self.request.is_some() || self.response.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_nobody_follows_is_refused() {
        let refused = |config| {
            let config: wire::Compressor = proto::json::from_value(&config).unwrap();
            check_supported(&config)
                .err()
                .map(|error| error.to_string())
        };
        assert_eq!(refused(json!({})), None);
        let first = refused(json!({"choose_first": true})).unwrap();
        assert!(first.contains("choose_first"), "{first}");
        let status = json!({"response_direction_config": {"status_header_enabled": true}});
        let status = refused(status).unwrap();
        assert!(status.contains("response_direction_config"), "{status}");
    }
}
