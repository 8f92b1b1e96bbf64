//! The body of an upstream response; its end gives the connection back to the pool.

use super::{http1, http2, lease::Lease};
use crate::http::{stream::Holder, upgrade::UpstreamTunnel};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::{
    pin::Pin,
    rc::Weak,
    task::{Context, Poll},
};

/// An upstream response's body.
pub(crate) struct UpstreamBody {
    exchange: Option<(Exchange, Lease)>,
}

/// Why a response's body ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UpstreamBodyError {
    /// The upstream reset the stream.
    #[error("the upstream reset the stream")]
    Reset,
    /// What came is not HTTP, or less than was promised.
    #[error("the upstream broke the protocol")]
    Protocol,
    /// The connection ended.
    #[error("the upstream connection ended")]
    Closed,
}

/// The exchange that the body belongs to.
pub(super) enum Exchange {
    Http1(Box<http1::Exchange>),
    Http2(Box<http2::Exchange>),
}

impl UpstreamBody {
    pub(super) fn new(exchange: Exchange, lease: Lease, is_tunnel: bool) -> Self {
        let mut body = Self {
            exchange: Some((exchange, lease)),
        };
        if !is_tunnel {
            body.release_at_end();
        }
        body
    }

    /// The connection's bytes, when the response accepts an upgrade.
    pub(crate) fn take_tunnel(&mut self) -> Option<UpstreamTunnel> {
        match self.exchange.take() {
            Some((Exchange::Http1(exchange), _)) => {
                Some(UpstreamTunnel::Http1(exchange.into_tunnel()))
            }
            Some((Exchange::Http2(exchange), _)) => {
                Some(UpstreamTunnel::Http2(exchange.into_tunnel()))
            }
            None => None,
        }
    }

    /// Who holds what has come of it, if that can be much.
    pub(crate) fn holder(&self) -> Option<Weak<dyn Holder>> {
        match &self.exchange {
            Some((Exchange::Http2(exchange), _)) => Some(exchange.holder()),
            Some((Exchange::Http1(_), _)) | None => None,
        }
    }

    fn release_at_end(&mut self) {
        let is_done = match &self.exchange {
            Some((Exchange::Http1(exchange), _)) => exchange.is_done(),
            Some((Exchange::Http2(exchange), _)) => exchange.is_done(),
            None => return,
        };
        if is_done {
            self.release();
        }
    }

    fn release(&mut self) {
        if let Some((exchange, lease)) = self.exchange.take() {
            match exchange {
                Exchange::Http1(exchange) => lease.finish(exchange.into_idle()),
                Exchange::Http2(_) => drop(lease),
            }
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = UpstreamBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        let polled = match &mut self.exchange {
            None => return Poll::Ready(None),
            Some((Exchange::Http1(exchange), _)) => exchange.poll_frame(cx),
            Some((Exchange::Http2(exchange), _)) => exchange.poll_frame(cx),
        };
        match &polled {
            Poll::Ready(None) => self.release(),
            Poll::Ready(Some(Ok(_))) => self.release_at_end(),
            Poll::Ready(Some(Err(_))) => self.exchange = None,
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.exchange.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
