//! Fuzzing for parsers: the entries of a corpus (`tests/corpus/TARGET`, one a line, escaped as in a byte string) are given as they
//! are, then changed at random. An ordinary run of the tests does that a fixed number of times from a fixed seed; with
//! `FUZZ_SECONDS` each target goes on for so long from a seed of its own. What makes a parser panic is printed as a line for the
//! corpus.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::time::Duration;
use tokio::time::Instant;

/// Changed entries in an ordinary run.
const CASES: u64 = 500;
/// Nothing grows beyond.
const LONGEST: usize = 16 << 10;

/// The input that is being tried: shown when a test panics over it.
struct Tried<'a>(&'a [u8]);

impl Drop for Tried<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("for the corpus: {}", self.0.escape_ascii());
        }
    }
}

/// Gives a parser everything in the corpus of `target`, then changed entries until the budget is spent.
pub(crate) fn fuzz(target: &str, mut give: impl FnMut(&[u8])) {
    let mut give = |input: &[u8]| {
        let tried = Tried(input);
        give(tried.0);
    };
    let corpus = corpus(target);
    corpus.iter().for_each(|entry| give(entry));
    #[expect(
        clippy::disallowed_methods,
        reason = "a test's budget is not an argument of the program"
    )]
    let seconds = std::env::var("FUZZ_SECONDS").ok();
    let seconds = seconds.map(|text| text.parse().expect("FUZZ_SECONDS is a number"));
    let mut random = StdRng::seed_from_u64(seconds.map_or(1, |_| rand::random()));
    let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    for case in 0.. {
        match end {
            Some(end) if Instant::now() > end => break,
            None if case == CASES => break,
            _ => {}
        }
        let mut input = pick(&mut random, &corpus).to_vec();
        for _ in 0..random.random_range(1..6) {
            change(&mut random, &corpus, &mut input);
        }
        input.truncate(LONGEST);
        give(&input);
    }
}

/// The same for a parser of text.
pub(crate) fn fuzz_text(target: &str, mut give: impl FnMut(&str)) {
    fuzz(target, |bytes| give(&String::from_utf8_lossy(bytes)));
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/").to_owned() + target;
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.lines().map(unescape).collect()
}

/// What `escape_ascii` has written.
fn unescape(line: &str) -> Vec<u8> {
    let mut bytes = line.bytes();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'\\' => match bytes.next() {
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b't') => b'\t',
                Some(b'x') => {
                    let pair = [bytes.next(), bytes.next()].map(Option::unwrap_or_default);
                    crate::wire::hex_byte(&pair).expect("two digits after \\x")
                }
                Some(plain @ (b'\\' | b'"' | b'\'')) => plain,
                other => panic!("not an escape: {other:?}"),
            },
            plain => plain,
        });
    }
    out
}

fn pick<'a>(random: &mut StdRng, corpus: &'a [Vec<u8>]) -> &'a [u8] {
    &corpus[random.random_range(0..corpus.len())]
}

/// A part of the bytes, perhaps none.
fn part(random: &mut StdRng, bytes: &[u8]) -> std::ops::Range<usize> {
    let start = random.random_range(0..=bytes.len());
    let most = (bytes.len() - start).min(1 << random.random_range(0..9));
    start..start + random.random_range(0..=most)
}

fn change(random: &mut StdRng, corpus: &[Vec<u8>], input: &mut Vec<u8>) {
    /// What is more often at a limit than other bytes.
    const EDGES: &[&[u8]] = &[
        b"\0",
        b"\xff",
        b"\x7f",
        b"\x80",
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b"%",
        b"%+f",
        b"\"",
        b"\\",
        b"-1",
        b"+1",
        b"0",
        b"99999999999999999999",
        b"{",
        b"}",
        b"[",
        b"\xff\xff\xff\xff",
        b"\0\0\0\0",
        b"\x7f\xff\xff\xff",
        b"\xc3\xa9",
    ];
    let place = part(random, input);
    let new: Vec<u8> = match random.random_range(0..8) {
        // A bit.
        0 => {
            if let Some(byte) = input.get_mut(place.start) {
                *byte ^= 1 << random.random_range(0..8);
            }
            return;
        }
        // A byte, anything.
        1 => vec![random.random()],
        2 => EDGES[random.random_range(0..EDGES.len())].to_vec(),
        // Less of it.
        3 => Vec::new(),
        4 => {
            input.truncate(place.start);
            return;
        }
        // The same again.
        5 => input[place.clone()].repeat(random.random_range(2..5)),
        // Something of another entry, or of this one, from another place.
        6 => {
            let other = pick(random, corpus);
            other[part(random, other)].to_vec()
        }
        _ => input[part(random, input)].to_vec(),
    };
    let replaced = if random.random() {
        place.clone()
    } else {
        place.start..place.start
    };
    input.splice(replaced, new);
}
