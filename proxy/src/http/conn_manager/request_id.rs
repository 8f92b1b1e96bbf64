//! `x-request-id` and the B3 trace headers.

use http::HeaderValue;

use crate::http::config::RequestIdRules;
use crate::http::headers::{RequestHeaders, names};
use crate::matcher::Fraction;

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Makes an id when there is none, or when the one that came from outside is not to be believed.
pub(super) fn set(rules: &RequestIdRules, headers: &mut RequestHeaders, is_edge: bool) {
    if !rules.generates {
        return;
    }
    let must_replace = is_edge && !rules.preserves_external;
    if must_replace || !headers.map.contains_key(&names::X_REQUEST_ID) {
        headers.map.insert(names::X_REQUEST_ID.clone(), new_id());
    }
}

/// Starts a trace when the request is not part of one.
pub(super) fn set_trace(headers: &mut RequestHeaders, share: Fraction) {
    let map = &mut headers.map;
    if map.contains_key(&names::X_B3_TRACE_ID)
        || map.contains_key(&names::B3)
        || map.contains_key(&names::TRACEPARENT)
    {
        return;
    }
    let trace = hex(&rand::random::<[u8; 16]>());
    let sampled = if share.draw() { "1" } else { "0" };
    map.insert(names::X_B3_SPAN_ID.clone(), trace_value(&trace[16..]));
    map.insert(names::X_B3_TRACE_ID.clone(), trace_value(&trace));
    map.insert(
        names::X_B3_SAMPLED.clone(),
        HeaderValue::from_static(sampled),
    );
}

fn trace_value(text: &[u8]) -> HeaderValue {
    HeaderValue::from_bytes(text).unwrap_or(HeaderValue::from_static("0"))
}

/// A random UUID, version 4.
fn new_id() -> HeaderValue {
    let mut bytes = rand::random::<[u8; 16]>();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let digits = hex(&bytes);
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (index, digit) in digits.iter().enumerate() {
        if matches!(index, 8 | 12 | 16 | 20) {
            at += 1;
        }
        text[at] = *digit;
        at += 1;
    }
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("-"))
}

fn hex(bytes: &[u8; 16]) -> [u8; 32] {
    let mut out = [0; 32];
    for (index, byte) in bytes.iter().enumerate() {
        out[index * 2] = HEX[usize::from(byte >> 4)];
        out[index * 2 + 1] = HEX[usize::from(byte & 15)];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_uuids() {
        let id = new_id();
        let parsed = uuid::Uuid::parse_str(id.to_str().unwrap()).unwrap();
        assert_eq!(parsed.get_version_num(), 4);
    }
}
