//! What a connection's streams share: what goes out, the windows, and who waits for them.

use super::{
    flood::{Flood, FloodLimits},
    frame::{self, Head},
    hpack::Encoder,
    output::Output,
    reason::{Error, Reason},
    stream::{Half, Shared, State},
};
use crate::{http::Http2Stats, stream_info::Traffic};
use bytes::Bytes;
use std::{
    collections::{HashMap, VecDeque},
    rc::Rc,
    sync::Arc,
    task::Waker,
};
use tokio::sync::Notify;

/// While more than this waits to go out, no more data is taken.
const MOST_WAITING: usize = crate::transport::spare::SIZE;

/// Which end of the connection is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Server,
    Client,
}

/// What our end says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// How many streams the peer may have open.
    pub(crate) max_concurrent_streams: u32,
    /// How much the peer may send on a stream before we have taken it, in bytes.
    pub(crate) stream_window: u32,
    /// The same for all streams together.
    pub(crate) connection_window: u32,
    /// How long heads and trailers may be.
    pub(crate) head: super::HeadLimits,
    /// CONNECT may name a protocol (RFC 8441).
    pub(crate) allows_connect_protocol: bool,
    /// What is no HTTP ends its stream only, not the connection (`override_stream_error_on_invalid_http_message`).
    pub(crate) is_tolerant: bool,
    /// When a peer's frames are too many.
    pub(crate) flood: FloodLimits,
}

/// The shared state of a connection.
pub(super) struct Core {
    pub(super) role: Role,
    pub(super) options: Options,
    /// What waits to go out.
    pub(super) out: Output,
    pub(super) encoder: Encoder,
    pub(super) streams: HashMap<u32, Rc<Shared>, foldhash::fast::FixedState>,
    /// What the peer allows us to send, on all streams.
    pub(super) send_window: i64,
    /// What we allow the peer to send, and what has been taken of it since it was last told.
    pub(super) receive_window: i64,
    pub(super) released: u32,
    /// The peer's settings.
    pub(super) peer: PeerSettings,
    /// Streams that wait for room in `out` or in the connection's window, in the order of their waiting.
    blocked: VecDeque<Rc<Shared>>,
    /// Told of each stream that may be opened again.
    pub(super) openers: Rc<Notify>,
    /// Of a client: the next stream. Of a server: the newest one of its client.
    pub(super) newest: u32,
    /// How many hold a client's connection to open streams with.
    pub(super) holders: usize,
    pub(super) going: Going,
    /// The connection is over.
    pub(super) ended: Option<Error>,
    pub(super) flood: Flood,
    /// Of our own ping that keeps the connection alive.
    pub(super) ping: Ping,
    pub(super) stats: Arc<Http2Stats>,
    /// The task that reads and writes.
    task: Option<Waker>,
    is_woken: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct PeerSettings {
    pub(super) max_streams: u32,
    pub(super) stream_window: i64,
    pub(super) max_length: usize,
    pub(super) allows_connect_protocol: bool,
}

/// How far the connection is on its way to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Going {
    /// The peer was told that there will be an end; streams that it has opened meanwhile are still served.
    pub(super) is_announced: bool,
    /// No newer stream of the peer's is served.
    pub(super) is_last_told: bool,
    /// The peer takes no more streams of ours, and why.
    pub(super) told: Option<Reason>,
}

#[derive(Debug, Default)]
pub(super) enum Ping {
    #[default]
    None,
    Sent(Option<Waker>),
    Answered,
}

/// What tells our pings apart: the one that keeps alive, and the one behind the announcement of the end.
pub(super) const KEEPALIVE: [u8; 8] = *b"bireme k";
pub(super) const SHUTDOWN: [u8; 8] = *b"bireme e";

impl Core {
    pub(super) fn new(
        role: Role,
        options: Options,
        stats: Arc<Http2Stats>,
        is_vectored: bool,
    ) -> Self {
        Self {
            role,
            options,
            out: Output::new(is_vectored),
            encoder: Encoder::new(),
            streams: HashMap::default(),
            send_window: i64::from(frame::INITIAL_WINDOW),
            receive_window: i64::from(options.connection_window.max(frame::INITIAL_WINDOW)),
            released: 0,
            peer: PeerSettings {
                max_streams: u32::MAX,
                stream_window: i64::from(frame::INITIAL_WINDOW),
                max_length: frame::MAX_LENGTH,
                allows_connect_protocol: false,
            },
            blocked: VecDeque::new(),
            openers: Rc::default(),
            newest: u32::from(role == Role::Client),
            holders: 0,
            going: Going::default(),
            ended: None,
            flood: Flood::default(),
            ping: Ping::None,
            stats,
            task: None,
            is_woken: false,
        }
    }

    /// Says what our end is like; the first that it says.
    pub(super) fn greet(&mut self) {
        let options = self.options;
        let mut settings = Vec::with_capacity(36);
        let mut put = |id: u16, value: u32| {
            settings.extend_from_slice(&id.to_be_bytes());
            settings.extend_from_slice(&value.to_be_bytes());
        };
        match self.role {
            Role::Client => put(frame::ENABLE_PUSH, 0),
            Role::Server => put(
                frame::MAX_CONCURRENT_STREAMS,
                options.max_concurrent_streams,
            ),
        }
        put(frame::INITIAL_WINDOW_SIZE, options.stream_window);
        put(
            frame::MAX_HEADER_LIST_SIZE,
            u32::try_from(options.head.bytes).unwrap_or(u32::MAX),
        );
        if self.role == Role::Server && options.allows_connect_protocol {
            put(frame::ENABLE_CONNECT_PROTOCOL, 1);
        }
        if self.role == Role::Client {
            self.out.frames().extend_from_slice(frame::PREFACE);
        }
        frame::put(frame::SETTINGS, 0, 0, &settings, self.out.frames());
        let more = options
            .connection_window
            .saturating_sub(frame::INITIAL_WINDOW);
        if more > 0 {
            frame::put_number(frame::WINDOW_UPDATE, 0, more, self.out.frames());
        }
    }

    /// The task that reads and writes has its turn, and need not be woken for what it does itself.
    pub(super) fn begin_turn(&mut self, waker: &Waker) {
        self.is_woken = true;
        match &mut self.task {
            Some(task) => task.clone_from(waker),
            None => self.task = Some(waker.clone()),
        }
    }

    /// Its turn is over: it has written what there was.
    pub(super) fn end_turn(&mut self) {
        self.is_woken = false;
    }

    /// There is something to write, or to end.
    pub(super) fn wake(&mut self) {
        if !std::mem::replace(&mut self.is_woken, true)
            && let Some(task) = &self.task
        {
            task.wake_by_ref();
        }
    }

    /// A frame about the connection, an answer to the peer or a stream's end: such that only so many may wait.
    pub(super) fn put_control(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.flood.answers += 1;
        frame::put(kind, flags, stream, payload, self.out.frames());
        self.wake();
    }

    /// How much of a stream's data can go out now.
    pub(super) fn room(&self, state: &State) -> usize {
        let waiting = MOST_WAITING.saturating_sub(self.out.len());
        let window = self.send_window.min(state.send_window).max(0);
        waiting.min(usize::try_from(window).unwrap_or(usize::MAX))
    }

    /// Wakes the stream when there may be room; not when only its own window is in the way.
    pub(super) fn wait_for_room(&mut self, stream: &Rc<Shared>, state: &mut State) {
        if state.send_window > 0 && !std::mem::replace(&mut state.is_blocked, true) {
            self.blocked.push_back(stream.clone());
        }
    }

    /// There may be room again.
    pub(super) fn wake_blocked(&mut self) {
        if self.send_window <= 0 || self.out.len() >= MOST_WAITING {
            return;
        }
        for stream in self.blocked.drain(..) {
            let mut state = stream.state.borrow_mut();
            state.is_blocked = false;
            state.wake(Half::Send);
        }
    }

    /// Puts data into frames; it must fit into the windows. If it is a part of `memory`, it need not be copied.
    pub(super) fn put_data(
        &mut self,
        state: &mut State,
        data: &[u8],
        memory: Option<&Bytes>,
        is_last: bool,
    ) {
        let mut pieces = data.chunks(self.peer.max_length).peekable();
        let mut put = |piece: &[u8], is_last: bool| {
            let head = Head {
                length: piece.len(),
                kind: frame::DATA,
                flags: if is_last { frame::END_STREAM } else { 0 },
                stream: state.id,
            };
            head.put(self.out.frames());
            state.bytes.sent.wire += (frame::HEAD + piece.len()) as u64;
            self.out.put_data(piece, memory);
            self.flood.data_sent += 1;
        };
        while let Some(piece) = pieces.next() {
            put(piece, is_last && pieces.peek().is_none());
        }
        if data.is_empty() && is_last {
            put(&[], true);
        }
        let length = i64::try_from(data.len()).unwrap_or(i64::MAX);
        self.send_window -= length;
        state.send_window -= length;
        self.wake();
    }

    /// Puts a block of fields, which `write` writes, into as many frames as it takes. What that comes to; `write` says how much
    /// the fields were.
    pub(super) fn put_block(
        &mut self,
        stream: u32,
        is_last: bool,
        write: impl FnOnce(&mut Encoder, &mut Vec<u8>) -> u64,
    ) -> Traffic {
        let out = self.out.frames();
        let start = out.len();
        let flags = frame::END_HEADERS | if is_last { frame::END_STREAM } else { 0 };
        let head = |kind, length, flags| Head {
            length,
            kind,
            flags,
            stream,
        };
        head(frame::HEADERS, 0, flags).put(out);
        self.encoder.begin(out);
        let plain = write(&mut self.encoder, out);
        let length = out.len() - start - frame::HEAD;
        if length <= self.peer.max_length {
            let [_, bytes @ ..] = frame::length_bytes(length);
            out[start..start + 3].copy_from_slice(&bytes);
        } else {
            let block = out.split_off(start + frame::HEAD);
            out.truncate(start);
            let (mut kind, mut first_flags) = (frame::HEADERS, flags & !frame::END_HEADERS);
            let mut pieces = block.chunks(self.peer.max_length).peekable();
            while let Some(piece) = pieces.next() {
                let end = if pieces.peek().is_none() {
                    frame::END_HEADERS
                } else {
                    0
                };
                head(kind, piece.len(), first_flags | end).put(out);
                out.extend_from_slice(piece);
                (kind, first_flags) = (frame::CONTINUATION, 0);
            }
        }
        let wire = (out.len() - start) as u64;
        self.wake();
        Traffic {
            wire,
            heads: wire,
            plain,
        }
    }

    /// How much has come that nobody has taken.
    pub(super) fn queued(&self) -> i64 {
        let window = self.options.connection_window.max(frame::INITIAL_WINDOW);
        i64::from(window) - self.receive_window - i64::from(self.released)
    }

    /// `count` bytes of the connection's window have been taken.
    pub(super) fn release(&mut self, count: usize) {
        self.released += u32::try_from(count).unwrap_or(u32::MAX);
        if self.released >= self.options.connection_window.max(frame::INITIAL_WINDOW) / 2 {
            let released = std::mem::take(&mut self.released);
            self.receive_window += i64::from(released);
            frame::put_number(frame::WINDOW_UPDATE, 0, released, self.out.frames());
            self.wake();
        }
    }

    /// `count` bytes of a stream have been taken.
    pub(super) fn release_stream(&mut self, state: &mut State, count: usize) {
        self.release(count);
        state.released += u32::try_from(count).unwrap_or(u32::MAX);
        if state.released >= self.options.stream_window.div_ceil(2)
            && !state.is_receive_ended
            && state.error.is_none()
        {
            let released = std::mem::take(&mut state.released);
            state.receive_window += i64::from(released);
            frame::put_number(frame::WINDOW_UPDATE, state.id, released, self.out.frames());
            state.bytes.sent.wire += frame::RESET;
            self.wake();
        }
    }

    /// Resets a stream.
    pub(super) fn reset(&mut self, stream: u32, reason: Reason) {
        self.stats.tx_reset.inc();
        self.put_control(frame::RST_STREAM, 0, stream, &reason.0.to_be_bytes());
    }

    /// A frame of a stream's message came: whether it brought nothing at all.
    pub(super) fn note_message(&mut self, is_empty: bool) -> Result<(), Reason> {
        self.flood
            .message(is_empty, &self.options.flood)
            .inspect_err(|_| self.stats.inbound_empty_frames_flood.inc())
    }

    /// A stream begins.
    pub(super) fn add(&mut self, id: u32, stream: Rc<Shared>) {
        self.stats.streams_active.inc();
        self.streams.insert(id, stream);
    }

    /// Takes a stream out that is over.
    pub(super) fn remove(&mut self, id: u32) -> Option<Rc<Shared>> {
        let removed = self.streams.remove(&id);
        if removed.is_some() {
            self.stats.streams_active.dec();
        }
        removed
    }

    /// Forgets a stream that is over.
    pub(super) fn forget(&mut self, stream: u32) {
        if self.remove(stream).is_some() {
            self.openers.notify_one();
            if self.streams.is_empty() {
                // The connection may have waited for that.
                self.wake();
            }
        }
    }

    /// Says that there will be an end. What the peer has opened before it hears of that is served: the ping's answer shows when.
    pub(super) fn announce_end(&mut self) {
        if !std::mem::replace(&mut self.going.is_announced, true) {
            self.put_going_away(u32::MAX >> 1, Reason::NO_ERROR);
            self.put_control(frame::PING, 0, 0, &SHUTDOWN);
        }
    }

    /// Takes no more streams of the peer's.
    pub(super) fn tell_last(&mut self, reason: Reason) {
        if !std::mem::replace(&mut self.going.is_last_told, true) {
            if self.going.is_announced {
                self.stats.goaway_sent.inc();
            }
            let newest = if self.role == Role::Server {
                self.newest
            } else {
                0
            };
            self.put_going_away(newest, reason);
        }
    }

    fn put_going_away(&mut self, newest: u32, reason: Reason) {
        let [a, b, c, d] = newest.to_be_bytes();
        let [e, f, g, h] = reason.0.to_be_bytes();
        self.put_control(frame::GOAWAY, 0, 0, &[a, b, c, d, e, f, g, h]);
    }

    /// Says that it ends now, unless that is said.
    pub(super) fn say_goodbye(&mut self) {
        if self.ended.is_none() {
            self.tell_last(Reason::NO_ERROR);
            self.end(Error::Closed);
        }
    }

    /// Ends all streams.
    pub(super) fn end(&mut self, error: Error) {
        self.ended.get_or_insert(error);
        self.stats.streams_active.sub(self.streams.len() as u64);
        for (_, stream) in self.streams.drain() {
            stream.state.borrow_mut().fail(error);
        }
        self.blocked.clear();
        self.openers.notify_waiters();
        if let Ping::Sent(Some(waker)) = std::mem::take(&mut self.ping) {
            waker.wake();
        }
        self.wake();
    }

    /// Nothing is to come any more.
    pub(super) fn is_finished(&self) -> bool {
        let is_leaving = match self.role {
            Role::Server => self.going.is_last_told || self.going.told.is_some(),
            Role::Client => self.holders == 0 || self.going.told.is_some(),
        };
        self.ended.is_some() || is_leaving && self.streams.is_empty()
    }
}
