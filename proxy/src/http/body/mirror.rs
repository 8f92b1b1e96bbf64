//! The copy of a request's body that goes to a mirror, as fast as the mirror takes it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use super::{BodyError, Piece, SourceError};

/// The pieces on their way to one mirror. A mirror that is slower than the limit allows is given up.
#[derive(Default)]
pub(super) struct MirrorQueue(RefCell<MirrorState>);

#[derive(Default)]
pub(super) struct MirrorState {
    pieces: VecDeque<Piece>,
    bytes: usize,
    is_end: bool,
    is_broken: bool,
    waker: Option<Waker>,
}

/// What a mirror may lag behind.
const MIRROR_LIMIT: usize = 1 << 20;

impl MirrorQueue {
    /// A piece came.
    pub(super) fn push(&self, piece: Piece) {
        let mut state = self.0.borrow_mut();
        if state.is_broken {
            return;
        }
        if let Piece::Data(data) = &piece {
            state.bytes += data.len();
        }
        if state.bytes > MIRROR_LIMIT {
            state.is_broken = true;
            state.pieces.clear();
        } else {
            state.pieces.push_back(piece);
        }
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    /// No more will come.
    pub(super) fn end(&self, is_broken: bool) {
        let mut state = self.0.borrow_mut();
        state.is_end = true;
        state.is_broken |= is_broken;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    /// The next piece.
    pub(super) fn poll_piece(
        &self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Piece, BodyError>>> {
        let mut state = self.0.borrow_mut();
        if state.is_broken {
            return Poll::Ready(Some(Err(SourceError::Mirror.into())));
        }
        if let Some(piece) = state.pieces.pop_front() {
            if let Piece::Data(data) = &piece {
                state.bytes -= data.len();
            }
            return Poll::Ready(Some(Ok(piece)));
        }
        if state.is_end {
            return Poll::Ready(None);
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }

    /// True when everything was taken.
    pub(super) fn is_done(&self) -> bool {
        let state = self.0.borrow();
        state.is_end && !state.is_broken && state.pieces.is_empty()
    }
}
