//! The downstream request's body: read once, shown to the filters, kept (up to a limit) while a retry may need it again, and
//! copied to mirrors.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;

use crate::http::filter::Buffered;
use crate::http::stream::{Holder, StreamCell};

use super::downstream::DownstreamBody;
use super::mirror::MirrorQueue;
use super::{BodyError, Piece, SourceError, join};

/// The downstream request's body, read once and given to every attempt.
pub(crate) struct RequestSource {
    cell: Rc<StreamCell>,
    source: RefCell<Source>,
    /// The attempt that may read; bodies of earlier ones break off.
    generation: Cell<u32>,
    end_waker: RefCell<Option<Waker>>,
}

struct Source {
    incoming: Option<DownstreamBody>,
    is_end: bool,
    /// What was read, while it is kept for a retry or waits for a filter.
    kept: Vec<Kept>,
    kept_bytes: usize,
    limit: Option<usize>,
    /// Something went upstream and was not kept.
    was_dropped: bool,
    mirrors: Vec<Rc<MirrorQueue>>,
    sees_data: bool,
    /// The number of filters that know of the end.
    ended: usize,
    /// What comes after bytes that a filter had left.
    trailers: Option<HeaderMap>,
}

/// A piece that is kept, with the number of filters that have seen it.
struct Kept {
    piece: Piece,
    seen: usize,
}

/// A body that is longer than a filter wants it.
#[derive(Debug)]
pub(crate) enum NotBuffered {
    /// Longer than the limit.
    TooLong,
    /// The client broke off.
    Broken,
}

impl RequestSource {
    /// Takes a downstream body.
    pub(crate) fn new(cell: Rc<StreamCell>, incoming: DownstreamBody) -> Rc<Self> {
        let is_end = incoming.is_end_stream();
        Rc::new(RequestSource {
            cell,
            source: RefCell::new(Source {
                incoming: (!is_end).then_some(incoming),
                is_end,
                kept: Vec::new(),
                kept_bytes: 0,
                limit: None,
                was_dropped: false,
                mirrors: Vec::new(),
                sees_data: false,
                ended: if is_end { usize::MAX } else { 0 },
                trailers: None,
            }),
            generation: Cell::new(0),
            end_waker: RefCell::new(None),
        })
    }

    /// Another attempt reads from now on; its number.
    pub(super) fn begin_attempt(&self) -> u32 {
        let generation = self.generation.get() + 1;
        self.generation.set(generation);
        generation
    }

    /// The attempt that reads now.
    pub(super) fn generation(&self) -> u32 {
        self.generation.get()
    }

    /// True when a later attempt reads.
    pub(super) fn is_superseded(&self, generation: u32) -> bool {
        self.generation.get() != generation
    }

    /// True when nothing comes after `position`.
    pub(super) fn is_done(&self, position: usize) -> bool {
        let source = self.source.borrow();
        source.is_end && source.trailers.is_none() && position >= source.kept.len()
    }

    /// A queue with what was read and what will be.
    pub(super) fn mirror(&self) -> Rc<MirrorQueue> {
        let queue = Rc::<MirrorQueue>::default();
        self.show_kept();
        let mut source = self.source.borrow_mut();
        for kept in &source.kept {
            queue.push(kept.piece.clone());
        }
        if self.refused(&mut source).is_some() {
            queue.end(true);
        } else if source.is_end {
            queue.end(false);
        } else {
            source.mirrors.push(queue.clone());
        }
        queue
    }

    /// The upstream wants the body.
    pub(super) fn forward_continue(&self, context: &mut Context<'_>) {
        if let Some(incoming) = &self.source.borrow().incoming {
            incoming.forward_continue(context);
        }
    }

    /// True when the request has no body at all.
    pub(crate) fn is_empty(&self) -> bool {
        let source = self.source.borrow();
        source.is_end && source.kept.is_empty()
    }

    /// True when nothing was read ahead of the upstream.
    pub(crate) fn is_untouched(&self) -> bool {
        self.source.borrow().kept.is_empty()
    }

    /// Some filter wants to see the body.
    pub(crate) fn set_sees_data(&self, sees_data: bool) {
        self.source.borrow_mut().sees_data = sees_data;
    }

    /// Keep what is read from now on, up to `limit` bytes.
    pub(crate) fn keep(&self, limit: usize) {
        self.source.borrow_mut().limit = Some(limit);
    }

    /// True when everything read so far can be given to another attempt.
    pub(crate) fn is_replayable(&self) -> bool {
        let source = self.source.borrow();
        let is_empty = source.incoming.is_none() && source.is_end && source.kept.is_empty();
        !source.was_dropped && (source.limit.is_some() || is_empty)
    }

    /// No retry will come: what was kept is let go once it is sent.
    pub(crate) fn stop_keeping(&self) {
        // Pieces that the running attempt has not read yet stay; there are none, since it reads them first.
        let mut source = self.source.borrow_mut();
        source.limit = None;
    }

    /// The body is not to go anywhere any more.
    pub(crate) fn forget(&self) {
        self.source.borrow_mut().kept.clear();
    }

    /// True when the last byte was read.
    pub(crate) fn is_read(&self) -> bool {
        self.source.borrow().is_end
    }

    /// Resolves when the last byte was read.
    pub(crate) async fn ended(&self) {
        std::future::poll_fn(|context| {
            if self.is_read() {
                return Poll::Ready(());
            }
            *self.end_waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Reads the body for the filter before `next`: to its end, or to `limit` bytes if a part is enough. What is read is
    /// kept and goes upstream later.
    pub(crate) async fn buffer(
        &self,
        limit: usize,
        allows_partial: bool,
        next: usize,
    ) -> Result<Buffered, NotBuffered> {
        let mut position = 0;
        let mut body = BytesMut::new();
        loop {
            let piece =
                std::future::poll_fn(|context| self.poll_ahead(&mut position, next, context)).await;
            match piece {
                None => break,
                Some(Err(_)) => return Err(NotBuffered::Broken),
                Some(Ok(Piece::Trailers(_))) => {}
                Some(Ok(Piece::Data(data))) => {
                    body.extend_from_slice(&data);
                    if body.len() > limit && !allows_partial {
                        return Err(NotBuffered::TooLong);
                    }
                    if body.len() >= limit && allows_partial {
                        break;
                    }
                }
            }
        }
        let is_whole = body.len() <= limit && self.is_read();
        body.truncate(limit);
        Ok(Buffered {
            body: body.freeze(),
            is_whole,
        })
    }

    /// A piece for the filter before `next`; kept in any case.
    fn poll_ahead(
        &self,
        position: &mut usize,
        next: usize,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Piece, BodyError>>> {
        let mut source = self.source.borrow_mut();
        if *position >= source.kept.len() {
            match ready!(self.poll_incoming(&mut source, context)) {
                Some(Ok(piece)) => source.kept.push(Kept { piece, seen: 0 }),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {}
            }
        }
        self.show(&mut source, *position, next);
        if source.is_end && *position + 1 >= source.kept.len() {
            self.finish(&mut source, next);
        }
        if let Some(refused) = self.refused(&mut source) {
            return Poll::Ready(Some(Err(refused)));
        }
        *position += 1;
        Poll::Ready(
            source
                .kept
                .get(*position - 1)
                .map(|kept| Ok(kept.piece.clone())),
        )
    }

    /// Shows everything that is kept to the filters that have not seen it.
    pub(super) fn show_kept(&self) {
        let mut source = self.source.borrow_mut();
        if !source.sees_data {
            return;
        }
        for index in 0..source.kept.len() {
            self.show(&mut source, index, usize::MAX);
        }
        if source.is_end {
            self.finish(&mut source, usize::MAX);
        }
    }

    /// What is kept is shown to filters that have not seen any of it; how many bytes that is.
    pub(crate) fn show_anew(&self) -> u64 {
        let mut source = self.source.borrow_mut();
        source.kept.iter_mut().for_each(|kept| kept.seen = 0);
        source.ended = if source.kept.is_empty() {
            usize::MAX
        } else {
            0
        };
        drop(source);
        self.held() as u64
    }

    /// Shows the end of what is kept to the filters before `next` that do not know of it, and keeps what they had left.
    fn finish(&self, source: &mut Source, next: usize) {
        if let Some(rest) = self.rest(source, next) {
            let last = source.kept.last().map(|kept| &kept.piece);
            let is_trailed = matches!(last, Some(Piece::Trailers(_)));
            let at = source.kept.len() - usize::from(is_trailed);
            let piece = Piece::Data(rest);
            source.kept.insert(at, Kept { piece, seen: next });
        }
    }

    /// What the filters before `next` that have not yet seen the end had left.
    fn rest(&self, source: &mut Source, next: usize) -> Option<Bytes> {
        if !source.sees_data || source.ended >= next {
            return None;
        }
        let seen = std::mem::replace(&mut source.ended, next);
        Some(self.cell.end_request(seen..next)).filter(|rest| !rest.is_empty())
    }

    /// Shows a kept piece to the filters before `next` that have not seen it.
    fn show(&self, source: &mut Source, index: usize, next: usize) {
        let sees_data = source.sees_data;
        let Some(kept) = source.kept.get_mut(index).filter(|kept| kept.seen < next) else {
            return;
        };
        if let Piece::Data(data) = &mut kept.piece
            && sees_data
        {
            *data = self
                .cell
                .show_request(std::mem::take(data), kept.seen..next);
        }
        kept.seen = next;
    }

    /// What a filter wants no more of ends here.
    fn refused(&self, source: &mut Source) -> Option<BodyError> {
        let is_refused = source.sees_data && self.cell.with(|state| state.stream.refusal.is_some());
        is_refused.then(|| {
            source.incoming = None;
            source.break_mirrors();
            SourceError::Refused.into()
        })
    }

    fn end(&self, source: &mut Source) {
        source.end(&self.cell);
        if let Some(waker) = self.end_waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// The next piece for the running attempt.
    pub(super) fn poll_piece(
        &self,
        position: &mut usize,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Piece, BodyError>>> {
        let mut source = self.source.borrow_mut();
        if *position < source.kept.len() {
            self.show(&mut source, *position, usize::MAX);
            if let Some(refused) = self.refused(&mut source) {
                return Poll::Ready(Some(Err(refused)));
            }
            *position += 1;
            return Poll::Ready(
                source
                    .kept
                    .get(*position - 1)
                    .map(|kept| Ok(kept.piece.clone())),
            );
        }
        let piece = match ready!(self.poll_incoming(&mut source, context)) {
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            Some(Ok(piece)) if !source.sees_data => Some(piece),
            piece => self.shown(&mut source, piece.transpose()?),
        };
        if let Some(refused) = self.refused(&mut source) {
            return Poll::Ready(Some(Err(refused)));
        }
        let Some(piece) = piece else {
            source.end_mirrors();
            return Poll::Ready(None);
        };
        if source.keep(&piece) {
            *position += 1;
        }
        source.copy(&piece);
        if source.incoming.is_none() && source.trailers.is_none() {
            source.end_mirrors();
        }
        Poll::Ready(Some(Ok(piece)))
    }

    /// A piece, or the end, as the filters leave it.
    fn shown(&self, source: &mut Source, piece: Option<Piece>) -> Option<Piece> {
        let all = usize::MAX;
        if let Some(Piece::Data(data)) = piece {
            let data = self.cell.show_request(data, 0..all);
            let rest = source.is_end.then(|| self.rest(source, all)).flatten();
            return Some(Piece::Data(join(data, rest.unwrap_or_default())));
        }
        let Some(rest) = self.rest(source, all) else {
            return piece;
        };
        if let Some(Piece::Trailers(trailers)) = piece {
            source.trailers = Some(trailers);
        }
        Some(Piece::Data(rest))
    }

    /// The next piece as it comes, counted.
    fn poll_incoming(
        &self,
        source: &mut Source,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Piece, BodyError>>> {
        let Some(incoming) = source.incoming.as_mut() else {
            return Poll::Ready(source.trailers.take().map(|map| Ok(Piece::Trailers(map))));
        };
        let frame = match ready!(incoming.poll_frame(context)) {
            None => {
                self.end(source);
                return Poll::Ready(None);
            }
            Some(Err(error)) => {
                source.break_mirrors();
                source.incoming = None;
                return Poll::Ready(Some(Err(SourceError::Downstream(error).into())));
            }
            Some(Ok(frame)) => frame,
        };
        let is_last = source
            .incoming
            .as_ref()
            .is_none_or(DownstreamBody::is_end_stream);
        let piece = match frame.into_data() {
            Ok(data) => {
                self.cell.received(&data);
                Piece::Data(data)
            }
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => Piece::Trailers(trailers),
                Err(_) => return Poll::Ready(None),
            },
        };
        if is_last {
            self.end(source);
        }
        Poll::Ready(Some(Ok(piece)))
    }
}

impl Holder for RequestSource {
    fn held(&self) -> usize {
        let source = self.source.borrow();
        let pieces = source.kept.iter().map(|kept| match &kept.piece {
            Piece::Data(data) => data.len(),
            Piece::Trailers(_) => 0,
        });
        pieces.sum()
    }
}

impl Source {
    /// Keeps a piece while there is room; what does not fit ends all keeping.
    fn keep(&mut self, piece: &Piece) -> bool {
        let Some(limit) = self.limit else {
            self.was_dropped = true;
            return false;
        };
        if let Piece::Data(data) = piece {
            self.kept_bytes += data.len();
        }
        if self.kept_bytes > limit {
            self.limit = None;
            self.was_dropped = true;
            self.kept.clear();
            return false;
        }
        self.kept.push(Kept {
            piece: piece.clone(),
            seen: usize::MAX,
        });
        true
    }

    fn copy(&mut self, piece: &Piece) {
        for mirror in &self.mirrors {
            mirror.push(piece.clone());
        }
    }

    fn end(&mut self, cell: &StreamCell) {
        if !self.is_end {
            self.is_end = true;
            cell.request_ended();
        }
        self.incoming = None;
    }

    fn end_mirrors(&mut self) {
        for mirror in self.mirrors.drain(..) {
            mirror.end(false);
        }
    }

    fn break_mirrors(&mut self) {
        for mirror in self.mirrors.drain(..) {
            mirror.end(true);
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.break_mirrors();
    }
}
