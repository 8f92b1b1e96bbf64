//! Finds out by the first bytes of a plain connection whether the client speaks HTTP/2 with prior knowledge.

use std::io;

use bytes::BytesMut;
use tokio::io::AsyncReadExt as _;

use crate::http::h2::PREFACE;
use crate::transport::DownstreamStream;

/// Reads into `ahead` until the protocol is known: whether it is HTTP/2; `None` when the client says nothing.
pub(super) async fn is_http2(
    stream: &mut DownstreamStream,
    ahead: &mut BytesMut,
) -> io::Result<Option<bool>> {
    loop {
        if stream.read_buf(ahead).await? == 0 {
            return Ok(None);
        }
        let known = ahead.len().min(PREFACE.len());
        if ahead[..known] != PREFACE[..known] {
            return Ok(Some(false));
        }
        if known == PREFACE.len() {
            return Ok(Some(true));
        }
    }
}
