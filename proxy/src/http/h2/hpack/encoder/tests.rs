//! What is written is read again, and who may keep what.

use super::*;
use crate::http::h2::hpack::{Decoder, Name};
use proptest::prelude::*;

fn name(text: &str) -> HeaderName {
    HeaderName::try_from(text).unwrap()
}

fn write(encoder: &mut Encoder, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    encoder.begin(&mut out);
    for (text, value) in fields {
        encoder.header(
            &name(text),
            &HeaderValue::try_from(*value).unwrap(),
            &mut out,
        );
    }
    out
}

fn read(decoder: &mut Decoder, block: &[u8]) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    decoder
        .decode(block, |name, value, _| {
            let Name::Header(name) = name else {
                panic!("{name:?}");
            };
            fields.push((name.to_string(), value.to_str().unwrap().to_owned()));
        })
        .unwrap();
    fields
}

#[test]
fn what_comes_again_is_a_byte() {
    let mut encoder = Encoder::new();
    let fields = [("user-agent", "bench"), ("x-own", "1"), ("accept", "*/*")];
    assert!(write(&mut encoder, &fields).len() > 20);
    assert_eq!(write(&mut encoder, &fields).len(), 3);
}

#[test]
fn secrets_are_kept_by_nobody() {
    let mut encoder = Encoder::new();
    for _ in 0..2 {
        let block = write(&mut encoder, &[("authorization", "Bearer x")]);
        assert_eq!(block[0] & 0xf0, 0x10);
        assert!(block.ends_with(b"Bearer x"));
    }
    assert!(encoder.entries.is_empty());
}

#[test]
fn a_host_in_trailers_is_not_the_authority() {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
    let mut head = Vec::new();
    encoder.authority(&HeaderValue::from_static("a.test"), &mut head);
    let mut name = None;
    let note = |seen: &Name, _: HeaderValue, _| name = Some(seen.clone());
    decoder.decode(&head, note).unwrap();
    assert_eq!(name, Some(Name::Authority));
    let trailers = write(&mut encoder, &[("host", "a.test")]);
    let host = ("host".to_owned(), "a.test".to_owned());
    assert_eq!(read(&mut decoder, &trailers), [host]);
    let mut again = Vec::new();
    encoder.authority(&HeaderValue::from_static("a.test"), &mut again);
    assert_eq!(again.len(), 1);
}

/// In the order of the last time, in another, and with some that are new or gone.
#[test]
fn what_comes_in_another_order_is_found() {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
    let fields: Vec<(String, String)> = ["a", "b", "c", "d"]
        .map(|text| (format!("x-{text}"), text.to_owned()))
        .into();
    for order in [
        &[0, 1, 2, 3][..],
        &[0, 1, 2, 3],
        &[0, 3, 1, 2],
        &[2, 3],
        &[0, 0, 3],
    ] {
        let block: Vec<_> = order.iter().map(|index| fields[*index].clone()).collect();
        let texts: Vec<(&str, &str)> = block
            .iter()
            .map(|(name, value)| (&**name, &**value))
            .collect();
        let bytes = write(&mut encoder, &texts);
        assert_eq!(read(&mut decoder, &bytes), block);
        assert_eq!(encoder.entries.len(), fields.len());
    }
}

#[test]
fn a_value_that_became_a_secret_is_said_to_be_one() {
    let mut encoder = Encoder::new();
    let fields = [("x-first", "1"), ("x-own", "2")];
    write(&mut encoder, &fields);
    assert_eq!(write(&mut encoder, &fields).len(), 2);
    let mut value = HeaderValue::from_static("2");
    value.set_sensitive(true);
    let mut out = Vec::new();
    encoder.begin(&mut out);
    encoder.header(&name("x-first"), &HeaderValue::from_static("1"), &mut out);
    encoder.header(&name("x-own"), &value, &mut out);
    assert_eq!(out[1] & 0xf0, 0x10);
}

#[test]
fn passing_values_are_not_kept_but_their_name_is() {
    let mut encoder = Encoder::new();
    write(&mut encoder, &[("x-request-id", "1")]);
    let (second, third) = (
        write(&mut encoder, &[("x-request-id", "2")]),
        write(&mut encoder, &[("x-request-id", "3")]),
    );
    assert_eq!((second.len(), third.len()), (4, 4));
    assert_eq!(encoder.entries.len(), 1);
}

#[test]
fn a_reader_with_a_smaller_table_is_told_that_it_is_kept() {
    let mut encoder = Encoder::new();
    write(&mut encoder, &[("x-own", "1")]);
    encoder.resize(0);
    encoder.resize(100);
    let block = write(&mut encoder, &[("x-own", "1")]);
    assert_eq!(block[..3], [0x20, 0x3f, 100 - 31]);
    assert!(block.len() > 6, "it was forgotten");
    encoder.resize(0);
    let mut decoder = Decoder::new();
    read(&mut decoder, &write(&mut encoder, &[("x-own", "1")]));
    assert!(encoder.entries.is_empty());
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        blocks in prop::collection::vec(
            prop::collection::vec(("(x-[a-c]|etag|cookie|accept|x-request-id)", "[a-z]{0,3}|[x]{900}"), 0..20), 1..20),
        sizes in prop::collection::vec(0_usize..5000, 20),
    ) {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        for (block, size) in blocks.iter().zip(sizes) {
            if size % 3 == 0 {
                encoder.resize(size);
            }
            let fields: Vec<(&str, &str)> = block.iter().map(|(name, value)| (&**name, &**value)).collect();
            let seen = read(&mut decoder, &write(&mut encoder, &fields));
            prop_assert_eq!(seen, block.clone());
        }
    }
}
