//! What is left of a private key in this process's memory when nobody needs it any more.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use citadel::pki::PrivateKey;
use memchr::memmem;
use zeroize::Zeroizing;

/// Memory that is looked at in one go.
const CHUNK: usize = 1 << 20;
/// A key in each form, and where in its DER there is what nobody but its owner may know.
const KEYS: [(&str, Range<usize>); 4] = [
    ("p256-pkcs8", 34..68),
    ("p256-sec1", 5..39),
    ("p384-sec1", 6..56),
    ("rsa-pkcs1", 300..400),
];

fn addresses(bytes: &[u8]) -> Range<usize> {
    let start = bytes.as_ptr().addr();
    start..start + bytes.len()
}

/// Where `secret` is in what this process may write, besides in `known`, which is ours.
fn copies(secret: &[u8], known: &Range<usize>) -> Vec<usize> {
    let memory = File::open("/proc/self/mem").unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    // What was read must not be found the next time.
    let mut chunk = Zeroizing::new(vec![0; CHUNK]);
    let own = addresses(&chunk);
    let mut found = Vec::new();
    for line in maps.lines() {
        let mut fields = line.split(' ');
        let (Some(range), Some(rights)) = (fields.next(), fields.next()) else {
            continue;
        };
        if !rights.starts_with("rw") {
            continue;
        }
        let (start, end) = range.split_once('-').unwrap();
        let bound = |text: &str| usize::from_str_radix(text, 16).unwrap();
        let (mut start, end) = (bound(start), bound(end));
        while start < end {
            let wanted = CHUNK.min(end - start);
            // Other tests give memory back meanwhile.
            let Ok(read) = memory.read_at(&mut chunk[..wanted], start as u64) else {
                break;
            };
            let places = memmem::find_iter(&chunk[..read], secret).map(|place| start + place);
            found.extend(places.filter(|place| !known.contains(place) && !own.contains(place)));
            if read < wanted || start + read == end {
                break;
            }
            // A copy may lie across two chunks.
            start += read - secret.len();
        }
    }
    found
}

#[test]
fn a_private_key_leaves_nothing_behind() {
    for (name, secret) in KEYS {
        let pem = fs::read_to_string(format!("testdata/key/{name}.pem")).unwrap();
        let key = PrivateKey::from_pem(&pem).unwrap();
        let other = key.clone();
        let text = key.to_pem();
        let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let der = STANDARD.decode(body).unwrap();
        let (secret, known) = (&der[secret], addresses(&der));
        drop((key, text));
        let used = copies(secret, &known);
        assert!(!used.is_empty(), "{name}: it is not found where it is");
        drop(other);
        let left = copies(secret, &known);
        assert!(left.is_empty(), "{name}: {left:x?}");
    }
}
