//! Handing a connection's bytes over to a tunnel, once all of the response's head is out.

use std::future::poll_fn;

use proto_component::drain::Drain;
use tokio::sync::oneshot;

use crate::http::upgrade::{DownstreamTunnel, Handed, Whole};

use super::body::SharedIo;

/// Hands them over and waits for the tunnel's end: until then its connection counts as the listener's.
pub(super) async fn hand_over(io: &SharedIo, drain: &Drain, tunnel: oneshot::Sender<Handed>) {
    let flushed = poll_fn(|context| io.borrow_mut().poll_flush(context)).await;
    let Some(taken) = flushed.ok().and_then(|()| io.borrow_mut().take_tunnel()) else {
        return;
    };
    let (open, over) = oneshot::channel();
    let handed = Handed {
        bytes: DownstreamTunnel::Http1(taken),
        whole: Some(Whole {
            drain: drain.clone(),
            _open: open,
        }),
    };
    // Nobody waits when the upstream was lost meanwhile: the connection is closed with the tunnel.
    if tunnel.send(handed).is_ok() {
        // Nothing is ever sent: it ends when the other end is dropped.
        let _ = over.await;
    }
}
