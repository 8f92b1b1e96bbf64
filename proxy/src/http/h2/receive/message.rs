//! Heads and trailers, in HEADERS and what continues them: where streams begin and answers come.

use super::{
    super::{
        HeadLimits, Incoming, Options,
        core::Role,
        frame::{self, Head},
        head::{self, Refused},
        reason::Reason,
        stream::{Half, Shared, State},
    },
    Receiver,
};
use crate::gather;
use crate::stream_info::Traffic;
use http::{HeaderMap, StatusCode, header};

/// A block that goes on in the next frame.
pub(super) struct Partial {
    pub(super) stream: u32,
    block: Vec<u8>,
    is_last: bool,
    /// The bytes of its frames.
    wire: u64,
}

impl Receiver {
    pub(super) fn headers(
        &mut self,
        head: Head,
        payload: &[u8],
    ) -> Result<Option<Incoming>, Reason> {
        let (block, dependency) = head.block(payload).ok_or(Reason::PROTOCOL_ERROR)?;
        if head.stream == 0 || dependency == Some(head.stream) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let is_last = head.has(frame::END_STREAM);
        let wire = head.wire();
        if head.has(frame::END_HEADERS) {
            self.note_message(false)?;
            return self.block(head.stream, block, wire, is_last);
        }
        self.note_message(block.is_empty())?;
        self.partial = Some(Partial {
            stream: head.stream,
            block: block.to_vec(),
            is_last,
            wire,
        });
        Ok(None)
    }

    fn note_message(&self, is_empty: bool) -> Result<(), Reason> {
        self.core.borrow_mut().note_message(is_empty)
    }

    pub(super) fn continuation(
        &mut self,
        head: Head,
        payload: &[u8],
    ) -> Result<Option<Incoming>, Reason> {
        let is_whole = head.has(frame::END_HEADERS);
        self.note_message(payload.is_empty() && !is_whole)?;
        let partial = self.partial.as_mut().ok_or(Reason::PROTOCOL_ERROR)?;
        partial.block.extend_from_slice(payload);
        // QUIRK: as in Envoy the heads of these frames do not count.
        partial.wire += head.length as u64;
        // More than a head may be even if nothing of it were compressed: then it need not be read to be refused.
        let most = 2 * self.core.borrow().options.head.bytes.max(frame::MAX_LENGTH);
        if partial.block.len() > most {
            return Err(Reason::ENHANCE_YOUR_CALM);
        }
        match self.partial.take_if(|_| is_whole) {
            Some(Partial {
                stream,
                block,
                is_last,
                wire,
            }) => self.block(stream, &block, wire, is_last),
            None => Ok(None),
        }
    }

    /// A whole block of fields, in frames of so many bytes: a head or trailers.
    fn block(
        &mut self,
        id: u32,
        block: &[u8],
        wire: u64,
        is_last: bool,
    ) -> Result<Option<Incoming>, Reason> {
        let Options {
            head: limits,
            is_tolerant,
            ..
        } = self.core.borrow().options;
        if let Some(stream) = self.stream(id) {
            let has_head = {
                let mut state = stream.state.borrow_mut();
                state.bytes.received.wire += wire;
                state.bytes.received.heads += wire;
                state.has_head
            };
            let refused = if has_head {
                self.count_trailers();
                self.trailers(&stream, block, is_last, limits)?
            } else {
                gather::count_head();
                self.response(&stream, block, is_last, limits)?
            };
            return match refused {
                Ok(()) => Ok(None),
                Err(reason) => {
                    self.count_refused(reason);
                    if reason == Reason::PROTOCOL_ERROR && !is_tolerant {
                        return Err(reason);
                    }
                    self.refuse(id, reason);
                    Ok(None)
                }
            };
        }
        if self.core.borrow().role == Role::Server && self.is_idle(id) {
            gather::count_head();
            return self.request(id, block, wire, is_last);
        }
        // Of a stream that is over; the table is to be kept nevertheless.
        self.check_stream(id)?;
        self.decoder.decode(block, |_, _, _| {})?;
        if self.left_out.contains(&id) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        self.refuse(id, Reason::STREAM_CLOSED);
        Ok(None)
    }

    /// QUIRK: as in Envoy only a server counts them.
    fn count_trailers(&self) {
        let core = self.core.borrow();
        if core.role == Role::Server {
            core.stats.trailers.inc();
        }
    }

    /// What a stream is refused with; of heads that are too large, which are counted, as Envoy says it.
    fn reason_of(&self, refused: Refused) -> Reason {
        let stats = &self.core.borrow().stats;
        match refused {
            Refused::Malformed => return Reason::PROTOCOL_ERROR,
            Refused::TooLarge => stats.header_list_size_too_large.inc(),
            Refused::TooMany => stats.header_overflow.inc(),
        }
        Reason::INTERNAL_ERROR
    }

    /// Counts why a message is refused.
    fn count_refused(&self, reason: Reason) {
        let stats = &self.core.borrow().stats;
        match reason {
            Reason::PROTOCOL_ERROR => stats.rx_messaging_error.inc(),
            Reason::REFUSED_STREAM => stats.stream_refused_errors.inc(),
            _ => {}
        }
    }

    fn request(
        &mut self,
        id: u32,
        block: &[u8],
        wire: u64,
        is_last: bool,
    ) -> Result<Option<Incoming>, Reason> {
        if id.is_multiple_of(2) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let (options, going) = {
            let mut core = self.core.borrow_mut();
            if id > core.newest + 2 {
                self.left_out = core.newest + 1..id;
            }
            if !core.going.is_last_told {
                core.newest = id;
            }
            core.flood.opened += 1;
            (core.options, core.going)
        };
        let head = head::request(
            &mut self.decoder,
            block,
            options.head,
            self.is_tls,
            options.allows_connect_protocol,
        )?;
        if going.is_last_told {
            // The client was told that nobody looks at it.
            return Ok(None);
        }
        let checked = head
            .map_err(|refused| self.reason_of(refused))
            .and_then(|(head, plain)| {
                let promised = promised(&head.map, is_last)?;
                let is_full =
                    self.core.borrow().streams.len() >= options.max_concurrent_streams as usize;
                if is_full {
                    Err(Reason::REFUSED_STREAM)
                } else {
                    Ok((head, plain, promised))
                }
            });
        let (head, plain, promised) = match checked {
            Ok(checked) => checked,
            Err(reason) => {
                self.count_refused(reason);
                if reason == Reason::PROTOCOL_ERROR && !options.is_tolerant {
                    return Err(reason);
                }
                self.refuse(id, reason);
                return Ok(None);
            }
        };
        let mut core = self.core.borrow_mut();
        let mut state = State {
            has_head: true,
            promised,
            is_receive_ended: is_last,
            ..State::new(id, core.peer.stream_window, options.stream_window)
        };
        state.bytes.received = Traffic {
            wire,
            heads: wire,
            plain,
        };
        let stream = Shared::new(&self.core, state);
        core.add(id, stream.clone());
        let (receive, send) = stream.halves();
        Ok(Some(Incoming {
            head,
            receive,
            send,
        }))
    }

    fn response(
        &mut self,
        stream: &Shared,
        block: &[u8],
        is_last: bool,
        limits: HeadLimits,
    ) -> Result<Result<(), Reason>, Reason> {
        let (head, plain) = match head::response(&mut self.decoder, block, limits)? {
            Ok(read) => read,
            Err(refused) => return Ok(Err(self.reason_of(refused))),
        };
        stream.state.borrow_mut().bytes.received.plain += plain;
        if head.status.is_informational() {
            // Nobody waits for it, and what follows is the answer.
            return Ok(
                if is_last || head.status == StatusCode::SWITCHING_PROTOCOLS {
                    Err(Reason::PROTOCOL_ERROR)
                } else {
                    Ok(())
                },
            );
        }
        let mut state = stream.state.borrow_mut();
        let has_no_data = state.is_head
            || matches!(
                head.status,
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            );
        match promised(&head.map, is_last && !has_no_data) {
            Ok(promised) => state.promised = promised.filter(|_| !has_no_data),
            Err(reason) => return Ok(Err(reason)),
        }
        state.head = Some(head);
        state.has_head = true;
        state.is_receive_ended = is_last;
        state.wake(Half::Receive);
        stream.ended(&mut self.core.borrow_mut(), &state);
        Ok(Ok(()))
    }

    fn trailers(
        &mut self,
        stream: &Shared,
        block: &[u8],
        is_last: bool,
        limits: HeadLimits,
    ) -> Result<Result<(), Reason>, Reason> {
        let trailers = head::trailers(&mut self.decoder, block, limits)?;
        let mut state = stream.state.borrow_mut();
        if state.is_receive_ended {
            return Ok(Err(Reason::STREAM_CLOSED));
        }
        let is_short = state.promised.is_some_and(|left| left > 0);
        let trailers = match trailers {
            Ok((trailers, plain)) if is_last && !is_short => {
                state.bytes.received.plain += plain;
                trailers
            }
            Ok(_) => return Ok(Err(Reason::PROTOCOL_ERROR)),
            Err(refused) => return Ok(Err(self.reason_of(refused))),
        };
        state.trailers = (!trailers.is_empty()).then_some(trailers);
        state.is_receive_ended = true;
        state.wake(Half::Receive);
        stream.ended(&mut self.core.borrow_mut(), &state);
        Ok(Ok(()))
    }
}

/// How much data `content-length` promises; an error when that is no length, or nothing follows.
fn promised(map: &HeaderMap, is_last: bool) -> Result<Option<u64>, Reason> {
    let mut lengths = map.get_all(header::CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else {
        return Ok(None);
    };
    let digits = length
        .to_str()
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let promised: u64 = digits
        .and_then(|text| text.parse().ok())
        .ok_or(Reason::PROTOCOL_ERROR)?;
    if lengths.any(|other| other != length) || is_last && promised > 0 {
        return Err(Reason::PROTOCOL_ERROR);
    }
    Ok(Some(promised))
}
