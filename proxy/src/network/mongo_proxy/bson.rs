//! As much of BSON as is needed to see the names in a document.

/// The elements of a document: type, name, value.
pub(super) struct Document<'a>(Vec<(u8, &'a str, &'a [u8])>);

/// The most elements that are looked at.
const MOST: usize = 4096;

fn size(bytes: &[u8]) -> Option<usize> {
    let four = bytes.get(..4)?;
    let size = i32::from_le_bytes([four[0], four[1], four[2], four[3]]);
    usize::try_from(size).ok()
}

fn text(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some((std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]))
}

/// How long the value of an element is.
fn length(kind: u8, bytes: &[u8]) -> Option<usize> {
    Some(match kind {
        // Undefined, null, and the ends of the order.
        0x06 | 0x0a | 0xff | 0x7f => 0,
        0x08 => 1,
        0x10 => 4,
        // Double, date, timestamp, long.
        0x01 | 0x09 | 0x11 | 0x12 => 8,
        0x07 => 12,
        0x13 => 16,
        // Texts, code, symbols: length and bytes.
        0x02 | 0x0d | 0x0e => size(bytes)?.checked_add(4)?,
        0x0c => size(bytes)?.checked_add(16)?,
        // Documents, lists, code with scope: the length counts itself.
        0x03 | 0x04 | 0x0f => size(bytes)?.max(5),
        0x05 => size(bytes)?.checked_add(5)?,
        0x0b => {
            let (_, rest) = text(bytes)?;
            let (_, rest) = text(rest)?;
            bytes.len() - rest.len()
        }
        _ => return None,
    })
}

impl<'a> Document<'a> {
    /// Reads the document at the front of `bytes`.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let whole = bytes.get(..size(bytes)?)?;
        let (last, mut rest) = whole.get(4..)?.split_last()?;
        if *last != 0 {
            return None;
        }
        let mut elements = Vec::new();
        while let Some((kind, after)) = rest.split_first() {
            let (name, value) = text(after)?;
            let (value, after) = value.split_at_checked(length(*kind, value)?)?;
            if elements.len() < MOST {
                elements.push((*kind, name, value));
            }
            rest = after;
        }
        Some(Self(elements))
    }

    /// The name of the first element.
    pub(super) fn first_name(&self) -> Option<&'a str> {
        self.0.first().map(|(_, name, _)| *name)
    }

    /// Whether there is an element of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(_, known, _)| *known == name)
    }

    /// The document of that name.
    pub(super) fn document(&self, name: &str) -> Option<Document<'a>> {
        let found = self.0.iter().find(|(_, known, _)| *known == name)?;
        match found {
            (0x03, _, value) => Document::parse(value),
            _ => None,
        }
    }
}
