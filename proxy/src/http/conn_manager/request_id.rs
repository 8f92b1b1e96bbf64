//! `x-request-id`.

use http::HeaderValue;

use crate::http::config::RequestIdRules;
use crate::http::headers::{RequestHeaders, names};

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Makes an id when there is none, or when the one that came from outside is not to be believed.
pub(super) fn set(rules: &RequestIdRules, headers: &mut RequestHeaders, is_edge: bool) {
    if !rules.generates {
        return;
    }
    let is_there = headers.map.contains_key(&names::X_REQUEST_ID);
    if !is_there || is_edge && !rules.preserves_external {
        headers.map.insert(names::X_REQUEST_ID.clone(), new_id());
    } else if is_edge && rules.packs_reason {
        // The id may stay, but what it says of tracing is not to be believed.
        crate::tracing::clear_reason(headers);
    }
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
