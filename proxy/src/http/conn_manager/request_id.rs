//! `x-request-id`.

use http::HeaderValue;
use http::header::Entry;

use crate::http::config::RequestIdRules;
use crate::http::headers::{RequestHeaders, names};

const HEX: &[u8; 16] = b"0123456789abcdef";
/// Where the bytes of a UUID stand in its text.
const PLACES: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];

/// Makes an id when there is none, or when the one that came from outside is not to be believed.
pub(super) fn set(rules: &RequestIdRules, headers: &mut RequestHeaders, is_edge: bool) {
    if !rules.generates {
        return;
    }
    let is_believed = match headers.map.entry(&names::X_REQUEST_ID) {
        Entry::Vacant(vacant) => {
            vacant.insert(new_id());
            true
        }
        Entry::Occupied(mut known) if is_edge && !rules.preserves_external => {
            known.insert(new_id());
            true
        }
        Entry::Occupied(_) => !is_edge,
    };
    if !is_believed && rules.packs_reason {
        // The id may stay, but what it says of tracing is not to be believed.
        crate::tracing::clear_reason(headers);
    }
}

/// A random UUID, version 4.
fn new_id() -> HeaderValue {
    let mut bytes = rand::random::<u128>().to_le_bytes();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = [b'-'; 36];
    for (byte, at) in bytes.iter().zip(PLACES) {
        text[at] = HEX[usize::from(byte >> 4)];
        text[at + 1] = HEX[usize::from(byte & 15)];
    }
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("-"))
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
