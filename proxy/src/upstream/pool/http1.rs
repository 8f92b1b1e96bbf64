//! An HTTP/1.1 exchange on a pooled connection, driven in place by whoever waits for the response: no task of its own.

use super::{PoolError, PoolErrorKind, UpstreamBodyError};
use crate::{
    http::{
        body::Body,
        h1::{
            Decoded, Decoder, Framing, HeadLimits, Output, ResponseHead, decoder,
            encode::{self, BodyFraming, RequestFraming},
            head::parse_response,
        },
    },
    stream_info::PlainMeter,
    transport::{ReadAhead, UpstreamStream},
    upstream::{Http1Options, Load},
};
use ::http::{Method, StatusCode};
use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame};
use std::{
    future::Future as _,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};
use tokio::io::{AsyncRead as _, AsyncReadExt as _, ReadBuf};

/// The least and the most room for a read.
const READ: usize = 4 << 10;
const READ_MOST: usize = 64 << 10;
/// No more of a request than this waits to be written.
const HIGH_WATER: usize = 64 << 10;
/// Interim responses that an upstream may send before the real one.
const MAX_INTERIM: u32 = 16;

/// A connection between requests.
pub(super) struct Http1 {
    stream: UpstreamStream,
    input: BytesMut,
    meter: Rc<PlainMeter>,
}

/// A request's head, ready to be sent.
pub(crate) struct Http1Request {
    head: Vec<u8>,
    method: Method,
    framing: RequestFraming,
    meter: Rc<PlainMeter>,
}

/// A request on its way and its response.
pub(super) struct Exchange {
    connection: Box<Http1>,
    output: Output,
    method: Method,
    /// What is still to come of the request's body.
    body: Option<Body>,
    body_framing: BodyFraming,
    /// Writing failed: only what the upstream had said before still counts.
    is_broken: bool,
    decoder: Decoder,
    keeps_alive: bool,
    is_eof: bool,
    has_input: bool,
    interim: u32,
    has_trailers: bool,
    meter: Rc<PlainMeter>,
}

impl Http1Request {
    /// The head of a request for this connection.
    pub(super) fn new(
        headers: &crate::http::headers::RequestHeaders,
        connection: &mut Http1,
    ) -> Self {
        let mut head = Vec::new();
        encode::request(headers, &mut head);
        Http1Request {
            head,
            method: headers.method.clone(),
            framing: RequestFraming::of(headers),
            meter: connection.next_meter(),
        }
    }

    /// What counts its bytes, and those of its response.
    pub(super) fn meter(&self) -> Rc<PlainMeter> {
        self.meter.clone()
    }

    /// It asks for a tunnel.
    pub(super) fn is_connect(&self) -> bool {
        self.method == Method::CONNECT
    }
}

impl Http1 {
    pub(super) fn new(stream: UpstreamStream) -> Self {
        Http1 {
            stream,
            input: BytesMut::new(),
            meter: Rc::default(),
        }
    }

    /// What counts the next request's bytes: the one before's, if nobody looks at that any more.
    fn next_meter(&mut self) -> Rc<PlainMeter> {
        PlainMeter::renew(&mut self.meter);
        self.meter.clone()
    }

    /// True while the upstream has neither ended an idle connection nor said anything on it.
    pub(super) fn is_usable(&mut self) -> bool {
        let mut byte = [0; 1];
        let mut buffer = ReadBuf::new(&mut byte);
        let mut context = Context::from_waker(Waker::noop());
        Pin::new(&mut self.stream)
            .poll_read(&mut context, &mut buffer)
            .is_pending()
    }

    /// Begins a request.
    pub(super) fn send(
        mut self: Box<Self>,
        mut request: Http1Request,
        body: Body,
        options: Http1Options,
    ) -> Exchange {
        self.stream.set_load(Load::Busy);
        let is_empty = body.is_end_stream();
        let framing = encode::end_request(&request.framing, is_empty, &mut request.head);
        if options.has_proper_case {
            encode::proper_case(&mut request.head);
        }
        request
            .meter
            .wrote_fields(encode::field_bytes(&request.head));
        let mut output = Output::default();
        output.take_over(request.head);
        Exchange {
            connection: self,
            output,
            method: request.method,
            body: (!is_empty).then_some(body),
            body_framing: framing,
            is_broken: false,
            decoder: Decoder::new(Framing::Empty),
            keeps_alive: false,
            is_eof: false,
            has_input: false,
            interim: 0,
            has_trailers: options.has_trailers,
            meter: request.meter,
        }
    }
}

impl Exchange {
    /// Sends what it can of the request; an error only when its body broke off.
    fn poll_request(&mut self, context: &mut Context<'_>) -> Result<(), PoolError> {
        while !self.is_broken && (self.body.is_some() || !self.output.is_empty()) {
            let mut is_waiting = false;
            while let Some(body) = &mut self.body {
                if self.output.len() >= HIGH_WATER {
                    break;
                }
                let frame = match Pin::new(body).poll_frame(context) {
                    Poll::Pending => {
                        is_waiting = true;
                        break;
                    }
                    Poll::Ready(Some(Err(error))) => {
                        return Err(PoolError::of_body(&error));
                    }
                    Poll::Ready(frame) => frame.and_then(Result::ok),
                };
                self.put(frame);
            }
            self.meter.wrote(self.output.take_put());
            match self.output.poll_write(&mut self.connection.stream, context) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Err(_)) => self.is_broken = true,
                Poll::Ready(Ok(())) if is_waiting => return Ok(()),
                Poll::Ready(Ok(())) => {}
            }
        }
        Ok(())
    }

    /// Takes a piece of the request's body, or (none, trailers) its end.
    fn put(&mut self, frame: Option<Frame<Bytes>>) {
        let is_chunked = self.body_framing == BodyFraming::Chunked;
        let trailers = match frame.map(Frame::into_data) {
            Some(Ok(data)) => {
                if is_chunked {
                    self.output.put_chunk(data);
                } else {
                    self.output.put_data(data);
                }
                if !self.body.as_ref().is_some_and(HttpBody::is_end_stream) {
                    return;
                }
                None
            }
            // QUIRK: trailers are not passed on, as in Envoy, unless it is told to.
            Some(Err(frame)) => frame.into_trailers().ok().filter(|_| self.has_trailers),
            None => None,
        };
        self.body = None;
        if is_chunked {
            if let Some(trailers) = &trailers {
                self.meter.wrote_fields(encode::trailer_bytes(trailers));
            }
            self.output
                .put(|flat| encode::end_chunks(trailers.as_ref(), flat));
        }
    }

    fn is_sent(&self) -> bool {
        self.body.is_none() && self.output.is_empty() && !self.is_broken
    }

    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let connection = &mut self.connection;
        let wanted = match self.decoder.expected() {
            0 | usize::MAX => READ,
            known => known.clamp(READ, READ_MOST),
        };
        connection.input.reserve(wanted);
        let read = ready!(pin!(connection.stream.read_buf(&mut connection.input)).poll(context));
        match read {
            Ok(1..) => self.has_input = true,
            _ => self.is_eof = true,
        }
        Poll::Ready(read)
    }

    /// The response's head, sending the request meanwhile.
    pub(super) fn poll_head(
        &mut self,
        limits: HeadLimits,
        context: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, PoolError>> {
        self.poll_request(context)?;
        loop {
            if !self.connection.input.is_empty() {
                let before = self.connection.input.len();
                let parsed = parse_response(&mut self.connection.input, limits, &self.method);
                self.meter.read(before - self.connection.input.len());
                if let Ok(Some(head)) = &parsed {
                    self.meter.read_head(head.field_bytes);
                }
                match parsed {
                    Ok(Some(head)) if is_interim(&head) => {
                        self.interim += 1;
                        if head.headers.status == StatusCode::CONTINUE
                            && let Some(body) = &self.body
                        {
                            body.forward_continue(context);
                        }
                        if self.interim > MAX_INTERIM {
                            return Poll::Ready(Err(protocol("too many interim responses")));
                        }
                        continue;
                    }
                    Ok(Some(head)) => {
                        self.decoder = Decoder::new(head.framing);
                        self.keeps_alive = head.keeps_alive;
                        if self.is_done() && head.headers.status != StatusCode::SWITCHING_PROTOCOLS
                        {
                            self.connection.stream.set_load(Load::Idle);
                        }
                        return Poll::Ready(Ok(head));
                    }
                    Ok(None) => {}
                    Err(error) => return Poll::Ready(Err(protocol(&error.to_string()))),
                }
            }
            if self.is_eof {
                return Poll::Ready(Err(if self.has_input {
                    protocol("the response's head ended early")
                } else {
                    PoolError::new(PoolErrorKind::ConnectionTermination, "")
                }));
            }
            // An error is the end too.
            let _ = ready!(self.poll_fill(context));
        }
    }

    /// The next piece of the response's body, sending the request meanwhile.
    pub(super) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        if !self.is_sent() && self.poll_request(context).is_err() {
            return Poll::Ready(Some(Err(UpstreamBodyError::Closed)));
        }
        loop {
            let before = self.connection.input.len();
            let decoded = self.decoder.decode(&mut self.connection.input);
            self.meter.read(before - self.connection.input.len());
            if let Ok(Decoded::Trailers(trailers)) = &decoded {
                self.meter.read_trailers(decoder::trailer_bytes(trailers));
            }
            match decoded {
                Ok(Decoded::Data(data)) => {
                    if self.is_done() {
                        self.connection.stream.set_load(Load::Idle);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Ok(Decoded::Trailers(trailers)) if self.has_trailers => {
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Ok(Decoded::Trailers(_) | Decoded::End) => {
                    self.connection.stream.set_load(Load::Idle);
                    return Poll::Ready(None);
                }
                Ok(Decoded::More) if self.is_eof => {
                    if self.decoder.close().is_err() {
                        return Poll::Ready(Some(Err(UpstreamBodyError::Protocol)));
                    }
                    self.connection.stream.set_load(Load::Idle);
                    return Poll::Ready(None);
                }
                Ok(Decoded::More) => {
                    let read = ready!(self.poll_fill(context));
                    if read.is_err() && !self.decoder.is_done() {
                        return Poll::Ready(Some(Err(UpstreamBodyError::Closed)));
                    }
                }
                Err(_) => return Poll::Ready(Some(Err(UpstreamBodyError::Protocol))),
            }
        }
    }

    /// All of the response was read.
    pub(super) fn is_done(&self) -> bool {
        self.decoder.is_done()
    }

    /// The connection, when it can carry another request.
    pub(super) fn into_idle(mut self) -> Option<Box<Http1>> {
        let is_clean = self.keeps_alive
            && self.is_done()
            && self.is_sent()
            && !self.is_eof
            && self.connection.input.is_empty();
        // An idle connection holds no buffer.
        self.connection.input = BytesMut::new();
        is_clean.then_some(self.connection)
    }

    /// The connection's bytes after an upgrade.
    pub(super) fn into_tunnel(self) -> ReadAhead<UpstreamStream> {
        ReadAhead::new(self.connection.input.freeze(), self.connection.stream)
    }
}

fn is_interim(head: &ResponseHead) -> bool {
    head.headers.status.is_informational() && head.headers.status != StatusCode::SWITCHING_PROTOCOLS
}

fn protocol(text: &str) -> PoolError {
    PoolError::new(PoolErrorKind::Protocol, text)
}
