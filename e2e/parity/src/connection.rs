//! One end of a connection, client's or upstream's: bytes with a buffer, a deadline on every wait, and the conversation in
//! [`Step`]s that both ends can play.

use crate::{case::Step, http1, normal};
use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    time::timeout,
};

/// The longest wait for anything.
pub const DEADLINE: Duration = Duration::from_secs(8);
/// How long an open connection is watched before it is called open.
const OPEN: Duration = Duration::from_millis(100);

/// Both directions of a stream.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {
    /// Ends the connection with a reset, where the transport can.
    fn abort(&self) {}
}
impl Stream for TcpStream {
    fn abort(&self) {
        // A socket that can't be told to reset is closed: the comparison shows it.
        let _ = socket2::SockRef::from(self).set_linger(Some(Duration::ZERO));
    }
}
impl Stream for UnixStream {}
impl Stream for tokio_rustls::client::TlsStream<TcpStream> {
    fn abort(&self) {
        self.get_ref().0.abort();
    }
}
impl Stream for tokio_rustls::server::TlsStream<TcpStream> {
    fn abort(&self) {
        self.get_ref().0.abort();
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// In order.
    Closed,
    /// Reset, or without TLS's farewell.
    Reset,
}

/// A connection with what was read but not consumed.
pub struct Connection {
    stream: Box<dyn Stream>,
    /// Bytes that wait.
    pub buffer: Vec<u8>,
    /// Set once the peer has ended.
    pub end: Option<End>,
}

impl Connection {
    /// Over any stream.
    #[must_use]
    pub fn new(stream: Box<dyn Stream>) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            end: None,
        }
    }

    /// The stream, for another codec; nothing may wait in the buffer.
    #[must_use]
    pub fn into_stream(self) -> Box<dyn Stream> {
        self.stream
    }

    /// Sends everything; a peer that has closed is no error (what it sent is looked at instead).
    pub async fn send(&mut self, bytes: &[u8]) {
        let sent = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        let _ = timeout(DEADLINE, sent).await;
    }

    /// Reads some more; `false` at the end.
    ///
    /// # Errors
    /// When nothing comes within the deadline.
    pub async fn fill(&mut self) -> anyhow::Result<bool> {
        if self.end.is_some() {
            return Ok(false);
        }
        let mut some = [0; 16 << 10];
        match timeout(DEADLINE, self.stream.read(&mut some)).await {
            Ok(Ok(0)) => self.end = Some(End::Closed),
            Ok(Ok(count)) => self.buffer.extend_from_slice(&some[..count]),
            Ok(Err(_)) => self.end = Some(End::Reset),
            Err(_) => bail!(
                "nothing came in {} s; so far: {}",
                DEADLINE.as_secs(),
                normal::bytes(&self.buffer)
            ),
        }
        Ok(self.end.is_none())
    }

    /// Takes the first `count` bytes that were read.
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(count.min(self.buffer.len()));
        std::mem::replace(&mut self.buffer, rest)
    }

    /// Reads `count` bytes, or what comes before the end.
    ///
    /// # Errors
    /// As [`fill`](Self::fill).
    pub async fn read_count(&mut self, count: usize) -> anyhow::Result<Vec<u8>> {
        while self.buffer.len() < count && self.fill().await? {}
        Ok(self.take(count))
    }

    /// Reads to a text, inclusive; `None` (and nothing taken) when the end comes before.
    ///
    /// # Errors
    /// As [`fill`](Self::fill).
    pub async fn read_until(&mut self, text: &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
        loop {
            if let Some(at) = self
                .buffer
                .windows(text.len())
                .position(|window| window == text)
            {
                return Ok(Some(self.take(at + text.len())));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// Reads everything to the end.
    ///
    /// # Errors
    /// As [`fill`](Self::fill).
    pub async fn read_all(&mut self) -> anyhow::Result<Vec<u8>> {
        while self.fill().await? {}
        Ok(std::mem::take(&mut self.buffer))
    }

    /// Whether the peer has closed: `open`, `closed` or, with bytes that nobody expected, those.
    pub async fn fate(&mut self, wait: Duration) -> Value {
        let start = Instant::now();
        while self.end.is_none() && start.elapsed() < wait {
            let left = wait.saturating_sub(start.elapsed());
            if timeout(left, self.fill()).await.is_err() {
                break;
            }
        }
        let state = if self.end.is_some() { "closed" } else { "open" };
        if self.buffer.is_empty() {
            json!(state)
        } else {
            json!({"then": state, "unexpected": normal::bytes(&std::mem::take(&mut self.buffer))})
        }
    }

    /// As [`fate`](Self::fate), with the usual patience: long where the peer said that it closes.
    pub async fn usual_fate(&mut self, closes: bool) -> Value {
        self.fate(if closes { Duration::from_secs(3) } else { OPEN })
            .await
    }

    /// Ends the sending side.
    pub async fn finish(&mut self) {
        let _ = timeout(DEADLINE, self.stream.shutdown()).await;
    }

    /// Sends back everything that comes.
    ///
    /// # Errors
    /// As [`fill`](Self::fill).
    pub async fn echo(&mut self) -> anyhow::Result<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let some = std::mem::take(&mut self.buffer);
            self.send(&some).await;
            all.extend(some);
            if !self.fill().await? && self.buffer.is_empty() {
                self.finish().await;
                return Ok(all);
            }
        }
    }

    /// Plays a conversation; what was read goes to `log`. `false` when the connection is gone by a step.
    ///
    /// # Errors
    /// When a wait is too long or an answer can't be read.
    pub async fn play(&mut self, steps: &[Step], log: &mut Vec<Value>) -> anyhow::Result<()> {
        for step in steps {
            self.step(step, log).await?;
        }
        Ok(())
    }

    /// Plays one step.
    ///
    /// # Errors
    /// As [`play`](Self::play).
    pub async fn step(&mut self, step: &Step, log: &mut Vec<Value>) -> anyhow::Result<()> {
        match step {
            Step::Send(text) => self.send(&text.bytes()).await,
            Step::Hex(hex) => self.send(&unhex(hex)?).await,
            Step::Response => log.push(http1::response(self, "GET").await?),
            Step::ResponseTo(method) => log.push(http1::response(self, method).await?),
            Step::Head => log.push(http1::head_of_response(self).await?),
            Step::Until(text) => {
                let read = self.read_until(text.as_bytes()).await?;
                log.push(read.map_or(json!("ended"), |read| normal::bytes(&read)));
            }
            Step::Bytes(count) => log.push(normal::bytes(&self.read_count(*count).await?)),
            Step::Eof => log.push(json!({"to the end": normal::bytes(&self.read_all().await?)})),
            Step::Drain => log.push(json!({"bytes to the end": self.read_all().await?.len()})),
            // A peer that said so closes sooner or later; when, is for `closed_within` to say.
            Step::Fate if log.last().is_some_and(says_close) => log.push(json!("closes")),
            Step::Fate => {
                let fate = self.usual_fate(false).await;
                log.push(fate);
            }
            Step::ClosedWithin(limit) => {
                let fate = self.fate(Duration::from_millis(*limit)).await;
                log.push(json!({format!("within {limit} ms"): fate}));
            }
            Step::Pause(time) => tokio::time::sleep(Duration::from_millis(*time)).await,
            Step::Finish => self.finish().await,
            Step::Abort => {
                self.stream.abort();
                self.end = Some(End::Reset);
            }
            Step::Echo => {
                let echoed = self.echo().await?;
                log.push(json!({"echoed": normal::bytes(&echoed)}));
            }
            Step::Change(_) => bail!("only a client changes something"),
        }
        Ok(())
    }

    /// Makes the coming drop a reset.
    pub fn abort(&self) {
        self.stream.abort();
    }
}

/// Whether a response in an outcome ends its connection.
fn says_close(response: &Value) -> bool {
    response.pointer("/headers/connection") == Some(&json!("close"))
}

/// Bytes from hexadecimal; blanks are allowed.
///
/// # Errors
/// When it is not hexadecimal.
pub fn unhex(text: &str) -> anyhow::Result<Vec<u8>> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| {
            let pair: String = pair.iter().collect();
            u8::from_str_radix(&pair, 16).with_context(|| format!("{pair} is not hexadecimal"))
        })
        .collect()
}
