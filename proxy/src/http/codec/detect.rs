//! Finds out by the first bytes of a plain connection whether the client speaks HTTP/2 with prior knowledge.

use std::io;

use bytes::BytesMut;
use tokio::io::AsyncReadExt as _;

use crate::http::h2::PREFACE;
use crate::transport::DownstreamStream;

/// Reads what comes into `ahead`; 0 at the end.
pub(super) async fn read(stream: &mut DownstreamStream, ahead: &mut BytesMut) -> io::Result<usize> {
    // Without room 64 bytes would be read first.
    ahead.reserve(4 << 10);
    stream.read_buf(ahead).await
}

/// Reads on until the protocol is known: whether it is HTTP/2; `None` when the client says nothing.
pub(super) async fn is_http2(
    stream: &mut DownstreamStream,
    ahead: &mut BytesMut,
) -> io::Result<Option<bool>> {
    loop {
        let known = ahead.len().min(PREFACE.len());
        if ahead[..known] != PREFACE[..known] {
            return Ok(Some(false));
        }
        if known == PREFACE.len() {
            return Ok(Some(true));
        }
        if read(stream, ahead).await? == 0 {
            return Ok(None);
        }
    }
}
