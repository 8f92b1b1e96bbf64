//! The two requests as they came, read in place.

use std::collections::BTreeMap;

use proto::istio::mixer::v1::check_request::QuotaParams;
use proto::istio::mixer::v1::report_request::RepeatedAttributesSemantics;
use proto_mesh::attribute::wire::{EncodedSet, InvalidMessage, fields};

/// A `CheckRequest`.
#[derive(Debug, Default)]
pub(crate) struct CheckMessage<'a> {
    pub(crate) attributes: EncodedSet<'a>,
    pub(crate) global_word_count: u32,
    pub(crate) deduplication_id: &'a str,
    pub(crate) quotas: BTreeMap<&'a str, QuotaParams>,
}

/// A `ReportRequest`.
#[derive(Debug)]
pub(crate) struct ReportMessage<'a> {
    pub(crate) sets: Vec<EncodedSet<'a>>,
    pub(crate) default_words: Vec<&'a str>,
    pub(crate) global_word_count: u32,
    /// Whether a set stands on top of those before it.
    pub(crate) is_delta: bool,
}

impl<'a> CheckMessage<'a> {
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, InvalidMessage> {
        let mut message = Self::default();
        for field in fields(bytes) {
            match field? {
                // Where there are two, generated code would merge them; nobody writes two.
                (1, field) => message.attributes = EncodedSet::read(field.bytes(1)?)?,
                (2, field) => message.global_word_count = field.int32(2)?.cast_unsigned(),
                (3, field) => message.deduplication_id = field.text(3)?,
                (4, field) => {
                    let (name, params) = quota(field.bytes(4)?)?;
                    // Of two with one name the last counts.
                    message.quotas.insert(name, params);
                }
                _ => {}
            }
        }
        Ok(message)
    }
}

fn quota(entry: &[u8]) -> Result<(&str, QuotaParams), InvalidMessage> {
    let (mut name, mut params) = ("", QuotaParams::default());
    for field in fields(entry) {
        match field? {
            (1, field) => name = field.text(1)?,
            (2, field) => {
                for field in fields(field.bytes(2)?) {
                    match field? {
                        (1, field) => params.amount = field.varint(1)?.cast_signed(),
                        (2, field) => params.best_effort = field.varint(2)? != 0,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok((name, params))
}

impl<'a> ReportMessage<'a> {
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, InvalidMessage> {
        let mut message = Self {
            sets: Vec::with_capacity(128),
            default_words: Vec::with_capacity(128),
            global_word_count: 0,
            is_delta: true,
        };
        let independent = i32::from(RepeatedAttributesSemantics::IndependentEncoding);
        for field in fields(bytes) {
            match field? {
                (1, field) => message.sets.push(EncodedSet::read(field.bytes(1)?)?),
                (2, field) => message.default_words.push(field.text(2)?),
                (3, field) => message.global_word_count = field.int32(3)?.cast_unsigned(),
                (4, field) => message.is_delta = field.int32(4)? != independent,
                _ => {}
            }
        }
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message as _;
    use proto::istio::mixer::v1::{CheckRequest, CompressedAttributes, ReportRequest};

    #[test]
    fn fields_are_those_of_the_generated_messages() {
        let attributes = CompressedAttributes {
            words: vec!["w".into()],
            ..CompressedAttributes::default()
        };
        let params = |amount| QuotaParams {
            amount,
            best_effort: amount > 1,
        };
        let check = CheckRequest {
            attributes: Some(attributes.clone()),
            global_word_count: 222,
            deduplication_id: "id".into(),
            quotas: [("b".into(), params(-2)), ("a".into(), params(7))].into(),
        }
        .encode_to_vec();
        let read = CheckMessage::read(&check).unwrap();
        assert_eq!(read.attributes.words(), ["w"]);
        assert_eq!((read.global_word_count, read.deduplication_id), (222, "id"));
        assert_eq!(read.quotas, [("a", params(7)), ("b", params(-2))].into());
        let report = ReportRequest {
            attributes: vec![attributes, CompressedAttributes::default()],
            default_words: vec!["x".into(), "y".into()],
            global_word_count: 111,
            repeated_attributes_semantics: 1,
        }
        .encode_to_vec();
        let read = ReportMessage::read(&report).unwrap();
        assert_eq!(read.sets.len(), 2);
        assert_eq!(read.default_words, ["x", "y"]);
        assert_eq!((read.global_word_count, read.is_delta), (111, false));
        assert!(ReportMessage::read(&[]).unwrap().is_delta);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            // What is no message for one is none for the other, but for fields that we do not look into.
            if CheckRequest::decode(bytes.as_slice()).is_ok() {
                prop_assert!(CheckMessage::read(&bytes).is_ok());
            }
            if ReportRequest::decode(bytes.as_slice()).is_ok() {
                prop_assert!(ReportMessage::read(&bytes).is_ok());
            }
        }
    }
}
