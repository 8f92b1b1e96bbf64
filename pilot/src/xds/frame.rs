//! gRPC's frames of discovery streams, read and written here instead of by a codec: what many proxies are sent is encoded once and
//! not copied for each, and a stream keeps no room for the largest message that it has ever seen.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::HeaderMap;
use http_body::Frame;
use http_body_util::BodyExt as _;
use prost::Message as ProstMessage;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use proto_component::grpc::DEFAULT_MAX_MESSAGE;
use tokio::sync::mpsc;
use tonic::Status;

/// Compression flag and length.
const HEADER: usize = 5;
/// What is written at a time: HTTP/2's usual largest frame.
const CHUNK: usize = 16 * 1024;
/// `resources` of both forms' responses.
pub(super) const RESOURCES: u32 = 2;

/// A response, in parts.
#[derive(Debug)]
pub(super) struct Message {
    /// Those that are left, the next one last.
    parts: Vec<Bytes>,
}

impl Message {
    /// A response with everything but its resources in `head`, and its resources as `fields`.
    pub(super) fn new(head: &impl ProstMessage, fields: impl Iterator<Item = Bytes>) -> Self {
        let mut written = vec![0; HEADER];
        // Fields may come in any order.
        head.encode_raw(&mut written);
        let mut parts = vec![Bytes::new()];
        parts.extend(fields);
        let fields: usize = parts.iter().map(Bytes::len).sum();
        // No list of resources comes near it; a client would refuse the frame.
        let length = u32::try_from(written.len() - HEADER + fields).unwrap_or(u32::MAX);
        written[1..HEADER].copy_from_slice(&length.to_be_bytes());
        parts[0] = written.into();
        parts.reverse();
        Message { parts }
    }

    /// The next bytes to write; none when all are written.
    fn next_chunk(&mut self) -> Option<Bytes> {
        let first = self.parts.last_mut()?;
        if first.len() >= CHUNK {
            return Some(first.split_to(CHUNK));
        }
        // Small ones are put together: a frame for each would cost more than the copy.
        let mut left = 0;
        for part in self.parts.iter().rev() {
            left += part.len();
            if left >= CHUNK {
                break;
            }
        }
        let mut chunk = BytesMut::with_capacity(left.min(CHUNK));
        while let Some(part) = self.parts.last_mut() {
            let room = CHUNK - chunk.len();
            if part.len() > room {
                chunk.put(part.split_to(room));
                break;
            }
            chunk.put_slice(part);
            self.parts.pop();
        }
        Some(chunk.freeze())
    }
}

/// Writes the beginning of a field that holds `length` bytes.
pub(super) fn open_field(tag: u32, length: usize, to: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, to);
    encode_varint(length as u64, to);
}

/// The length of such a field.
pub(super) fn field_length(tag: u32, length: usize) -> usize {
    key_len(tag) + encoded_len_varint(length as u64) + length
}

/// The body of an answer: responses as they come, then the status.
#[derive(Debug)]
pub(super) struct Responses {
    responses: mpsc::Receiver<Result<Message, Status>>,
    current: Option<Message>,
    is_over: bool,
}

impl Responses {
    pub(super) fn new(responses: mpsc::Receiver<Result<Message, Status>>) -> Self {
        Responses {
            responses,
            current: None,
            is_over: false,
        }
    }
}

impl http_body::Body for Responses {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(chunk) = self.current.as_mut().and_then(Message::next_chunk) {
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
            self.current = None;
            if self.is_over {
                return Poll::Ready(None);
            }
            let status = match ready!(self.responses.poll_recv(context)) {
                Some(Ok(message)) => {
                    self.current = Some(message);
                    continue;
                }
                Some(Err(status)) => status,
                None => Status::ok(""),
            };
            self.is_over = true;
            let mut trailers = HeaderMap::new();
            // Only metadata can be unfit for headers, and ours has none.
            let _ = status.add_header(&mut trailers);
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
    }
}

/// The requests of a stream.
#[derive(Debug)]
pub(super) struct Requests<T> {
    body: Body,
    read: BytesMut,
    kind: PhantomData<fn() -> T>,
}

impl<T: ProstMessage + Default> Requests<T> {
    pub(super) fn new(body: Body) -> Self {
        Requests {
            body,
            read: BytesMut::new(),
            kind: PhantomData,
        }
    }

    /// The next request; none when the client has ended the stream. Nothing is lost when this is dropped before it is ready.
    pub(super) async fn next(&mut self) -> Option<Result<T, Status>> {
        loop {
            if let Some(next) = self.take().transpose() {
                return Some(next);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.read.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Some(Err(Status::cancelled(error.to_string()))),
                None if self.read.is_empty() => return None,
                None => {
                    return Some(Err(Status::internal("the stream ends within a request")));
                }
            }
        }
    }

    /// The request at the front, if all of it is there.
    fn take(&mut self) -> Result<Option<T>, Status> {
        let Some(header) = self.read.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [flag, length @ ..] = header;
        if *flag != 0 {
            let reason = "compressed requests are not taken";
            return Err(Status::unimplemented(reason));
        }
        let length = u32::from_be_bytes(*length) as usize;
        if length > DEFAULT_MAX_MESSAGE {
            let reason = format!("a request of {length} bytes is too large");
            return Err(Status::resource_exhausted(reason));
        }
        if self.read.len() < HEADER + length {
            return Ok(None);
        }
        let mut message = self.read.split_to(HEADER + length).freeze();
        message.advance(HEADER);
        let request = T::decode(message).map_err(|error| Status::internal(error.to_string()))?;
        if self.read.is_empty() {
            // The room of a large request is given back.
            self.read = BytesMut::new();
        }
        Ok(Some(request))
    }
}

#[cfg(test)]
mod tests {
    use proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};

    use super::*;
    use crate::xds::generate::Generated;
    use proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};

    fn generated(name: &str, size: usize) -> Generated {
        Generated::encoded(name.into(), "test", &vec![7; size], false)
    }

    /// What a client reads of `message`.
    fn read<T: ProstMessage + Default>(mut message: Message) -> T {
        let mut bytes = Vec::new();
        while let Some(chunk) = message.next_chunk() {
            assert!(!chunk.is_empty() && chunk.len() <= CHUNK);
            bytes.extend_from_slice(&chunk);
        }
        let length = u32::from_be_bytes(bytes[1..HEADER].try_into().unwrap());
        assert_eq!(length as usize, bytes.len() - HEADER);
        T::decode(&bytes[HEADER..]).unwrap()
    }

    #[test]
    fn parts_make_up_the_message_whatever_their_sizes() {
        for sizes in [
            &[][..],
            &[0],
            &[10, 20],
            &[CHUNK, 1, 3 * CHUNK, 100],
            &[CHUNK - 20, 50],
        ] {
            let resources: Vec<Generated> =
                sizes.iter().map(|size| generated("a", *size)).collect();
            let anys: Vec<prost_types::Any> = sizes
                .iter()
                .map(|size| prost_types::Any {
                    type_url: "test".to_owned(),
                    value: vec![7; *size],
                })
                .collect();
            let head = DiscoveryResponse {
                version_info: "1".to_owned(),
                nonce: "n".to_owned(),
                ..DiscoveryResponse::default()
            };
            let message = Message::new(&head, resources.iter().map(Generated::state));
            let wanted = DiscoveryResponse {
                resources: anys.clone(),
                ..head
            };
            assert_eq!(read::<DiscoveryResponse>(message), wanted);

            let head = DeltaDiscoveryResponse {
                nonce: "n".to_owned(),
                ..DeltaDiscoveryResponse::default()
            };
            let message = Message::new(&head, resources.iter().map(Generated::increment));
            let wrapped = resources.iter().zip(&anys).map(|(made, any)| {
                assert_eq!(made.any(), *any);
                Resource {
                    name: "a".to_owned(),
                    version: made.version(),
                    resource: Some(any.clone()),
                    ..Resource::default()
                }
            });
            let wanted = DeltaDiscoveryResponse {
                resources: wrapped.collect(),
                ..head
            };
            assert_eq!(read::<DeltaDiscoveryResponse>(message), wanted);
        }
    }

    fn frame(request: &DiscoveryRequest) -> Vec<u8> {
        let body = request.encode_to_vec();
        let mut frame = vec![0];
        frame.extend_from_slice(&u32::try_from(body.len()).unwrap().to_be_bytes());
        frame.extend(body);
        frame
    }

    #[tokio::test]
    async fn requests_are_read_across_frames() {
        let request = DiscoveryRequest {
            type_url: "x".repeat(100),
            ..DiscoveryRequest::default()
        };
        let mut bytes = frame(&request);
        bytes.extend(frame(&request));
        let pieces = bytes
            .chunks(7)
            .map(|piece| Ok::<_, Infallible>(piece.to_vec()));
        let stream = tokio_stream::iter(pieces.collect::<Vec<_>>());
        let mut requests = Requests::<DiscoveryRequest>::new(Body::from_stream(stream));
        assert_eq!(requests.next().await.unwrap().unwrap(), request);
        assert_eq!(requests.next().await.unwrap().unwrap(), request);
        assert!(requests.next().await.is_none());
    }

    #[tokio::test]
    async fn bad_frames_are_refused() {
        for bytes in [
            vec![1, 0, 0, 0, 0],
            vec![0, 255, 0, 0, 0],
            vec![0, 0, 0, 0, 1, 255],
            vec![0, 0],
        ] {
            let mut requests = Requests::<DiscoveryRequest>::new(Body::from(bytes.clone()));
            assert!(requests.next().await.unwrap().is_err(), "{bytes:?}");
        }
    }
}
