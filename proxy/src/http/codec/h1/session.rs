//! The life of a connection: head → engine → response → next head, until one side has had enough.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use http::{Method, StatusCode, Version};
use http_body::Body as _;
use proto_component::drain::Drain;
use tokio::io::AsyncWrite as _;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::http::body::DownstreamBody;
use crate::http::h1::encode::{self, BodyFraming, ResponseContext};
use crate::http::h1::head::parse_request;
use crate::http::h1::{Decoder, Framing, HeadLimits, InvalidHead, Output, RequestHead};
use crate::http::local_reply::LocalReply;
use crate::http::stream::{self, DownstreamConnection, ResponseBody};
use crate::http::timer::Timer;
use crate::http::upgrade::Handed;
use crate::overload::{Action, TimerType};
use crate::stream_info::ResponseFlag;
use crate::transport::DownstreamStream;

use super::super::{DELAYED, DRAINED, Ending, FRESH, count_ending};
use super::body::{CONTINUE, Io, RequestBody, SharedIo};
use super::drain_watch::DrainWatch;
use super::hand_over::hand_over;
use super::refusal;
use super::send::poll_send;

const IDLE: TimerType = TimerType::HttpDownstreamConnectionIdle;
const AGE: TimerType = TimerType::HttpDownstreamConnectionMax;
const STREAM_IDLE: TimerType = TimerType::HttpDownstreamStreamIdle;

/// Serves a connection to its end.
pub(in crate::http::codec) async fn serve(
    stream: DownstreamStream,
    input: BytesMut,
    connection: Rc<DownstreamConnection>,
    drain: Drain,
) {
    let server = &connection.worker.server;
    server.codecs.http1(&server.stats);
    let manager = connection.manager.clone();
    let limits = HeadLimits {
        bytes: manager.limits.headers_bytes,
        count: manager.limits.headers_count,
        allows_chunked_length: manager.http1.allow_chunked_length,
        allows_any_method: manager.http1.allow_custom_methods,
    };
    let mut session = Session {
        io: Rc::new(RefCell::new(Io {
            stream: Some(stream),
            input,
            output: Output::default(),
            decoder: Decoder::new(Framing::Empty),
            is_eof: false,
            request: 0,
            awaits_continue: false,
            has_trailers: manager.http1.enable_trailers,
            meter: Rc::default(),
        })),
        limits,
        is_tls: connection.info.tls.is_some(),
        watch: DrainWatch::new(drain),
        timer: Timer::own(&connection.worker.timers),
        connection,
    };
    session.run().await;
}

struct Session {
    io: SharedIo,
    connection: Rc<DownstreamConnection>,
    limits: HeadLimits,
    is_tls: bool,
    watch: DrainWatch,
    timer: Timer,
}

/// What comes from the client.
enum Next {
    Request(Box<RequestHead>),
    Refused(LocalReply),
    End,
}

/// What becomes of the connection after a response.
#[derive(PartialEq, Eq)]
enum After {
    KeepAlive,
    /// Closed when the client has had time to read the response.
    Close,
    /// Closed at once, or not ours any more.
    Gone,
}

impl Session {
    async fn run(&mut self) {
        loop {
            let after = match self.next().await {
                // Boxed, so that an idle connection does not hold room for an exchange.
                Next::Request(head) if refusal::is_unroutable(&self.connection, &head) => {
                    self.refuse_target(*head).await
                }
                Next::Request(head) => Box::pin(self.exchange(head)).await,
                Next::Refused(reply) => self.refuse(reply).await,
                Next::End => return,
            };
            match after {
                After::KeepAlive => {}
                After::Close => return self.close().await,
                After::Gone => return,
            }
        }
    }

    /// The next request's head.
    async fn next(&mut self) -> Next {
        let mut first_byte = None;
        poll_fn(|context| self.poll_next(&mut first_byte, context)).await
    }

    fn poll_next(
        &mut self,
        first_byte: &mut Option<Instant>,
        context: &mut Context<'_>,
    ) -> Poll<Next> {
        let shared = self.io.clone();
        let mut io = shared.borrow_mut();
        let io = &mut *io;
        loop {
            if !io.input.is_empty() {
                let before = io.input.len();
                if self.connection.sheds(Action::ShedHttp1) {
                    io.note_head(before, &Err(InvalidHead::Codec));
                    return Poll::Ready(Next::Refused(refusal::shed(&self.connection)));
                }
                let parsed = parse_request(&mut io.input, self.limits, self.is_tls);
                io.note_head(before, &parsed);
                match parsed {
                    Ok(Some(head)) => return Poll::Ready(Next::Request(Box::new(head))),
                    Ok(None) => {}
                    Err(error) => {
                        return Poll::Ready(Next::Refused(refusal::invalid(
                            &self.connection,
                            error,
                        )));
                    }
                }
            }
            if io.is_eof {
                return Poll::Ready(Next::End);
            }
            match io.poll_fill(context) {
                Poll::Ready(_) => {}
                Poll::Pending => break,
            }
        }
        let is_draining = self.watch.is_draining(context);
        if io.input.is_empty() {
            // An idle connection holds no buffers.
            io.input = BytesMut::new();
            io.output = Output::default();
            if is_draining {
                let is_over = self.watch.poll_expired(context).is_ready();
                if !is_over && !self.connection.worker.server.drain.is_draining() {
                    // As with Envoy, who asks again learns by the answer that no other may follow.
                    return self.poll_idle(context).map(|()| Next::End);
                }
                let until = Some(self.connection.idle_since.get() + FRESH);
                if !is_over && self.timer.poll_until(until, context).is_pending() {
                    return Poll::Pending;
                }
                count_ending(&self.connection, Ending::Drain);
                return Poll::Ready(Next::End);
            }
            return self.poll_idle(context).map(|()| Next::End);
        }
        let first = *first_byte.get_or_insert_with(Instant::now);
        if is_draining && self.watch.poll_expired(context).is_ready() {
            return Poll::Ready(Next::End);
        }
        let late = ready!(self.poll_head_limits(first, context));
        io.note_head(io.input.len(), &Err(InvalidHead::Codec));
        Poll::Ready(Next::Refused(late))
    }

    /// Ready when an idle connection has been idle, or has lived, long enough.
    fn poll_idle(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let timeouts = &self.connection.manager.timeouts;
        let idle = timeouts
            .idle
            .map(|limit| self.connection.idle_since.get() + self.timer.limit(IDLE, limit));
        let age = timeouts
            .max_connection
            .map(|limit| self.connection.info.began + self.timer.limit(AGE, limit));
        ready!(
            self.timer
                .poll_until(idle.into_iter().chain(age).min(), context)
        );
        let is_old = age.is_some_and(|at| at <= Instant::now());
        count_ending(
            &self.connection,
            if is_old {
                Ending::MaxDuration
            } else {
                Ending::Idle
            },
        );
        Poll::Ready(())
    }

    /// Ready when a head takes too long.
    fn poll_head_limits(&mut self, first: Instant, context: &mut Context<'_>) -> Poll<LocalReply> {
        let timeouts = &self.connection.manager.timeouts;
        let idle = timeouts
            .stream_idle
            .map(|limit| self.timer.limit(STREAM_IDLE, limit));
        let limits = [timeouts.request_headers, timeouts.request, idle];
        let next = limits.iter().flatten().min().map(|limit| first + *limit);
        ready!(self.timer.poll_until(next, context));
        let is_over = |limit: Option<std::time::Duration>| {
            limit.is_some_and(|limit| first + limit <= Instant::now())
        };
        let stats = &self.connection.manager.stats;
        let reply =
            |body, details| LocalReply::new(StatusCode::REQUEST_TIMEOUT, body, details).closing();
        Poll::Ready(if is_over(timeouts.request_headers) {
            stats.downstream_rq_header_timeout.inc();
            reply("request header timeout", "request_header_timeout")
        } else if is_over(timeouts.request) {
            stats.downstream_rq_timeout.inc();
            reply("request timeout", "request_overall_timeout")
        } else {
            stats.downstream_rq_idle_timeout.inc();
            reply("stream timeout", "stream_idle_timeout").flag(ResponseFlag::StreamIdleTimeout)
        })
    }

    async fn refuse(&mut self, reply: LocalReply) -> After {
        let meter = self.io.borrow().meter.clone();
        let body = stream::refuse(&self.connection, reply, meter);
        let wants = Wants {
            is_head: false,
            is_connect: false,
            is_old: false,
            keeps_alive: false,
        };
        match self.respond(body, wants, None).await {
            After::Gone => After::Gone,
            After::KeepAlive | After::Close => After::Close,
        }
    }

    /// A target that is not to be understood.
    async fn refuse_target(&mut self, mut head: RequestHead) -> After {
        drop(self.begin(&head));
        let wants = self.wants(&head);
        let (meter, is_whole) = {
            let io = self.io.borrow();
            (io.meter.clone(), io.decoder.is_done())
        };
        if let Some(host) = head.passed_over {
            head.headers.authority = host;
        }
        let reply = refusal::unroutable(&self.connection);
        let body = stream::refuse_request(&self.connection, head.headers, reply, meter, is_whole);
        self.respond(body, wants, None).await
    }

    fn wants(&self, head: &RequestHead) -> Wants {
        let method = &head.headers.method;
        Wants {
            is_head: method == Method::HEAD,
            is_connect: method == Method::CONNECT,
            is_old: head.version == Version::HTTP_10 && self.connection.manager.accepts_http_10,
            keeps_alive: head.keeps_alive,
        }
    }

    async fn exchange(&mut self, head: Box<RequestHead>) -> After {
        let body = self.begin(&head);
        let awaits_continue = head.expects_continue && !self.io.borrow().decoder.is_done();
        let is_proxied = self.connection.manager.proxies_continue;
        self.io.borrow_mut().awaits_continue = awaits_continue && is_proxied;
        if awaits_continue && !is_proxied {
            self.io
                .borrow_mut()
                .output
                .put(|flat| flat.extend_from_slice(CONTINUE));
            self.io.borrow_mut().note_output();
            let io = self.io.clone();
            if poll_fn(|context| io.borrow_mut().poll_flush(context))
                .await
                .is_err()
            {
                return After::Gone;
            }
        }
        let is_asking = head.headers.method == Method::CONNECT || head.headers.upgrade.is_some();
        let (tunnel, upgrade) = if is_asking {
            let (sender, receiver) = oneshot::channel();
            (Some(sender), Some(receiver))
        } else {
            (None, None)
        };
        let wants = self.wants(&head);
        let request = stream::Request {
            account: None,
            headers: head.headers,
            version: head.version,
            meter: self.io.borrow().meter.clone(),
            body,
            upgrade,
        };
        let opened = stream::open(&self.connection, request);
        let body = {
            let mut serving = pin!(opened.serve());
            let (io, watch) = (&self.io, &mut self.watch);
            poll_fn(|context| {
                if let Poll::Ready(body) = serving.as_mut().poll(context) {
                    return Poll::Ready(Some(body));
                }
                if io.borrow_mut().poll_closed(context).is_ready() {
                    return Poll::Ready(None);
                }
                watch.poll_expired(context).map(|()| None)
            })
            .await
        };
        match body {
            Some(body) => self.respond(body, wants, tunnel).await,
            None => After::Gone,
        }
    }

    fn begin(&self, head: &RequestHead) -> DownstreamBody {
        let mut io = self.io.borrow_mut();
        io.request += 1;
        io.decoder = Decoder::new(head.framing);
        if io.decoder.is_done() {
            DownstreamBody::Empty
        } else {
            DownstreamBody::Http1(RequestBody::new(self.io.clone(), io.request))
        }
    }

    /// Sends the response; its body goes out as it comes.
    async fn respond(
        &mut self,
        mut body: Box<ResponseBody>,
        wants: Wants,
        tunnel: Option<oneshot::Sender<Handed>>,
    ) -> After {
        let must_close = !wants.keeps_alive || self.is_over();
        let has_proper_case = self.connection.manager.has_proper_case;
        let (is_tunnel, closes, framing) = {
            let mut io = self.io.borrow_mut();
            let is_empty = body.is_end_stream();
            body.with_head(|head, is_closing| {
                let is_accepted = head.status == StatusCode::SWITCHING_PROTOCOLS
                    || wants.is_connect && head.status.is_success() && is_empty;
                let is_tunnel = tunnel.is_some() && is_accepted;
                let closes = is_closing || must_close;
                let context = ResponseContext {
                    is_head: wants.is_head,
                    is_old: wants.is_old,
                    has_proper_case,
                    is_empty,
                    closes,
                    is_tunnel,
                };
                let mut framing = BodyFraming::None;
                let mut fields = 0;
                io.output.put(|flat| {
                    let start = flat.len();
                    framing = encode::response(head, context, flat);
                    fields = encode::field_bytes(&flat[start..]);
                });
                io.meter.wrote_fields(fields);
                io.note_output();
                let ends_by_close = wants.is_old
                    && framing == BodyFraming::Plain
                    && !head.map.contains_key(http::header::CONTENT_LENGTH);
                (is_tunnel, closes || ends_by_close, framing)
            })
        };
        if let Some(tunnel) = tunnel.filter(|_| is_tunnel) {
            hand_over(&self.io, self.watch.drain(), tunnel).await;
            return After::Gone;
        }
        let mut is_ended = false;
        let (io, watch) = (&self.io, &mut self.watch);
        let is_sent = poll_fn(|context| {
            let sent = poll_send(io, &mut body, framing, &mut is_ended, context);
            if sent.is_pending() && watch.poll_expired(context).is_ready() {
                return Poll::Ready(false);
            }
            sent
        })
        .await;
        drop(body);
        if !is_sent {
            return After::Gone;
        }
        let mut io = self.io.borrow_mut();
        // What the client has sent of its request meanwhile may have been all of it.
        while !io.decoder.is_done() {
            let io = &mut *io;
            match io.decode() {
                Ok(crate::http::h1::Decoded::Data(_)) => {}
                Ok(_) if io.decoder.is_done() => {}
                _ => return After::Close,
            }
        }
        if closes {
            After::Close
        } else {
            After::KeepAlive
        }
    }

    /// No request may follow the running one.
    fn is_over(&self) -> bool {
        let manager = &self.connection.manager;
        let (stats, timeouts) = (&manager.stats, &manager.timeouts);
        let is_used_up = |limit| self.connection.total.get() >= limit;
        if manager.limits.requests.is_some_and(is_used_up) {
            stats.downstream_cx_max_requests_reached.inc();
            return true;
        }
        let is_too_old =
            |limit| self.connection.info.began.elapsed() >= self.timer.limit(AGE, limit);
        if timeouts.max_connection.is_some_and(is_too_old) {
            stats.downstream_cx_max_duration_reached.inc();
            return true;
        }
        if self.watch.drain().is_draining() {
            stats.downstream_cx_drain_close.inc();
            return true;
        }
        false
    }

    /// Ends our side, and waits for the client's for a while: a reset would take the response from it.
    async fn close(&mut self) {
        let manager = &self.connection.manager;
        self.connection.info.end_because(DRAINED);
        let Some(patience) = manager.timeouts.delayed_close else {
            return;
        };
        let until = Some(Instant::now() + patience);
        let (io, timer) = (self.io.clone(), &mut self.timer);
        let mut is_shut = false;
        let is_overdue = poll_fn(|context| {
            let io = &mut *io.borrow_mut();
            if !is_shut && let Some(stream) = &mut io.stream {
                is_shut = Pin::new(stream).poll_shutdown(context).is_ready();
            }
            while !io.is_eof {
                io.input.clear();
                if io.poll_fill(context).is_pending() {
                    return timer.poll_until(until, context).map(|()| true);
                }
            }
            Poll::Ready(false)
        })
        .await;
        if is_overdue {
            manager.stats.downstream_cx_delayed_close_timeout.inc();
            self.connection.info.meter.because(DELAYED);
        }
    }
}

/// What the request says of its response.
#[derive(Clone, Copy)]
struct Wants {
    is_head: bool,
    is_connect: bool,
    is_old: bool,
    keeps_alive: bool,
}
