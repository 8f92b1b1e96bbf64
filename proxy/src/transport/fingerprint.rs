//! What kind of client says hello: JA3 and JA4, as Envoy's TLS inspector computes them.

use super::{certificate::hex, client_hello::Reader};
use md5::{Digest as _, Md5};
use ring::digest::{SHA256, digest};
use std::fmt::Write as _;

const SERVER_NAME: u16 = 0;
const GROUPS: u16 = 10;
const POINT_FORMATS: u16 = 11;
const SIGNATURE_ALGORITHMS: u16 = 13;
const ALPN: u16 = 16;
const VERSIONS: u16 = 43;

/// What a fingerprint is made of.
struct Parts<'a> {
    version: u16,
    ciphers: Vec<u16>,
    extensions: Vec<(u16, &'a [u8])>,
}

/// The JA3 fingerprint of a ClientHello's body; none if it cannot be read.
pub(crate) fn ja3(body: &[u8]) -> Option<String> {
    let parts = Parts::read(body)?;
    let groups = parts.list16(GROUPS, 2);
    let formats = parts.extension(POINT_FORMATS).unwrap_or_default();
    let formats = formats.iter().skip(1).map(|format| u16::from(*format));
    let text = [
        parts.version.to_string(),
        dashed(parts.ciphers.iter().copied()),
        dashed(parts.extensions.iter().map(|(kind, _)| *kind)),
        // QUIRK: Envoy leaves reserved values out of the other lists, and not of this one.
        dashed(groups),
        dashed(formats),
    ]
    .join(",");
    Some(hex(&Md5::digest(text)))
}

/// The JA4 fingerprint of a ClientHello's body; none if it cannot be read.
pub(crate) fn ja4(body: &[u8]) -> Option<String> {
    let mut parts = Parts::read(body)?;
    let mut text = format!(
        "t{}{}{:02}{:02}",
        parts.newest_version(),
        if parts.extension(SERVER_NAME).is_some() {
            'd'
        } else {
            'i'
        },
        parts.ciphers.len().min(99),
        parts.extensions.len().min(99),
    );
    text.push_str(&parts.alpn());
    parts.ciphers.sort_unstable();
    let mut kinds: Vec<u16> = (parts.extensions.iter().map(|(kind, _)| *kind))
        .filter(|kind| ![SERVER_NAME, ALPN].contains(kind))
        .collect();
    kinds.sort_unstable();
    let mut extensions = in_hex(kinds);
    let algorithms = in_hex(parts.list16(SIGNATURE_ALGORITHMS, 2));
    if !extensions.is_empty() && !algorithms.is_empty() {
        extensions = format!("{extensions}_{algorithms}");
    }
    for list in [in_hex(parts.ciphers), extensions] {
        text.push('_');
        text.push_str(&shortened(&list));
    }
    Some(text)
}

impl<'a> Parts<'a> {
    fn read(body: &'a [u8]) -> Option<Self> {
        let mut reader = Reader(body);
        let version = number(reader.take(2)?);
        reader.take(32)?;
        reader.vector8()?;
        let ciphers = numbers(reader.vector16()?)
            .filter(|id| !is_reserved(*id))
            .collect();
        reader.vector8()?;
        let mut extensions = Vec::new();
        let mut rest = Reader(if reader.0.is_empty() {
            reader.0
        } else {
            reader.vector16()?
        });
        while !rest.0.is_empty() {
            let kind = number(rest.take(2)?);
            let data = rest.vector16()?;
            if !is_reserved(kind) {
                extensions.push((kind, data));
            }
        }
        Some(Self {
            version,
            ciphers,
            extensions,
        })
    }

    fn extension(&self, wanted: u16) -> Option<&'a [u8]> {
        let mut all = self.extensions.iter();
        all.find(|(kind, _)| *kind == wanted).map(|(_, data)| *data)
    }

    /// The numbers in an extension, after its list's length.
    fn list16(&self, kind: u16, length: usize) -> impl Iterator<Item = u16> + use<'a> {
        let data = self.extension(kind).and_then(|data| data.get(length..));
        numbers(data.unwrap_or_default())
    }

    fn newest_version(&self) -> &'static str {
        let offered = self.list16(VERSIONS, 1);
        let newest = offered.filter(|version| !is_reserved(*version)).max();
        match newest.unwrap_or(self.version) {
            0x0304 => "13",
            0x0303 => "12",
            0x0302 => "11",
            0x0301 => "10",
            _ => "00",
        }
    }

    /// The first and the last letter of the protocol that is offered first.
    fn alpn(&self) -> String {
        let first = self.extension(ALPN).and_then(|data| {
            let name = Reader(data.get(2..)?).vector8()?;
            Some((*name.first()?, *name.last()?))
        });
        match first {
            None => "00".to_owned(),
            Some((first, last))
                if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() =>
            {
                [char::from(first), char::from(last)].iter().collect()
            }
            Some((first, last)) => format!("{:x}{:x}", first >> 4, last & 15),
        }
    }
}

/// Values that clients make up to keep servers from choking on new ones (GREASE, RFC 8701).
fn is_reserved(id: u16) -> bool {
    let [high, low] = id.to_be_bytes();
    high == low && low & 15 == 10
}

fn number(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.chunks_exact(2).map(number)
}

fn dashed(ids: impl Iterator<Item = u16>) -> String {
    let ids: Vec<String> = ids.map(|id| id.to_string()).collect();
    ids.join("-")
}

fn in_hex(ids: impl IntoIterator<Item = u16>) -> String {
    let mut text = String::new();
    for id in ids {
        if !text.is_empty() {
            text.push(',');
        }
        let _ = write!(text, "{id:04x}");
    }
    text
}

/// The hash's first half dozen bytes.
fn shortened(list: &str) -> String {
    if list.is_empty() {
        return "0".repeat(12);
    }
    hex(&digest(&SHA256, list.as_bytes()).as_ref()[..6])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A ClientHello with reserved values everywhere; what comes of it is what Envoy 1.40 logged for it.
    fn hello(alpn: &str) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(0);
        let ciphers = [0x1a1a_u16, 0xc02f, 0x1301];
        body.extend(6_u16.to_be_bytes());
        ciphers.iter().for_each(|id| body.extend(id.to_be_bytes()));
        body.extend([1, 0]);
        let mut extensions = Vec::new();
        let mut add = |kind: u16, data: &[u8]| {
            extensions.extend(kind.to_be_bytes());
            extensions.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
            extensions.extend(data);
        };
        add(0x2a2a, &[]);
        add(SERVER_NAME, b"\x00\x09\x00\x00\x06a.test");
        add(GROUPS, &[0, 6, 0x3a, 0x3a, 0, 29, 0, 23]);
        add(POINT_FORMATS, &[1, 0]);
        add(SIGNATURE_ALGORITHMS, &[0, 4, 8, 4, 4, 3]);
        let length = u8::try_from(alpn.len()).unwrap();
        let mut names = vec![0, length + 1, length];
        names.extend(alpn.as_bytes());
        add(ALPN, &names);
        add(VERSIONS, &[6, 0x4a, 0x4a, 3, 4, 3, 3]);
        body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
        body.extend(extensions);
        body
    }

    #[test]
    fn fingerprints_are_envoys() {
        let body = hello("h2");
        assert_eq!(
            ja3(&body).as_deref(),
            Some("3ddc0037d5899c31031815f33ae5dc00")
        );
        assert_eq!(
            ja4(&body).as_deref(),
            Some("t13d0206h2_c1929292aa6b_1c0340dc273e")
        );
        let odd = ja4(&hello("\u{1}a-")).unwrap();
        assert_eq!(&odd[8..10], "0d");
    }

    #[test]
    fn hello_without_extensions_has_fingerprints_and_a_broken_one_has_none() {
        let mut body = vec![3, 1];
        body.extend([0; 32]);
        body.extend([0, 0, 2, 0, 47, 1, 0]);
        let both = (ja3(&body), ja4(&body));
        let (ja3_of, ja4_of) = (both.0.as_deref(), both.1.as_deref());
        assert_eq!(ja3_of, Some("b02be259814e870a469a20ce9b2a7900"));
        assert_eq!(ja4_of, Some("t10i010000_ba72b8082249_000000000000"));
        body.pop();
        assert_eq!((ja3(&body), ja4(&body)), (None, None));
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0_usize..150) {
            let _ = (ja3(&bytes), ja4(&bytes));
            let mut body = hello("h2");
            let at = at % body.len();
            body[at] ^= bytes.first().copied().unwrap_or(1);
            let _ = (ja3(&body), ja4(&body));
        }
    }
}
