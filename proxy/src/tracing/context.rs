//! The context of a trace in headers: B3 (many headers or one) and W3C's `traceparent`.

use std::fmt::Write as _;

use http::header::{HeaderMap, HeaderValue};

use crate::http::headers::{names, text_of};

/// The span that a request belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SpanContext {
    pub(super) trace_id: u128,
    pub(super) is_128_bit: bool,
    pub(super) span_id: u64,
    pub(super) parent: Option<u64>,
    pub(super) sampled: Option<bool>,
    pub(super) state: Option<HeaderValue>,
}

/// What the headers say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A context.
    Context(SpanContext),
    /// None, but perhaps whether to sample.
    Nothing(Option<bool>),
    /// Something that cannot be read.
    Malformed,
}

/// Reads B3.
pub(super) fn b3(map: &HeaderMap) -> Found {
    if let Some(text) = text_of(map, &names::B3) {
        return single_b3(text);
    }
    let sampled = text_of(map, &names::X_B3_SAMPLED).map(|text| text == "1" || text == "true");
    let (Some(trace), Some(span)) = (
        text_of(map, &names::X_B3_TRACE_ID),
        text_of(map, &names::X_B3_SPAN_ID),
    ) else {
        return Found::Nothing(sampled);
    };
    let parent = match text_of(map, &names::X_B3_PARENT_SPAN_ID) {
        Some(text) => match hex_u64(text) {
            Some(parent) => Some(parent).filter(|parent| *parent != 0),
            None => return Found::Malformed,
        },
        None => None,
    };
    match (hex_trace(trace), hex_u64(span)) {
        (Some((trace_id, is_128_bit)), Some(span_id)) => Found::Context(SpanContext {
            trace_id,
            is_128_bit,
            span_id,
            parent,
            sampled,
            state: None,
        }),
        _ => Found::Malformed,
    }
}

/// `trace-span-sampled-parent`, the last two of which may be missing; or a decision alone.
fn single_b3(text: &str) -> Found {
    let decision = |text: &str| match text {
        "0" => Some(false),
        "1" | "d" => Some(true),
        _ => None,
    };
    if let Some(sampled) = decision(text) {
        return Found::Nothing(Some(sampled));
    }
    let mut parts = text.split('-');
    let trace = parts.next().and_then(hex_trace);
    let span = parts.next().and_then(hex_u64);
    let (Some((trace_id, is_128_bit)), Some(span_id)) = (trace, span) else {
        return Found::Malformed;
    };
    let sampled = match parts.next() {
        None => None,
        Some(text) => match decision(text) {
            None => return Found::Malformed,
            sampled => sampled,
        },
    };
    let parent = match parts.next() {
        None => None,
        Some(text) => match hex_u64(text) {
            None => return Found::Malformed,
            parent => parent,
        },
    };
    Found::Context(SpanContext {
        trace_id,
        is_128_bit,
        span_id,
        parent,
        sampled,
        state: None,
    })
}

/// Reads `traceparent` and `tracestate`.
pub(super) fn w3c(map: &HeaderMap) -> Found {
    let Some(text) = text_of(map, &names::TRACEPARENT) else {
        return Found::Nothing(None);
    };
    let parts: Vec<&str> = text.split('-').collect();
    let [version, trace, span, flags, rest @ ..] = parts.as_slice() else {
        return Found::Malformed;
    };
    let is_version_good = version.len() == 2
        && *version != "ff"
        && version.bytes().all(is_lower_hex)
        && (*version != "00" || rest.is_empty());
    let trace = Some(*trace)
        .filter(|text| text.len() == 32)
        .and_then(hex_trace);
    let span = Some(*span).filter(|text| text.len() == 16);
    let span = span.and_then(hex_u64);
    let flags = crate::wire::hex_byte(flags.as_bytes());
    match (trace, span, flags) {
        (Some((trace_id, _)), Some(span_id), Some(flags))
            if is_version_good && trace_id != 0 && span_id != 0 =>
        {
            let states: Vec<&str> = map
                .get_all(&names::TRACESTATE)
                .iter()
                .filter_map(|value| value.to_str().ok())
                .collect();
            Found::Context(SpanContext {
                trace_id,
                is_128_bit: true,
                span_id,
                parent: None,
                sampled: Some(flags & 1 == 1),
                state: HeaderValue::try_from(states.join(","))
                    .ok()
                    .filter(|state| !state.is_empty()),
            })
        }
        _ => Found::Malformed,
    }
}

/// Writes B3.
pub(super) fn put_b3(map: &mut HeaderMap, context: &SpanContext, is_sampled: bool) {
    let mut put = |name: &http::HeaderName, text: String| {
        if let Ok(value) = HeaderValue::try_from(text) {
            map.insert(name.clone(), value);
        }
    };
    put(&names::X_B3_TRACE_ID, trace_text(context));
    put(&names::X_B3_SPAN_ID, format!("{:016x}", context.span_id));
    if let Some(parent) = context.parent {
        put(&names::X_B3_PARENT_SPAN_ID, format!("{parent:016x}"));
    }
    let sampled = HeaderValue::from_static(if is_sampled { "1" } else { "0" });
    map.insert(names::X_B3_SAMPLED.clone(), sampled);
}

/// Writes `traceparent` and `tracestate`.
pub(super) fn put_w3c(map: &mut HeaderMap, context: &SpanContext, is_sampled: bool) {
    let mut text = String::with_capacity(55);
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "00-{:032x}-{:016x}-{:02x}",
        context.trace_id,
        context.span_id,
        u8::from(is_sampled)
    );
    if let Ok(value) = HeaderValue::try_from(text) {
        map.insert(names::TRACEPARENT.clone(), value);
    }
    let state = context
        .state
        .clone()
        .unwrap_or_else(|| HeaderValue::from_static(""));
    map.insert(names::TRACESTATE.clone(), state);
}

/// The trace's id as B3 writes it.
pub(super) fn trace_text(context: &SpanContext) -> String {
    if context.is_128_bit {
        format!("{:032x}", context.trace_id)
    } else {
        format!("{:016x}", context.trace_id)
    }
}

fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn hex_trace(text: &str) -> Option<(u128, bool)> {
    let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match text.len() {
        16 | 32 if is_hex => Some((u128::from_str_radix(text, 16).ok()?, text.len() == 32)),
        _ => None,
    }
}

fn hex_u64(text: &str) -> Option<u64> {
    let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(headers: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(
                http::HeaderName::try_from(*name).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        map
    }

    #[test]
    fn contexts_survive_their_headers() {
        let context = SpanContext {
            trace_id: 0x0102,
            is_128_bit: true,
            span_id: 7,
            parent: Some(9),
            sampled: Some(true),
            state: None,
        };
        let mut headers = HeaderMap::new();
        put_b3(&mut headers, &context, true);
        assert_eq!(b3(&headers), Found::Context(context.clone()));
        let mut headers = HeaderMap::new();
        put_w3c(&mut headers, &context, false);
        let Found::Context(found) = w3c(&headers) else {
            panic!("{headers:?}");
        };
        assert_eq!((found.trace_id, found.span_id), (0x0102, 7));
        assert_eq!(found.sampled, Some(false));
    }

    #[test]
    fn one_header_is_enough_for_b3() {
        let full = "463ac35c9f6413ad48485a3953bb6124-0020000000000001-1-0000000000000002";
        let Found::Context(found) = b3(&map(&[("b3", full)])) else {
            panic!("no context");
        };
        assert_eq!(found.parent, Some(2));
        assert_eq!(found.sampled, Some(true));
        assert_eq!(b3(&map(&[("b3", "0")])), Found::Nothing(Some(false)));
        assert_eq!(b3(&map(&[("b3", "x-y")])), Found::Malformed);
    }

    #[test]
    fn what_is_no_traceparent_is_malformed() {
        for bad in [
            "00-0-0-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        ] {
            assert_eq!(
                w3c(&map(&[("traceparent", bad)])),
                Found::Malformed,
                "{bad}"
            );
        }
    }

    proptest! {
        #[test]
        fn anything_may_come(text in "[ -~]{0,80}") {
            let _ = w3c(&map(&[("traceparent", &text)]));
            let _ = b3(&map(&[("b3", &text)]));
            let _ = b3(&map(&[("x-b3-traceid", &text), ("x-b3-spanid", &text)]));
        }
    }

    #[test]
    fn fuzz_trace_headers() {
        crate::fuzz::fuzz("trace_headers", |bytes| {
            let Ok(value) = HeaderValue::from_bytes(bytes) else {
                return;
            };
            let mut headers = HeaderMap::new();
            for name in [&names::B3, &names::TRACEPARENT, &names::TRACESTATE] {
                headers.insert(name, value.clone());
            }
            let _ = b3(&headers);
            if let Found::Context(context) = w3c(&headers) {
                let mut copy = HeaderMap::new();
                put_w3c(&mut copy, &context, context.sampled == Some(true));
                assert_eq!(w3c(&copy), Found::Context(context));
            }
            for name in [
                &names::X_B3_TRACE_ID,
                &names::X_B3_SPAN_ID,
                &names::X_B3_PARENT_SPAN_ID,
            ] {
                headers.remove(&names::B3);
                headers.insert(name, value.clone());
            }
            let _ = b3(&headers);
        });
    }
}
