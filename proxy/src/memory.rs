//! Memory that is not needed any more, given back to the system.
//!
//! Reading a bootstrap and building the first configuration touches most of the program, serving requests little of it, and the
//! system maps code 64 KiB at a time. The pages stay in the system's cache, from where what is needed again comes back at the
//! next call (microseconds, once); what is not no longer counts as the proxy's.

use nix::sys::mman::{MmapAdvise, madvise};
use std::{ffi::c_void, hint::black_box, ops::Range, path::Path, ptr::NonNull, time::Duration};
use tokio::time::MissedTickBehavior;

/// More than the allocator has at hand for a thread.
const FRESH: usize = 1 << 20;

/// Has the allocator look, once a second and for ever, for what was free long enough to be given back: it does so only when it
/// is asked for a fresh piece, which does not happen after a large configuration until the next one.
pub(crate) async fn run_trim() {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tick.tick().await;
        drop(black_box(Vec::<u8>::with_capacity(FRESH)));
    }
}

/// Lets go of the pages of the program's code and constants. Where the system does not say where they are, nothing happens.
pub(crate) fn release_program() {
    let (Ok(program), Ok(maps)) = (
        std::fs::read_link("/proc/self/exe"),
        std::fs::read_to_string("/proc/self/maps"),
    ) else {
        return;
    };
    for range in never_written(&maps, &program) {
        let start = std::ptr::with_exposed_provenance_mut::<c_void>(range.start);
        let Some(start) = NonNull::new(start) else {
            continue;
        };
        // SAFETY: the range is a private mapping of the program's file that nobody has written to: a page that is dropped is
        // read from the file again, with the same bytes.
        #[expect(
            unsafe_code,
            reason = "there is no safe call that lets go of mapped code"
        )]
        let released = unsafe { madvise(start, range.len(), MmapAdvise::MADV_DONTNEED) };
        if let Err(error) = released {
            tracing::debug!(%error, "the program stays resident");
        }
    }
}

/// Where the code and constants of `program` are mapped, by the text of `/proc/PID/maps`: what may be run, and the beginning of the
/// file. What is only read further on is what the loader has written to before.
fn never_written(maps: &str, program: &Path) -> Vec<Range<usize>> {
    let range = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [addresses, rights, offset, _, _, path] = words[..] else {
            return None;
        };
        let is_at_start = usize::from_str_radix(offset, 16) == Ok(0);
        let is_never_written = rights == "r-xp" || (rights == "r--p" && is_at_start);
        if !is_never_written || Path::new(path) != program {
            return None;
        }
        let (start, end) = addresses.split_once('-')?;
        Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
    };
    maps.lines().filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_loader_never_wrote_to_is_let_go() {
        let maps = "\
5500-5900 r--p 00000000 fe:00 12 /usr/bin/bireme-proxy
5900-7900 r-xp 00400000 fe:00 12 /usr/bin/bireme-proxy
7900-8000 r--p 02400000 fe:00 12 /usr/bin/bireme-proxy
8000-8100 rw-p 02500000 fe:00 12 /usr/bin/bireme-proxy
8100-9000 rw-p 00000000 00:00 0
9000-9900 r-xp 00026000 fe:00 31 /usr/lib/libc.so.6
ffff-1ffff r-xp 00000000 00:00 0 [vdso]
";
        assert_eq!(
            never_written(maps, Path::new("/usr/bin/bireme-proxy")),
            [0x5500..0x5900, 0x5900..0x7900]
        );
    }

    /// KiB of files' pages that this process has mapped.
    fn resident_files() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssFile:"));
        let number = line.and_then(|text| text.trim().strip_suffix(" kB"));
        number.unwrap().parse().unwrap()
    }

    #[test]
    fn what_is_let_go_does_not_count_and_runs_again() {
        let before = resident_files();
        release_program();
        let after = resident_files();
        assert!(after < before, "{before} KiB before, {after} after");
    }
}
