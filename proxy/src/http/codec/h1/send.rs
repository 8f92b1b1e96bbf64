//! A response's body on its way to the client.

use std::pin::Pin;
use std::task::{Context, Poll};

use http_body::Body as _;

use crate::http::h1::encode::{self, BodyFraming};
use crate::http::stream::ResponseBody;

use super::body::{Io, SharedIo};

/// No more than this waits to be written before more of a body is taken.
const HIGH_WATER: usize = 64 << 10;

/// Moves a response's body out; `false` when it broke off or the client went away.
pub(super) fn poll_send(
    shared: &SharedIo,
    body: &mut ResponseBody,
    framing: BodyFraming,
    is_ended: &mut bool,
    context: &mut Context<'_>,
) -> Poll<bool> {
    let has_trailers = shared.borrow().has_trailers;
    loop {
        let mut is_waiting = false;
        let mut is_broken = false;
        while !*is_ended && !is_broken && shared.borrow().output.len() < HIGH_WATER {
            // The body may read the request meanwhile, so nothing is borrowed here.
            match Pin::new(&mut *body).poll_frame(context) {
                Poll::Pending => {
                    is_waiting = true;
                    break;
                }
                Poll::Ready(Some(Ok(frame))) => {
                    let io = &mut *shared.borrow_mut();
                    let output = &mut io.output;
                    match frame.into_data() {
                        Ok(data) => match framing {
                            BodyFraming::Chunked => output.put_chunk(data),
                            BodyFraming::Plain => output.put_data(data),
                            BodyFraming::None => {}
                        },
                        Err(frame) => {
                            *is_ended = true;
                            let trailers = frame.into_trailers().ok().filter(|_| has_trailers);
                            end(io, framing, trailers.as_ref());
                            break;
                        }
                    }
                }
                Poll::Ready(None) => {}
                Poll::Ready(Some(Err(_))) => is_broken = true,
            }
            if !is_broken && body.is_end_stream() {
                *is_ended = true;
                end(&mut shared.borrow_mut(), framing, None);
            }
        }
        if *is_ended {
            body.taken();
        }
        shared.borrow_mut().note_output();
        let flushed = shared.borrow_mut().poll_flush(context);
        if flushed.is_pending() {
            let given_up = if *is_ended {
                body.poll_unread(context)
            } else {
                body.poll_stalled(context)
            };
            if given_up.is_ready() {
                return Poll::Ready(false);
            }
        }
        let mut io = shared.borrow_mut();
        match flushed {
            Poll::Ready(Ok(())) if is_broken => return Poll::Ready(false),
            Poll::Ready(Ok(())) if *is_ended => return Poll::Ready(true),
            Poll::Ready(Err(_)) => return Poll::Ready(false),
            Poll::Ready(Ok(())) if !is_waiting => {}
            Poll::Ready(Ok(())) | Poll::Pending => {
                return io.poll_closed(context).map(|()| false);
            }
        }
    }
}

fn end(io: &mut Io, framing: BodyFraming, trailers: Option<&http::HeaderMap>) {
    if framing == BodyFraming::Chunked {
        if let Some(trailers) = trailers {
            io.meter.wrote_fields(encode::trailer_bytes(trailers));
        }
        io.output.put(|flat| encode::end_chunks(trailers, flat));
    }
}
