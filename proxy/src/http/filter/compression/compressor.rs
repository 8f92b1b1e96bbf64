//! The compressor: packs responses whose clients can unpack them and that are worth it.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG,
    HeaderMap, HeaderValue, VARY,
};
use prost_types::Any;
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

use super::{Encoder, Kind, Library, check_name, has_word, typed};

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
    /// The same, with `response.` where that direction is configured by itself.
    struct CompressorStats {
        compressed: Counter, content_length_too_small: Counter, not_compressed: Counter,
        total_compressed_bytes: Counter, total_uncompressed_bytes: Counter,
    }
}

stat_group! {
    /// `….request.`: requests are never compressed.
    struct RequestStats { not_compressed: Counter }
}

struct Config {
    name: Box<str>,
    library: Library,
    enabled: RuntimeFlag,
    min_length: u64,
    types: Vec<String>,
    refuses_etag: bool,
    weakens_etag: bool,
    removes_accept: bool,
    uncompressible: Vec<u32>,
    asked: Arc<AskedStats>,
    stats: Arc<CompressorStats>,
    requests: Arc<RequestStats>,
}

#[derive(Default)]
struct PerRoute {
    is_disabled: bool,
    removes_accept: Option<bool>,
}

struct Factory(Arc<Config>);

struct Compressor {
    config: Arc<Config>,
    /// What the client takes.
    accepted: Option<HeaderValue>,
    is_off: bool,
    encoder: Option<Encoder>,
}

#[allow(deprecated, reason = "control planes still send the older fields")]
fn build(any: &Any, context: &FilterContext<'_>) -> Result<Arc<dyn FilterFactory>, Invalid> {
    let config: wire::Compressor = unpack(any)?;
    let packs_requests = config
        .request_direction_config
        .as_ref()
        .and_then(|direction| direction.common_config.as_ref())
        .and_then(|common| common.enabled.as_ref())
        .is_some_and(|enabled| enabled.default_value.unwrap_or(true));
    if packs_requests {
        return Err(Invalid::unsupported("compression of requests").at("request_direction_config"));
    }
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
    if !common.content_type_matcher.is_empty() {
        return Err(Invalid::unsupported("content_type_matcher"));
    }
    let stats = match &direction {
        Some(_) => scope.scope("response").group(),
        None => scope.group(),
    };
    let types = if common.content_type.is_empty() {
        CONTENT_TYPES.iter().map(ToString::to_string).collect()
    } else {
        common.content_type
    };
    Ok(Arc::new(Factory(Arc::new(Config {
        name: context.name.into(),
        library,
        enabled: RuntimeFlag::or_on(common.enabled.as_ref()),
        min_length: common.min_content_length.map_or(MIN_LENGTH, u64::from),
        types,
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
        requests: scope.scope("request").group(),
        asked: scope.group(),
        stats,
    }))))
}

fn route(any: &Any) -> Result<RouteValue, Invalid> {
    use wire::compressor_per_route::Override;
    let config: wire::CompressorPerRoute = unpack(any)?;
    Ok(Arc::new(match config.r#override {
        Some(Override::Disabled(is_disabled)) => PerRoute {
            is_disabled,
            removes_accept: None,
        },
        Some(Override::Overrides(overrides)) => {
            if overrides.compressor_library.is_some() {
                return Err(Invalid::unsupported("overrides.compressor_library"));
            }
            PerRoute {
                is_disabled: false,
                removes_accept: overrides
                    .response_direction_config
                    .and_then(|direction| direction.remove_accept_encoding_header),
            }
        }
        None => return Err(Invalid::new("disabled or overrides is needed")),
    }))
}

impl FilterFactory for Factory {
    fn create(&self) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(Compressor {
            config: self.0.clone(),
            accepted: None,
            is_off: false,
            encoder: None,
        }))
    }
}

impl Config {
    /// Whether a client takes our coding for a body of a kind that is compressed.
    fn is_accepted(&self, accepted: Option<&HeaderValue>, is_packed_kind: bool) -> bool {
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
            if coding.eq_ignore_ascii_case(self.library.kind().coding()) {
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

    fn is_long_enough(&self, map: &HeaderMap) -> bool {
        let length = text_of(map, &CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
        let is_short = length.is_some_and(|length| length < self.min_length);
        if is_short {
            self.stats.content_length_too_small.inc();
        }
        !is_short
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

impl HttpFilter for Compressor {
    fn decode_headers(
        &mut self,
        headers: &mut RequestHeaders,
        stream: &mut Stream,
    ) -> FilterStatus {
        let config = &self.config;
        let of_route = stream.config_of::<PerRoute>(&config.name, NAME);
        config.requests.not_compressed.inc();
        self.is_off = !config.enabled.now() || of_route.is_some_and(|route| route.is_disabled);
        if self.is_off {
            return FilterStatus::Continue;
        }
        self.accepted = headers.map.get(ACCEPT_ENCODING).cloned();
        let removes = of_route.and_then(|route| route.removes_accept);
        if removes.unwrap_or(config.removes_accept) {
            headers.map.remove(ACCEPT_ENCODING);
        }
        FilterStatus::Continue
    }

    fn encode_headers(&mut self, headers: &mut ResponseHeaders, stream: &mut Stream) {
        // The answer to a HEAD says what the one to a GET would.
        let is_head = stream.is_response_bodyless && headers.map.contains_key(CONTENT_LENGTH);
        let is_empty = stream.is_response_bodyless && !is_head;
        if self.is_off || is_empty || headers.status.is_informational() {
            return;
        }
        let config = self.config.clone();
        let is_packed_kind = config.is_packed_kind(&headers.map);
        let is_long_enough = config.is_long_enough(&headers.map);
        let accepts = is_long_enough && config.is_accepted(self.accepted.as_ref(), is_packed_kind);
        if !is_long_enough || !is_packed_kind || !config.is_compressible(headers) {
            config.stats.not_compressed.inc();
            return;
        }
        add_vary(&mut headers.map);
        let encoder = config.library.encoder().ok();
        let Some(encoder) = encoder.filter(|_| accepts && !is_head) else {
            config.stats.not_compressed.inc();
            return;
        };
        config.stats.compressed.inc();
        config.change_etag(&mut headers.map);
        headers.map.remove(CONTENT_LENGTH);
        let coding: Kind = config.library.kind();
        headers
            .map
            .insert(CONTENT_ENCODING, HeaderValue::from_static(coding.coding()));
        self.encoder = Some(encoder);
    }

    fn encode_data(&mut self, data: Bytes, _: &mut Stream) -> Bytes {
        let Some(encoder) = &mut self.encoder else {
            return data;
        };
        let stats = &self.config.stats;
        stats.total_uncompressed_bytes.add(data.len() as u64);
        // Writing to memory does not fail.
        let packed = encoder.piece(&data).unwrap_or_default();
        stats.total_compressed_bytes.add(packed.len() as u64);
        packed
    }

    fn encode_end(&mut self, _: &mut HeaderMap, _: &mut Stream) -> Option<Bytes> {
        let rest = self.encoder.take()?.finish().ok()?;
        let stats = &self.config.stats;
        stats.total_compressed_bytes.add(rest.len() as u64);
        (!rest.is_empty()).then_some(rest)
    }

    fn sees_data(&self) -> bool {
        self.encoder.is_some()
    }
}
