//! What `x-forwarded-client-cert` tells: elements, one of each proxy, with a comma between them, of pairs with a semicolon between
//! them. The oldest element that has a pair counts, as it is the first client's.

use std::borrow::Cow;

use crate::http::headers::{RequestHeaders, names};
use crate::invalid::Invalid;

/// The keys that can be asked for.
const KEYS: &[&str] = &["by", "hash", "cert", "chain", "subject", "uri", "dns"];

/// One of the keys.
#[derive(Debug, Clone, Copy)]
pub(super) struct CertificateKey(&'static str);

impl CertificateKey {
    /// The key of that name, in any case.
    pub(super) fn parse(name: &str) -> Result<Self, Invalid> {
        let known = KEYS.iter().find(|key| key.eq_ignore_ascii_case(name));
        known
            .map(|key| Self(key))
            .ok_or_else(|| Invalid::new(format!("'{name}' is none of {}", KEYS.join(", "))))
    }

    /// Its value, if there is one.
    pub(super) fn find(self, request: &RequestHeaders) -> Option<Cow<'_, str>> {
        let elements = pieces(request.text(&names::X_FORWARDED_CLIENT_CERT)?, b',');
        let mut pairs = elements.flat_map(|element| pieces(element, b';'));
        pairs.find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let is_it = key.trim_ascii().eq_ignore_ascii_case(self.0);
            is_it.then(|| unquoted(value.trim_ascii()))
        })
    }
}

/// What stands between separators that are not in quotes. QUIRK: what follows a quote without an end is none.
fn pieces(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let (mut start, mut is_over) = (0, false);
    std::iter::from_fn(move || {
        if is_over {
            return None;
        }
        let rest = &text[start..];
        let (mut is_quoted, mut is_escaped) = (false, false);
        for (at, byte) in rest.bytes().enumerate() {
            if byte == separator && !is_quoted {
                start += at + 1;
                return Some(&rest[..at]);
            }
            is_quoted ^= byte == b'"' && !is_escaped;
            is_escaped = byte == b'\\' && !is_escaped;
        }
        is_over = true;
        (!is_quoted).then_some(rest)
    })
}

/// A value without its quotes and escapes.
fn unquoted(value: &str) -> Cow<'_, str> {
    let inner = value
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    let value = inner.unwrap_or(value);
    if !value.contains('\\') {
        return Cow::Borrowed(value);
    }
    let mut out = String::with_capacity(value.len());
    let mut letters = value.chars().peekable();
    while let Some(letter) = letters.next() {
        let escaped = letters.next_if(|next| letter == '\\' && matches!(next, '"' | '\\'));
        out.push(escaped.unwrap_or(letter));
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream_info::testing::request;

    fn found(header: &str, key: &str) -> Option<String> {
        let head = request("h", "/", &[("x-forwarded-client-cert", header)]);
        let key = CertificateKey::parse(key).unwrap();
        key.find(&head).map(Cow::into_owned)
    }

    #[test]
    fn oldest_element_with_the_key_counts() {
        let header = "Hash=1;Subject=\"CN=a,O=\\\"b\\\";c\", hash=2; URI = u ;dns";
        assert_eq!(found(header, "HASH").as_deref(), Some("1"));
        assert_eq!(found(header, "subject").as_deref(), Some("CN=a,O=\"b\";c"));
        assert_eq!(found(header, "uri").as_deref(), Some("u"));
        assert_eq!(found(header, "dns").as_deref(), Some(""));
        assert_eq!(found(header, "by"), None);
        assert_eq!(found("", "by"), None);
    }

    #[test]
    fn quote_without_an_end_hides_its_element_only() {
        assert_eq!(found("hash=1,uri=\"u;hash=2", "hash").as_deref(), Some("1"));
        assert_eq!(found("hash=1;uri=\"u", "hash"), None);
    }

    #[test]
    fn escapes_are_those_of_quotes_and_backslashes() {
        assert_eq!(found(r#"uri=a\\b\c\"#, "uri").as_deref(), Some(r"a\b\c\"));
        assert_eq!(found(r#"uri="\"""#, "uri").as_deref(), Some("\""));
        assert!(CertificateKey::parse("issuer").is_err());
    }
}
