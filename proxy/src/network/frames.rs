//! Putting frames together from a stream that is looked at as it passes.

use bytes::{Buf as _, BytesMut};

/// The longest frame that is put together; longer ones are let pass unseen.
const LONGEST: usize = 1 << 20;

/// Bytes of a frame that is not whole yet.
#[derive(Default)]
pub(super) struct Frames {
    held: BytesMut,
    /// How much of a frame that is too long is still to come.
    skipped: usize,
}

impl Frames {
    /// Takes more of the stream and shows every frame that it makes whole. `length` tells a frame's length from its first bytes
    /// once there are enough of them; `false` when that is nonsense.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        length: impl Fn(&[u8]) -> Option<usize>,
        mut show: impl FnMut(&[u8]),
    ) -> bool {
        loop {
            let skipped = self.skipped.min(bytes.len());
            self.skipped -= skipped;
            bytes = &bytes[skipped..];
            self.held.extend_from_slice(bytes);
            bytes = &[];
            let Some(whole) = length(&self.held) else {
                // No protocol here needs more than its first bytes for that.
                return self.held.len() < 64;
            };
            if whole == 0 {
                return false;
            }
            if whole > LONGEST {
                self.skipped = whole.saturating_sub(self.held.len());
                let held = whole.min(self.held.len());
                self.held.advance(held);
                if self.held.is_empty() {
                    return true;
                }
                continue;
            }
            if self.held.len() < whole {
                return true;
            }
            let frame = self.held.split_to(whole);
            show(&frame);
        }
    }
}
