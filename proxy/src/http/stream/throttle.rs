//! A response's body let through piece by piece: a twentieth of a second's worth at a time, as Envoy's fault filter does.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Frame;
use tokio::time::{Instant, Sleep};

/// How often more may go.
const TICK: Duration = Duration::from_millis(50);

/// What waits, and how much may go.
pub(super) struct Throttle {
    waiting: BytesMut,
    a_tick: usize,
    allowed: usize,
    next: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Throttle {
    /// A rate in bytes a second; one tick's worth may go at once.
    pub(super) fn new(rate: u64) -> Self {
        let a_tick = usize::try_from(rate / 20).unwrap_or(usize::MAX).max(1);
        let next = Instant::now() + TICK;
        Throttle {
            waiting: BytesMut::new(),
            a_tick,
            allowed: a_tick,
            next,
            timer: Box::pin(tokio::time::sleep_until(next)),
        }
    }

    /// True when nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The next frame of `inner`, or a part of it.
    pub(super) fn poll<E>(
        &mut self,
        context: &mut Context<'_>,
        mut inner: impl FnMut(&mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, E>>>,
    ) -> Poll<Option<Result<Frame<Bytes>, E>>> {
        while self.waiting.is_empty() {
            match ready!(inner(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.waiting.extend_from_slice(&data),
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                other => return Poll::Ready(other),
            }
        }
        while self.allowed == 0 {
            let now = Instant::now();
            if now < self.next {
                self.timer.as_mut().reset(self.next);
                ready!(self.timer.as_mut().poll(context));
                continue;
            }
            self.allowed = self.a_tick;
            self.next = now + TICK;
        }
        let count = self.allowed.min(self.waiting.len());
        self.allowed -= count;
        let piece = self.waiting.split_to(count).freeze();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_second_brings_the_rate() {
        let mut throttle = Throttle::new(2000);
        let mut left = vec![Bytes::from(vec![0; 1000])];
        let start = Instant::now();
        let mut sizes = Vec::new();
        loop {
            let frame = std::future::poll_fn(|context| {
                throttle.poll(context, |_| {
                    Poll::Ready(left.pop().map(|data| Ok::<_, ()>(Frame::data(data))))
                })
            });
            match frame.await {
                Some(frame) => sizes.push(frame.unwrap().into_data().unwrap().len()),
                None => break,
            }
        }
        assert_eq!(sizes, vec![100; 10]);
        let took = start.elapsed();
        assert!(
            (Duration::from_millis(440)..Duration::from_millis(560)).contains(&took),
            "{took:?}"
        );
    }
}
