//! A connection: it reads frames into what streams take, and writes what they have put.

use super::{
    Incoming, Options, Receive, Send,
    core::{Core, KEEPALIVE, Ping, Role},
    frame::{self, Head},
    head::put_fields,
    input::Input,
    reason::{Error, Reason},
    receive::Receiver,
    stream::{Shared, State},
};
use crate::{
    http::{Http2Stats, headers::RequestHeaders},
    transport::spare,
};
use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

/// After so much was read others have their turn.
const TURN: usize = 2 * spare::SIZE;

/// One end of a connection; it must be polled for anything to happen.
pub(crate) struct Connection<S> {
    stream: S,
    core: Rc<RefCell<Core>>,
    receiver: Receiver,
    input: Input,
    is_flushed: bool,
    read_in_turn: usize,
    has_read: bool,
    /// A client's preface is still to come.
    awaits_preface: bool,
    /// Nothing more is read.
    is_over: bool,
    /// What cannot be written at once is of no use any more.
    is_broken: bool,
}

/// What is told to a connection from outside.
pub(crate) struct Handle(Rc<RefCell<Core>>);

/// Opens streams of a client's connection, which ends when nobody holds one of these and no stream is left.
pub(crate) struct Requests(Rc<RefCell<Core>>);

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// The server's end, of which `ahead` was read before.
    pub(crate) fn server(
        stream: S,
        ahead: &[u8],
        options: Options,
        stats: Arc<Http2Stats>,
        is_tls: bool,
    ) -> Self {
        let mut connection = Self::new(stream, Role::Server, options, stats, is_tls);
        connection.input.buffer().extend_from_slice(ahead);
        connection.has_read = !ahead.is_empty();
        connection
    }

    /// The client's end.
    pub(crate) fn client(stream: S, options: Options, stats: Arc<Http2Stats>) -> (Self, Requests) {
        let connection = Self::new(stream, Role::Client, options, stats, false);
        let mut core = connection.core.borrow_mut();
        core.greet();
        core.holders = 1;
        drop(core);
        let requests = Requests(connection.core.clone());
        (connection, requests)
    }

    fn new(stream: S, role: Role, options: Options, stats: Arc<Http2Stats>, is_tls: bool) -> Self {
        let core = Rc::new(RefCell::new(Core::new(
            role,
            options,
            stats,
            stream.is_write_vectored(),
        )));
        Self {
            stream,
            receiver: Receiver::new(core.clone(), is_tls),
            core,
            input: Input::default(),
            is_flushed: true,
            read_in_turn: 0,
            has_read: false,
            awaits_preface: role == Role::Server,
            is_over: false,
            is_broken: false,
        }
    }

    pub(crate) fn handle(&self) -> Handle {
        Handle(self.core.clone())
    }

    /// Whether anything came since this was asked the last time.
    pub(crate) fn take_read(&mut self) -> bool {
        std::mem::take(&mut self.has_read)
    }

    /// Ready when the client has said what a client says first, or something else.
    pub(crate) fn poll_preface(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        while self.awaits_preface {
            let known = self.input.rest().len().min(frame::PREFACE.len());
            if self.input.rest()[..known] != frame::PREFACE[..known] {
                return Poll::Ready(Err(Error::Protocol(Reason::PROTOCOL_ERROR)));
            }
            if known == frame::PREFACE.len() {
                self.input.take(known);
                self.awaits_preface = false;
                self.core.borrow_mut().greet();
            } else if !ready!(self.poll_fill(context)).unwrap_or(false) {
                return Poll::Ready(Err(Error::Closed));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads and writes: ready when the peer has opened a stream, and at the end.
    pub(crate) fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Incoming, Error>>> {
        self.core.borrow_mut().begin_turn(context.waker());
        // One that was ended from outside looks at nothing more.
        let is_read = !self.is_over && self.core.borrow().ended.is_none();
        if is_read {
            match self.poll_read(context) {
                Poll::Ready(Ok(Some(incoming))) => return Poll::Ready(Some(Ok(incoming))),
                Poll::Ready(Ok(None)) => self.end(Error::Closed),
                Poll::Ready(Err(reason)) => {
                    self.core.borrow_mut().tell_last(reason);
                    self.end(Error::Protocol(reason));
                }
                Poll::Pending => {}
            }
        }
        self.read_in_turn = 0;
        if self.core.borrow().is_finished() {
            let mut core = self.core.borrow_mut();
            core.say_goodbye();
            self.is_over = true;
            // A server's last answers are waited for; of a client nobody waits for anything.
            self.is_broken |= core.role == Role::Client;
        }
        match self.poll_flush(context) {
            Poll::Ready(Err(_)) => self.end(Error::Closed),
            Poll::Ready(Ok(())) if self.is_over => {
                // What the other end makes of it changes nothing.
                let _ = ready!(Pin::new(&mut self.stream).poll_shutdown(context));
            }
            Poll::Pending if self.is_broken => {}
            Poll::Ready(Ok(())) | Poll::Pending => {
                let mut core = self.core.borrow_mut();
                core.wake_blocked();
                core.end_turn();
                return Poll::Pending;
            }
        }
        match self.core.borrow().ended {
            Some(error @ Error::Protocol(_)) => Poll::Ready(Some(Err(error))),
            _ => Poll::Ready(None),
        }
    }

    /// Reads past what the peer still sends; ready when it has ended its side, too.
    pub(crate) fn poll_past(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let rest = self.input.rest().len();
            self.input.take(rest);
            if !matches!(ready!(self.poll_fill(context)), Ok(true)) {
                return Poll::Ready(());
            }
        }
    }

    fn end(&mut self, error: Error) {
        self.is_over = true;
        self.is_broken = true;
        self.core.borrow_mut().end(error);
    }

    /// Takes frames as long as there are some: ready with a stream, with nothing at the end of the connection.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Incoming>, Reason>> {
        loop {
            while let Some(head) = Head::parse(self.input.rest()) {
                if head.length > frame::MAX_LENGTH {
                    return Poll::Ready(Err(Reason::FRAME_SIZE_ERROR));
                }
                let end = frame::HEAD + head.length;
                if self.input.rest().len() < end {
                    break;
                }
                let is_shared = self.receiver.may_share(head);
                let payload = self.input.payload(frame::HEAD, head.length, is_shared);
                let incoming = self.receiver.frame(head, payload);
                self.input.take(end);
                if let Some(incoming) = incoming? {
                    return Poll::Ready(Ok(Some(incoming)));
                }
            }
            if self.read_in_turn >= TURN {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            match ready!(self.poll_fill(context)) {
                Ok(true) => {}
                // What was wrong with a connection that broke is of no use to anybody.
                Ok(false) | Err(_) => return Poll::Ready(Ok(None)),
            }
        }
    }

    /// Reads more; `false` at the end.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let buffer = self.input.buffer();
        let read = poll_read_buf(Pin::new(&mut self.stream), context, buffer);
        self.input.give_if_empty();
        let count = ready!(read)?;
        self.read_in_turn += count;
        self.has_read |= count > 0;
        Poll::Ready(Ok(count > 0))
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut core = self.core.borrow_mut();
        if core.out.len() > 0 {
            self.is_flushed = false;
            ready!(core.out.poll_write(&mut self.stream, context))?;
        }
        core.flood.answers = 0;
        drop(core);
        if !self.is_flushed {
            ready!(Pin::new(&mut self.stream).poll_flush(context))?;
            self.is_flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Runs a client's connection to its end, pinging as asked: how often, and how long an answer may take.
    pub(crate) async fn run(
        mut self,
        keepalive: Option<(Duration, Duration)>,
    ) -> Result<(), Error> {
        let handle = self.handle();
        let ended = poll_fn(|context| self.poll(context));
        let ended = match keepalive {
            None => ended.await,
            Some((interval, patience)) => tokio::select! {
                ended = ended => ended,
                () = handle.keep_alive(interval, patience) => return Err(Error::Closed),
            },
        };
        ended.map_or(Ok(()), |ended| ended.map(drop))
    }
}

impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        self.core.borrow_mut().end(Error::Closed);
    }
}

impl Handle {
    /// Lets the peer open no more streams and ends with the last one.
    pub(crate) fn shut_down(&self) {
        self.0.borrow_mut().announce_end();
    }

    /// Ends all streams, and the connection as soon as that is said.
    pub(crate) fn close(&self) {
        let mut core = self.0.borrow_mut();
        core.tell_last(Reason::NO_ERROR);
        core.end(Error::Closed);
    }

    /// Pings the peer every so often; resolves when it has not answered in time.
    pub(crate) async fn keep_alive(&self, interval: Duration, patience: Duration) {
        loop {
            tokio::time::sleep(interval).await;
            {
                let mut core = self.0.borrow_mut();
                core.ping = Ping::Sent(None);
                core.put_control(frame::PING, 0, 0, &KEEPALIVE);
            }
            if tokio::time::timeout(patience, poll_fn(|context| self.poll_answer(context)))
                .await
                .is_err()
            {
                self.0.borrow().stats.keepalive_timeout.inc();
                return;
            }
        }
    }

    fn poll_answer(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut core = self.0.borrow_mut();
        match &mut core.ping {
            Ping::Sent(waker) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
            Ping::Answered => Poll::Ready(()),
            // The connection is over, and says why itself.
            Ping::None => Poll::Pending,
        }
    }
}

impl Requests {
    /// False when no more streams can be opened: the connection is over, or about to be.
    pub(crate) fn is_usable(&self) -> bool {
        let core = self.0.borrow();
        core.ended.is_none() && core.going.told.is_none() && core.newest < 1 << 31
    }

    /// Waits until the peer allows another stream.
    pub(crate) async fn ready(&self) -> Result<(), Error> {
        let openers = self.0.borrow().openers.clone();
        loop {
            let freed = openers.notified();
            {
                let core = self.0.borrow();
                if let Some(error) = core.ended {
                    return Err(error);
                }
                if core.going.told.is_some() || core.newest >= 1 << 31 {
                    return Err(Error::GoAway(core.going.told.unwrap_or(Reason::NO_ERROR)));
                }
                let (open, most) = (core.streams.len(), core.peer.max_streams as usize);
                if open < most {
                    if open + 1 < most {
                        // Others, who wait, may go on as well.
                        openers.notify_one();
                    }
                    return Ok(());
                }
            }
            freed.await;
        }
    }

    /// Opens a stream; `is_last` when nothing follows the head.
    pub(crate) fn send(
        &self,
        head: &RequestHeaders,
        is_last: bool,
    ) -> Result<(Receive, Send), Error> {
        let mut core = self.0.borrow_mut();
        if let Some(error) = core.ended {
            return Err(error);
        }
        let id = core.newest;
        core.newest += 2;
        let sent = core.put_block(id, is_last, |encoder, out| {
            let mut plain = ":method".len() + head.method.as_str().len();
            let is_connect = head.method == http::Method::CONNECT && head.upgrade.is_none();
            encoder.method(&head.method, out);
            if !is_connect {
                encoder.scheme(head.scheme == crate::http::headers::Scheme::Https, out);
                plain += ":scheme".len() + head.scheme.as_str().len();
                plain += ":path".len() + head.path.as_str().len();
                encoder.path(head.path.as_str(), out);
            }
            if !head.authority.is_empty() {
                encoder.authority(&head.authority, out);
                plain += ":authority".len() + head.authority.len();
            }
            if let Some(protocol) = &head.upgrade {
                encoder.protocol(protocol, out);
                plain += ":protocol".len() + protocol.len();
            }
            put_fields(&head.map, encoder, out) + plain as u64
        });
        let mut state = State {
            is_head: head.method == http::Method::HEAD,
            is_send_ended: is_last,
            ..State::new(id, core.peer.stream_window, core.options.stream_window)
        };
        state.bytes.sent = sent;
        let stream = Shared::new(&self.0, state);
        core.add(id, stream.clone());
        Ok(stream.halves())
    }
}

impl Clone for Requests {
    fn clone(&self) -> Self {
        self.0.borrow_mut().holders += 1;
        Self(self.0.clone())
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        let mut core = self.0.borrow_mut();
        core.holders -= 1;
        if core.holders == 0 {
            core.wake();
        }
    }
}
