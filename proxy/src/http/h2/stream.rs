//! A stream's two halves, as whoever serves or asks has them.

use super::{
    core::{Core, Role},
    frame, head,
    reason::{Error, Reason},
};
use crate::gather::UnderWay;
use crate::http::{headers::ResponseHeaders, stream::Holder};
use crate::stream_info::{ByteCounts, ByteMeter};
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::Frame;
use std::{
    cell::RefCell,
    collections::VecDeque,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
};

/// What a connection and those who use a stream share.
pub(super) struct Shared {
    pub(super) core: Rc<RefCell<Core>>,
    pub(super) state: RefCell<State>,
    _under_way: UnderWay,
}

/// The state of a stream.
#[derive(Debug)]
pub(super) struct State {
    pub(super) id: u32,
    /// A response's head that nobody has taken.
    pub(super) head: Option<ResponseHeaders>,
    pub(super) has_head: bool,
    /// Data that nobody has taken.
    pub(super) data: VecDeque<Piece>,
    pub(super) trailers: Option<HeaderMap>,
    /// What is to come as `content-length` said.
    pub(super) promised: Option<u64>,
    /// A response to HEAD has no data, whatever its length.
    pub(super) is_head: bool,
    pub(super) is_receive_ended: bool,
    pub(super) is_send_ended: bool,
    pub(super) send_window: i64,
    pub(super) receive_window: i64,
    pub(super) released: u32,
    /// It waits for room among others.
    pub(super) is_blocked: bool,
    /// Nobody takes what comes.
    pub(super) is_unwanted: bool,
    pub(super) error: Option<Error>,
    /// How many halves are there.
    pub(super) halves: u8,
    pub(super) receiver: Option<Waker>,
    pub(super) sender: Option<Waker>,
    /// What went over the connection, in frames of the stream.
    pub(super) bytes: ByteCounts,
}

/// Data that nobody has taken.
#[derive(Debug)]
pub(super) enum Piece {
    /// Copied, with room for more.
    Own(BytesMut),
    /// As it was read.
    Part(Bytes),
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Piece::Own(data) => data.len(),
            Piece::Part(data) => data.len(),
        }
    }

    /// The memory that it takes; of a part, what it keeps besides is not counted.
    fn held(&self) -> usize {
        match self {
            Piece::Own(data) => data.capacity(),
            Piece::Part(data) => data.len(),
        }
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Piece::Own(data) => data.freeze(),
            Piece::Part(data) => data,
        }
    }
}

/// A half of a stream.
#[derive(Clone, Copy)]
pub(super) enum Half {
    Receive,
    Send,
}

impl State {
    pub(super) fn new(id: u32, send_window: i64, receive_window: u32) -> Self {
        Self {
            id,
            head: None,
            has_head: false,
            data: VecDeque::new(),
            trailers: None,
            promised: None,
            is_head: false,
            is_receive_ended: false,
            is_send_ended: false,
            send_window,
            receive_window: i64::from(receive_window),
            released: 0,
            is_blocked: false,
            is_unwanted: false,
            error: None,
            halves: 2,
            receiver: None,
            sender: None,
            bytes: ByteCounts::default(),
        }
    }

    pub(super) fn wake(&mut self, half: Half) {
        let waker = match half {
            Half::Receive => &mut self.receiver,
            Half::Send => &mut self.sender,
        };
        if let Some(waker) = waker.take() {
            waker.wake();
        }
    }

    /// The stream is over before its time.
    pub(super) fn fail(&mut self, error: Error) {
        self.error.get_or_insert(error);
        self.wake(Half::Receive);
        self.wake(Half::Send);
    }

    /// An error when nothing may be sent any more.
    fn check_sendable(&self) -> Result<(), Error> {
        match self.error {
            Some(error) => Err(error),
            None if self.is_send_ended => Err(Error::Closed),
            None => Ok(()),
        }
    }

    fn is_over(&self) -> bool {
        self.is_receive_ended && self.is_send_ended
    }
}

fn keep(place: &mut Option<Waker>, context: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(context.waker()),
        None => *place = Some(context.waker().clone()),
    }
}

impl Shared {
    pub(super) fn new(core: &Rc<RefCell<Core>>, state: State) -> Rc<Self> {
        Rc::new(Self {
            core: core.clone(),
            state: RefCell::new(state),
            _under_way: UnderWay::new(),
        })
    }

    /// The two halves of a new stream.
    pub(super) fn halves(self: &Rc<Self>) -> (Receive, Send) {
        (Receive(self.clone()), Send(self.clone()))
    }

    /// The peer or we have said the last of one direction.
    pub(super) fn ended(&self, core: &mut Core, state: &State) {
        if state.is_over() {
            core.forget(state.id);
        }
    }

    /// Breaks the stream off.
    fn reset(&self, reason: Reason) {
        let (mut state, mut core) = (self.state.borrow_mut(), self.core.borrow_mut());
        if state.error.is_none() && !state.is_over() {
            core.reset(state.id, reason);
            state.bytes.sent.wire += frame::RESET;
            core.forget(state.id);
            state.fail(Error::GivenUp(reason));
        }
    }

    /// A half is let go of: what nobody takes makes room, and a stream without halves ends.
    fn let_go(&self, half: Half) {
        let (mut state, mut core) = (self.state.borrow_mut(), self.core.borrow_mut());
        state.halves -= 1;
        if matches!(half, Half::Receive) {
            state.is_unwanted = true;
            let waiting = state.data.drain(..).map(|data| data.len()).sum();
            core.release(waiting);
        }
        if state.halves == 0 && !state.is_over() && state.error.is_none() {
            // After the whole response the rest of the request is only not needed any more.
            let reason = if core.role == Role::Server && state.is_send_ended {
                Reason::NO_ERROR
            } else {
                Reason::CANCEL
            };
            state.error = Some(Error::GivenUp(reason));
            core.reset(state.id, reason);
            state.bytes.sent.wire += frame::RESET;
            core.forget(state.id);
        }
    }
}

impl Holder for Shared {
    fn held(&self) -> usize {
        self.state.borrow().data.iter().map(Piece::held).sum()
    }
}

impl ByteMeter for Shared {
    fn counts(&self) -> ByteCounts {
        self.state.borrow().bytes
    }

    fn add(&self, other: ByteCounts) {
        self.state.borrow_mut().bytes.add(other);
    }

    /// Frames are counted here, whatever is in them.
    fn tunnelled(&self, _: u64, _: u64) {}

    fn is_reset_by_peer(&self) -> bool {
        matches!(self.state.borrow().error, Some(Error::Reset(_)))
    }
}

/// A stream as neither who serves nor who asks has it.
pub(crate) struct Whole(Rc<Shared>);

impl Whole {
    /// How much has come that nobody has taken, in bytes.
    pub(crate) fn held(&self) -> usize {
        self.0.held()
    }

    /// Breaks the stream off.
    pub(crate) fn reset(&self, reason: Reason) {
        self.0.reset(reason);
    }
}

/// What comes.
pub(crate) struct Receive(pub(super) Rc<Shared>);

impl Receive {
    /// A response's head.
    pub(crate) fn poll_head(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<ResponseHeaders, Error>> {
        let mut state = self.0.state.borrow_mut();
        if let Some(head) = state.head.take() {
            return Poll::Ready(Ok(head));
        }
        if let Some(error) = state.error {
            return Poll::Ready(Err(error));
        }
        keep(&mut state.receiver, context);
        Poll::Pending
    }

    /// The next data, or trailers. What is taken makes room for more.
    pub(crate) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut state = self.0.state.borrow_mut();
        if let Some(data) = state.data.pop_front().map(Piece::into_bytes) {
            self.0
                .core
                .borrow_mut()
                .release_stream(&mut state, data.len());
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if state.is_receive_ended {
            return Poll::Ready(
                state
                    .trailers
                    .take()
                    .map(|trailers| Ok(Frame::trailers(trailers))),
            );
        }
        if let Some(error) = state.error {
            return Poll::Ready(Some(Err(error)));
        }
        keep(&mut state.receiver, context);
        Poll::Pending
    }

    /// Who holds what has come.
    pub(crate) fn holder(&self) -> Weak<dyn Holder> {
        let holder: Rc<dyn Holder> = self.0.clone();
        Rc::downgrade(&holder)
    }

    /// Nothing is to come.
    pub(crate) fn is_end_stream(&self) -> bool {
        let state = self.0.state.borrow();
        state.is_receive_ended && state.data.is_empty() && state.trailers.is_none()
    }
}

impl Drop for Receive {
    fn drop(&mut self) {
        self.0.let_go(Half::Receive);
    }
}

/// What goes out.
pub(crate) struct Send(pub(super) Rc<Shared>);

impl Send {
    /// Sends a response's head.
    pub(crate) fn send_head(&mut self, head: &ResponseHeaders, is_last: bool) -> Result<(), Error> {
        self.block(is_last, |encoder, out| {
            encoder.status(head.status, out);
            head::put_fields(&head.map, encoder, out) + ":status200".len() as u64
        })
    }

    /// Sends trailers, which are the last.
    pub(crate) fn send_trailers(&mut self, trailers: &HeaderMap) -> Result<(), Error> {
        self.block(true, |encoder, out| {
            head::put_fields(trailers, encoder, out)
        })
    }

    fn block(
        &mut self,
        is_last: bool,
        write: impl FnOnce(&mut super::hpack::Encoder, &mut Vec<u8>) -> u64,
    ) -> Result<(), Error> {
        let (mut state, mut core) = (self.0.state.borrow_mut(), self.0.core.borrow_mut());
        state.check_sendable()?;
        let sent = core.put_block(state.id, is_last, write);
        state.bytes.sent.add(sent);
        state.is_send_ended = is_last;
        self.0.ended(&mut core, &state);
        Ok(())
    }

    /// Ready when there is room for data: for how much.
    pub(crate) fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<Result<usize, Error>> {
        let (mut state, mut core) = (self.0.state.borrow_mut(), self.0.core.borrow_mut());
        if let Some(error) = state.error {
            return Poll::Ready(Err(error));
        }
        match core.room(&state) {
            0 => {
                keep(&mut state.sender, context);
                core.wait_for_room(&self.0, &mut state);
                Poll::Pending
            }
            room => Poll::Ready(Ok(room)),
        }
    }

    /// Sends data, no more than there is room for.
    pub(crate) fn send_data(&mut self, data: &[u8], is_last: bool) -> Result<(), Error> {
        self.put_data(data, None, is_last)
    }

    /// The same with data that need not be copied.
    pub(crate) fn send_piece(&mut self, data: &Bytes, is_last: bool) -> Result<(), Error> {
        self.put_data(data, Some(data), is_last)
    }

    fn put_data(
        &mut self,
        data: &[u8],
        memory: Option<&Bytes>,
        is_last: bool,
    ) -> Result<(), Error> {
        let (mut state, mut core) = (self.0.state.borrow_mut(), self.0.core.borrow_mut());
        state.check_sendable()?;
        core.put_data(&mut state, data, memory, is_last);
        state.is_send_ended = is_last;
        self.0.ended(&mut core, &state);
        Ok(())
    }

    /// Breaks the stream off.
    pub(crate) fn reset(&mut self, reason: Reason) {
        self.0.reset(reason);
    }

    /// Breaks the stream off, whose data nobody has taken in time; `is_last` when that is the rest of it.
    pub(crate) fn time_out(&mut self, is_last: bool) {
        if is_last {
            self.0.core.borrow().stats.tx_flush_timeout.inc();
        }
        self.reset(Reason::INTERNAL_ERROR);
    }

    /// What counts the stream's bytes.
    pub(crate) fn meter(&self) -> Rc<dyn ByteMeter> {
        self.0.clone()
    }

    /// The stream, for who looks at it from the side.
    pub(crate) fn whole(&self) -> Whole {
        Whole(self.0.clone())
    }

    /// Ready when the stream is over before its time.
    pub(crate) fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<Error> {
        let mut state = self.0.state.borrow_mut();
        match state.error {
            Some(error) => Poll::Ready(error),
            None => {
                keep(&mut state.sender, context);
                Poll::Pending
            }
        }
    }
}

impl Drop for Send {
    fn drop(&mut self) {
        self.0.let_go(Half::Send);
    }
}
