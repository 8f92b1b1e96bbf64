//! What frames of the peer's do (RFC 9113, 5 and 6).

mod message;

use super::{
    Incoming,
    core::{Core, KEEPALIVE, Ping, Role, SHUTDOWN},
    frame::{self, Head},
    hpack::{Broken, Decoder},
    input::Payload,
    reason::{Error, Reason},
    stream::{Half, Piece, Shared, State},
};
use bytes::{Bytes, BytesMut};
use std::{cell::RefCell, collections::VecDeque, ops::Range, rc::Rc};

use message::Partial;

/// How much memory small pieces of data share.
const SHARED: usize = 4 << 10;

/// Data from this length on is not copied.
const LARGE: usize = 8 << 10;
/// Unless more than this waits to be taken: each piece may keep eight times as much in memory.
const MOST_SHARED: i64 = 256 << 10;

/// Frames that are read, one after the other.
pub(super) struct Receiver {
    core: Rc<RefCell<Core>>,
    decoder: Decoder,
    /// A block that goes on in the next frame.
    partial: Option<Partial>,
    /// The client's connection is encrypted.
    is_tls: bool,
    has_settings: bool,
    /// The last streams that the peer left out, which it may not open any more.
    left_out: Range<u32>,
}

impl From<Broken> for Reason {
    fn from(_: Broken) -> Self {
        Reason::COMPRESSION_ERROR
    }
}

impl Receiver {
    pub(super) fn new(core: Rc<RefCell<Core>>, is_tls: bool) -> Self {
        Self {
            core,
            decoder: Decoder::new(),
            partial: None,
            is_tls,
            has_settings: false,
            left_out: 0..0,
        }
    }

    /// Whether the frame's payload is better kept than copied: it is large, and so little waits to be taken that what is kept
    /// with it does not matter.
    pub(super) fn may_share(&self, head: Head) -> bool {
        head.kind == frame::DATA
            && head.length >= LARGE
            && self.core.borrow().queued() < MOST_SHARED
    }

    /// A whole frame: perhaps a stream begins with it. An error is the connection's.
    pub(super) fn frame(
        &mut self,
        head: Head,
        payload: Payload<'_>,
    ) -> Result<Option<Incoming>, Reason> {
        let Payload {
            bytes: payload,
            memory,
        } = payload;
        let goes_on =
            |partial: &Partial| head.kind == frame::CONTINUATION && head.stream == partial.stream;
        if self
            .partial
            .as_ref()
            .is_some_and(|partial| !goes_on(partial))
            || !self.has_settings && (head.kind != frame::SETTINGS || head.has(frame::ACK))
        {
            return Err(Reason::PROTOCOL_ERROR);
        }
        match head.kind {
            frame::DATA => self.data(head, payload, memory)?,
            frame::HEADERS => return self.headers(head, payload),
            frame::CONTINUATION => return self.continuation(head, payload),
            frame::PRIORITY => self.priority(head, payload)?,
            frame::RST_STREAM => self.reset(head, payload)?,
            frame::SETTINGS => self.settings(head, payload)?,
            frame::PUSH_PROMISE => return Err(Reason::PROTOCOL_ERROR),
            frame::PING => self.ping(head, payload)?,
            frame::GOAWAY => self.going_away(head, payload)?,
            frame::WINDOW_UPDATE => self.window_update(head, payload)?,
            // What is not known is to be left alone.
            _ => {}
        }
        let core = self.core.borrow();
        core.flood
            .answers(&core.options.flood)
            .inspect_err(|_| core.stats.outbound_control_flood.inc())?;
        Ok(None)
    }

    fn stream(&self, id: u32) -> Option<Rc<Shared>> {
        self.core.borrow().streams.get(&id).cloned()
    }

    /// Whether neither end has opened a stream yet.
    fn is_idle(&self, id: u32) -> bool {
        let core = self.core.borrow();
        match core.role {
            Role::Server => id.is_multiple_of(2) || id > core.newest,
            Role::Client => id.is_multiple_of(2) || id >= core.newest,
        }
    }

    /// A frame of a stream, which must have been opened.
    fn check_stream(&self, id: u32) -> Result<(), Reason> {
        if id == 0 || self.is_idle(id) {
            Err(Reason::PROTOCOL_ERROR)
        } else {
            Ok(())
        }
    }

    /// The peer breaks the rules in one stream, which ends.
    fn refuse(&self, id: u32, reason: Reason) {
        let stream = self.stream(id);
        let mut core = self.core.borrow_mut();
        core.reset(id, reason);
        core.forget(id);
        drop(core);
        if let Some(stream) = stream {
            let mut state = stream.state.borrow_mut();
            state.bytes.sent.wire += frame::RESET;
            state.fail(Error::Protocol(reason));
        }
    }

    fn data(&mut self, head: Head, payload: &[u8], memory: Option<&Bytes>) -> Result<(), Reason> {
        self.check_stream(head.stream)?;
        let data = head.unpadded(payload).ok_or(Reason::PROTOCOL_ERROR)?;
        let is_last = head.has(frame::END_STREAM);
        {
            let mut core = self.core.borrow_mut();
            core.note_message(data.is_empty() && !is_last)?;
            core.receive_window -= length(payload);
            if core.receive_window < 0 {
                return Err(Reason::FLOW_CONTROL_ERROR);
            }
        }
        let refused = match self.stream(head.stream) {
            Some(stream) => {
                let padding = payload.len() - data.len();
                self.take_data(
                    &stream,
                    Payload {
                        bytes: data,
                        memory,
                    },
                    padding,
                    is_last,
                )
            }
            None => Err(Reason::STREAM_CLOSED),
        };
        if let Err(reason) = refused {
            self.core.borrow_mut().release(payload.len());
            self.refuse(head.stream, reason);
        }
        Ok(())
    }

    fn take_data(
        &self,
        stream: &Shared,
        Payload {
            bytes: data,
            memory,
        }: Payload<'_>,
        padding: usize,
        is_last: bool,
    ) -> Result<(), Reason> {
        let mut state = stream.state.borrow_mut();
        let mut core = self.core.borrow_mut();
        if state.is_receive_ended {
            return Err(Reason::STREAM_CLOSED);
        }
        if core.role == Role::Client && !state.has_head {
            return Err(Reason::PROTOCOL_ERROR);
        }
        state.bytes.received.wire += (frame::HEAD + data.len() + padding) as u64;
        state.receive_window -= length(data) + i64::try_from(padding).unwrap_or(i64::MAX);
        if state.receive_window < 0 {
            return Err(Reason::FLOW_CONTROL_ERROR);
        }
        if let Some(promised) = &mut state.promised {
            let left = promised.checked_sub(data.len() as u64);
            *promised = left
                .filter(|left| *left == 0 || !is_last)
                .ok_or(Reason::PROTOCOL_ERROR)?;
        }
        if state.is_unwanted {
            core.release_stream(&mut state, data.len() + padding);
        } else {
            if padding > 0 {
                core.release_stream(&mut state, padding);
            }
            if !data.is_empty() {
                state.push(data, memory);
            }
        }
        state.is_receive_ended = is_last;
        state.wake(Half::Receive);
        stream.ended(&mut core, &state);
        Ok(())
    }

    fn priority(&mut self, head: Head, payload: &[u8]) -> Result<(), Reason> {
        if payload.len() != 5 {
            return Err(Reason::FRAME_SIZE_ERROR);
        }
        if head.stream == 0 || frame::number(payload) == Some(head.stream) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let mut core = self.core.borrow_mut();
        let limits = core.options.flood;
        let noted = core.flood.priority(&limits);
        noted.inspect_err(|_| core.stats.inbound_priority_frames_flood.inc())
    }

    fn reset(&mut self, head: Head, payload: &[u8]) -> Result<(), Reason> {
        let reason = u32_of(payload)?;
        self.check_stream(head.stream)?;
        if let Some(stream) = self.stream(head.stream) {
            let mut core = self.core.borrow_mut();
            core.stats.rx_reset.inc();
            core.forget(head.stream);
            drop(core);
            let mut state = stream.state.borrow_mut();
            state.bytes.received.wire += frame::RESET;
            state.fail(Error::Reset(Reason(reason)));
        }
        Ok(())
    }

    fn settings(&mut self, head: Head, payload: &[u8]) -> Result<(), Reason> {
        if head.stream != 0 {
            return Err(Reason::PROTOCOL_ERROR);
        }
        if !payload.len().is_multiple_of(6) || head.has(frame::ACK) && !payload.is_empty() {
            return Err(Reason::FRAME_SIZE_ERROR);
        }
        if head.has(frame::ACK) {
            return Ok(());
        }
        self.has_settings = true;
        let window = self.core.borrow().peer.stream_window;
        for setting in payload.as_chunks::<6>().0 {
            let [a, b, value @ ..] = *setting;
            self.setting(u16::from_be_bytes([a, b]), u32::from_be_bytes(value))?;
        }
        self.widen_all(window)?;
        let mut core = self.core.borrow_mut();
        core.put_control(frame::SETTINGS, frame::ACK, 0, &[]);
        core.openers.notify_waiters();
        Ok(())
    }

    /// The window of all streams has changed; once for a frame, however often it says so.
    fn widen_all(&self, before: i64) -> Result<(), Reason> {
        let core = self.core.borrow();
        let more = core.peer.stream_window - before;
        let mut streams = core.streams.values().filter(|_| more != 0);
        streams.try_for_each(|stream| stream.state.borrow_mut().widen(more))
    }

    fn setting(&mut self, id: u16, value: u32) -> Result<(), Reason> {
        let mut core = self.core.borrow_mut();
        match id {
            frame::HEADER_TABLE_SIZE => core.encoder.resize(value as usize),
            frame::ENABLE_PUSH if value > 1 || value == 1 && core.role == Role::Client => {
                return Err(Reason::PROTOCOL_ERROR);
            }
            frame::MAX_CONCURRENT_STREAMS => core.peer.max_streams = value,
            frame::INITIAL_WINDOW_SIZE => {
                let window = i64::from(value);
                if window > frame::MAX_WINDOW {
                    return Err(Reason::FLOW_CONTROL_ERROR);
                }
                core.peer.stream_window = window;
            }
            frame::MAX_FRAME_SIZE => {
                let length = value as usize;
                if !(frame::MAX_LENGTH..1 << 24).contains(&length) {
                    return Err(Reason::PROTOCOL_ERROR);
                }
            }
            frame::ENABLE_CONNECT_PROTOCOL if value > 1 => return Err(Reason::PROTOCOL_ERROR),
            frame::ENABLE_CONNECT_PROTOCOL => core.peer.allows_connect_protocol = value == 1,
            _ => {}
        }
        Ok(())
    }

    fn ping(&mut self, head: Head, payload: &[u8]) -> Result<(), Reason> {
        if head.stream != 0 {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let payload: &[u8; 8] = payload.try_into().map_err(|_| Reason::FRAME_SIZE_ERROR)?;
        let mut core = self.core.borrow_mut();
        if !head.has(frame::ACK) {
            core.put_control(frame::PING, frame::ACK, 0, payload);
        } else if *payload == SHUTDOWN && core.going.is_announced {
            core.tell_last(Reason::NO_ERROR);
        } else if *payload == KEEPALIVE
            && let Ping::Sent(waker) = std::mem::replace(&mut core.ping, Ping::Answered)
            && let Some(waker) = waker
        {
            waker.wake();
        }
        Ok(())
    }

    fn going_away(&mut self, head: Head, payload: &[u8]) -> Result<(), Reason> {
        if head.stream != 0 {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let (newest, rest) = payload
            .split_at_checked(4)
            .ok_or(Reason::FRAME_SIZE_ERROR)?;
        let reason = Reason(
            rest.first_chunk()
                .map(|bytes| u32::from_be_bytes(*bytes))
                .ok_or(Reason::FRAME_SIZE_ERROR)?,
        );
        let newest = frame::number(newest).unwrap_or(0);
        let mut core = self.core.borrow_mut();
        core.going.told = Some(reason);
        let unseen: VecDeque<u32> = match core.role {
            Role::Client => core
                .streams
                .keys()
                .copied()
                .filter(|id| *id > newest)
                .collect(),
            Role::Server => VecDeque::new(),
        };
        for id in unseen {
            if let Some(stream) = core.remove(id) {
                stream.state.borrow_mut().fail(Error::GoAway(reason));
            }
        }
        core.openers.notify_waiters();
        core.wake();
        Ok(())
    }

    fn window_update(&mut self, head: Head, payload: &[u8]) -> Result<(), Reason> {
        let more = i64::from(u32_of(payload)? & !(1 << 31));
        let mut core = self.core.borrow_mut();
        let limits = core.options.flood;
        let noted = core.flood.window_update(&limits);
        noted.inspect_err(|_| core.stats.inbound_window_update_frames_flood.inc())?;
        if head.stream == 0 {
            if more == 0 {
                return Err(Reason::PROTOCOL_ERROR);
            }
            core.send_window += more;
            if core.send_window > frame::MAX_WINDOW {
                return Err(Reason::FLOW_CONTROL_ERROR);
            }
            core.wake_blocked();
            return Ok(());
        }
        drop(core);
        self.check_stream(head.stream)?;
        let Some(stream) = self.stream(head.stream) else {
            return Ok(());
        };
        let refused = if more == 0 {
            Err(Reason::PROTOCOL_ERROR)
        } else {
            stream.state.borrow_mut().widen(more)
        };
        if let Err(reason) = refused {
            self.refuse(head.stream, reason);
        }
        Ok(())
    }
}

impl State {
    /// Data to be taken. Small pieces share memory when whoever takes them is behind.
    fn push(&mut self, data: &[u8], memory: Option<&Bytes>) {
        if let Some(memory) = memory {
            return self.data.push_back(Piece::Part(memory.slice_ref(data)));
        }
        if let Some(Piece::Own(last)) = self.data.back_mut()
            && last.capacity() - last.len() >= data.len()
        {
            return last.extend_from_slice(data);
        }
        let room = if self.data.is_empty() { 0 } else { SHARED };
        let mut piece = BytesMut::with_capacity(data.len().max(room));
        piece.extend_from_slice(data);
        self.data.push_back(Piece::Own(piece));
    }

    /// The peer's window for the stream changes.
    fn widen(&mut self, more: i64) -> Result<(), Reason> {
        self.send_window += more;
        if self.send_window > frame::MAX_WINDOW {
            return Err(Reason::FLOW_CONTROL_ERROR);
        }
        if self.send_window > 0 {
            self.wake(Half::Send);
        }
        Ok(())
    }
}

fn length(bytes: &[u8]) -> i64 {
    i64::try_from(bytes.len()).unwrap_or(i64::MAX)
}

fn u32_of(payload: &[u8]) -> Result<u32, Reason> {
    let bytes = payload.try_into().map_err(|_| Reason::FRAME_SIZE_ERROR)?;
    Ok(u32::from_be_bytes(bytes))
}
