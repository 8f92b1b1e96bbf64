//! Large buffers that a thread's connections use one after the other: an idle connection holds none, a busy one finds one whose
//! memory is warm.

use std::cell::RefCell;

/// A buffer's size.
pub(crate) const SIZE: usize = 128 << 10;
/// What a thread keeps: one for reading, one for writing, and some for connections whose peers are slow.
const KEPT: usize = 4;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Gives `buffer` memory, unless it has some.
pub(crate) fn take(buffer: &mut Vec<u8>) {
    if buffer.capacity() == 0 {
        let kept = SPARE.with_borrow_mut(Vec::pop);
        *buffer = kept.unwrap_or_else(|| Vec::with_capacity(SIZE));
    }
}

/// Takes the memory of `buffer`, and what is in it.
pub(crate) fn give(buffer: &mut Vec<u8>) {
    let mut buffer = std::mem::take(buffer);
    // One that had to grow has too much.
    if !(SIZE..=2 * SIZE).contains(&buffer.capacity()) {
        return;
    }
    buffer.clear();
    // A connection may outlive its thread's buffers; its own is freed then.
    let _ = SPARE.try_with(|spare| {
        let mut spare = spare.borrow_mut();
        if spare.len() < KEPT {
            spare.push(buffer);
        }
    });
}
