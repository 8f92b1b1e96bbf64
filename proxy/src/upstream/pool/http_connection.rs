//! A connection lent for one request.

use super::{
    PoolError, PoolErrorKind,
    body::UpstreamBody,
    http::{HttpPool, Lease, Sender},
};
use crate::http::body::Body;
use ::http::{Request, Response, Version};
use std::{error::Error as _, net::SocketAddr, rc::Rc};

/// A connection for one request.
pub(crate) struct HttpConnection {
    /// Our end's address.
    pub(crate) local_address: Option<SocketAddr>,
    /// What is spoken.
    pub(crate) protocol: Version,
    pub(super) pool: Rc<HttpPool>,
    pub(super) lease: Lease,
    pub(super) is_reused: bool,
}

impl HttpConnection {
    /// Sends the request and waits for the response's head. A request that an idle connection lost before it was written goes
    /// out once more on a new one.
    pub(crate) async fn send(
        mut self,
        mut request: Request<Body>,
    ) -> Result<Response<UpstreamBody>, PoolError> {
        loop {
            *request.version_mut() = self.protocol;
            let sent = match &mut self.lease.sender {
                Sender::Http1(sender) => sender.try_send_request(request).await,
                Sender::Http2(sender) => sender.try_send_request(request).await,
            };
            let mut failure = match sent {
                Ok(response) => {
                    let lease = self.lease;
                    return Ok(response.map(|incoming| UpstreamBody::new(incoming, lease)));
                }
                Err(failure) => failure,
            };
            match failure.take_message() {
                Some(unsent) if self.is_reused => {
                    let pool = self.pool.clone();
                    drop(self);
                    self = pool.acquire_new().await?;
                    request = unsent;
                }
                _ => return Err(classify(&failure.into_error())),
            }
        }
    }
}

/// What a failed exchange means to the router.
fn classify(error: &hyper::Error) -> PoolError {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(h2) = inner.downcast_ref::<h2::Error>() {
            let kind = match h2.reason() {
                Some(h2::Reason::REFUSED_STREAM) => PoolErrorKind::RefusedStream,
                Some(_) if h2.is_go_away() || h2.is_io() => PoolErrorKind::ConnectionTermination,
                Some(_) if h2.is_library() => PoolErrorKind::Protocol,
                Some(_) => PoolErrorKind::Reset,
                None => PoolErrorKind::ConnectionTermination,
            };
            return PoolError::new(kind, h2.to_string());
        }
        cause = inner.source();
    }
    let kind = if error.is_parse() {
        PoolErrorKind::Protocol
    } else if error.is_user() {
        PoolErrorKind::LocalReset
    } else {
        PoolErrorKind::ConnectionTermination
    };
    PoolError::new(kind, error.to_string())
}
