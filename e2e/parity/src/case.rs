//! What a group's file may hold: upstreams, clients, their steps and what is compared. Reading only; no behaviour.

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::Value;
use std::net::IpAddr;

/// A file of cases that share one proxy.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// The file's name without `.yaml`.
    #[serde(default)]
    pub name: String,
    /// What the group is about, one line.
    pub about: String,
    /// Scripted servers, by name.
    #[serde(default)]
    pub upstreams: IndexMap<String, Upstream>,
    /// Clusters, in the short form of [`bootstrap`](crate::bootstrap).
    #[serde(default)]
    pub clusters: IndexMap<String, Value>,
    /// Listeners, in the short form of [`bootstrap`](crate::bootstrap).
    #[serde(default)]
    pub listeners: IndexMap<String, Value>,
    /// The rest of the bootstrap, merged over it.
    #[serde(default)]
    pub bootstrap: Value,
    /// Files that are written into the run's folder (`{{dir}}`) before the proxy starts.
    #[serde(default)]
    pub files: IndexMap<String, String>,
    /// The cases do not talk to a running proxy: each is a configuration that is accepted or refused.
    #[serde(default)]
    pub validate: bool,
    /// Differences that are meant, of several cases.
    #[serde(default)]
    pub differs: Vec<Differences>,
    /// The cases.
    pub cases: Vec<Case>,
}

/// One case.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Name within the group.
    pub name: String,
    /// Files of the run's folder that are replaced first, whole (configuration sources).
    #[serde(default)]
    pub write: IndexMap<String, String>,
    /// A look at the admin interface before the clients begin, for its `until`.
    #[serde(default)]
    pub wait: Option<Look>,
    /// Clients, played one after another.
    #[serde(default)]
    pub clients: Vec<Client>,
    /// Clients are played at the same time.
    #[serde(default)]
    pub together: bool,
    /// Answers of upstreams in this case: each request takes the next, the last one stays.
    #[serde(default)]
    pub answers: IndexMap<String, Vec<Answer>>,
    /// Wait until the upstreams saw so many requests in all (mirrors, retries that race).
    #[serde(default)]
    pub upstream_requests: usize,
    /// What is compared of what upstreams saw.
    #[serde(default)]
    pub upstream: Seen,
    /// Wait for so many lines in the access logs, and compare them.
    #[serde(default)]
    pub log: usize,
    /// Compare how much these statistics changed (patterns).
    #[serde(default)]
    pub stats: Vec<String>,
    /// Compare the values of these statistics (patterns).
    #[serde(default)]
    pub stats_now: Vec<String>,
    /// Compare answers of the admin interface.
    #[serde(default)]
    pub admin: Vec<Look>,
    /// A configuration that is merged into the bootstrap, for groups with `validate`.
    #[serde(default)]
    pub config: Value,
    /// Differences that are meant.
    #[serde(default)]
    pub differs: Vec<Difference>,
}

/// How much of what upstreams saw is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seen {
    /// Every request whole, in order of arrival.
    #[default]
    Requests,
    /// Also on which connection, counted within the case.
    Connections,
    /// The number of requests by upstream.
    Count,
    /// Nothing.
    Nothing,
}

/// A deliberate difference.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// Where in the outcome; `*` stands for anything.
    pub at: String,
    /// Why.
    pub why: String,
    /// It is not there in every run: chance has a part in it.
    #[serde(default)]
    pub sometimes: bool,
}

/// A deliberate difference of several cases.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Differences {
    /// The cases; `*` stands for anything.
    pub cases: Vec<String>,
    /// Where in their outcomes, in each of them; `*` stands for anything.
    pub at: Vec<String>,
    /// Why.
    pub why: String,
    /// It is not there in every run: chance has a part in it.
    #[serde(default)]
    pub sometimes: bool,
}

/// Files of the run's folder that are replaced in the middle of a conversation, and the wait until the proxy has noticed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// The files; without any it is only waited.
    #[serde(default)]
    pub write: IndexMap<String, String>,
    /// A look at the admin interface, for its `until`.
    pub wait: Look,
}

/// A look at the admin interface.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Look {
    /// Path and query.
    #[serde(alias = "post")]
    pub get: String,
    /// Use POST.
    #[serde(default)]
    pub is_post: bool,
    /// Of a JSON answer: these parts (`a.b[*].c`); all if empty.
    #[serde(default)]
    pub pick: Vec<String>,
    /// Of a text: the lines that match.
    #[serde(default)]
    pub lines: Option<String>,
    /// Look again until the answer matches, twenty seconds at most.
    #[serde(default)]
    pub until: Option<String>,
}

/// One client connection.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Client {
    /// The listener.
    pub to: Option<String>,
    /// A Unix socket instead of a listener's address.
    pub unix: Option<String>,
    /// The address that the client connects from.
    pub from: Option<std::net::IpAddr>,
    /// TLS.
    pub tls: Option<TlsClient>,
    /// Bytes that precede everything (a PROXY header).
    pub prelude: Option<String>,
    /// HTTP/2 instead of HTTP/1.1.
    pub h2: bool,
    /// Requests, one after another on the connection.
    pub requests: Vec<Request>,
    /// HTTP/2 requests are sent all at once.
    pub concurrent: bool,
    /// A conversation in bytes.
    pub talk: Vec<Step>,
    /// A conversation in HTTP/2 frames.
    pub frames: Vec<FrameStep>,
    /// Wait so long before the client begins, in milliseconds.
    pub after: u64,
    /// Files of the run's folder that are replaced when the client begins; one that names no listener does nothing else.
    pub write: IndexMap<String, String>,
    /// A look at the admin interface after that, for its `until`.
    pub wait: Option<Look>,
}

/// A request in words.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Request {
    /// `GET` path.
    pub get: Option<String>,
    /// Method, `GET` if not given.
    pub method: Option<String>,
    /// Path, if not in `get`.
    pub path: Option<String>,
    /// `Host` or `:authority`; `parity.test` if not given.
    pub host: Option<String>,
    /// `:scheme` of HTTP/2; `http` if not given.
    pub scheme: Option<String>,
    /// Further headers: a text, or a list for several of one name.
    pub headers: IndexMap<String, Values>,
    /// Body.
    pub body: Option<Text>,
    /// Trailers; HTTP/1 then sends chunks.
    pub trailers: IndexMap<String, Values>,
    /// A gRPC message: the body is framed, and `content-type` and `te` are set.
    pub grpc: Option<String>,
    /// The client resets the stream so many milliseconds after it began.
    pub reset_after: Option<u64>,
}

/// One or several values.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Values {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// A text, possibly long.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Text {
    /// As it is.
    Plain(String),
    /// Repeated.
    Repeated {
        /// What.
        repeat: String,
        /// How often.
        times: usize,
    },
}

/// TLS of a client.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsClient {
    /// Server name; none if empty.
    pub sni: Option<String>,
    /// Application protocols.
    pub alpn: Vec<String>,
    /// Certificate's name in `certs/`.
    pub certificate: Option<String>,
    /// `1.2` or `1.3` only.
    pub version: Option<String>,
    /// Bytes are sent before the handshake is complete: connect, handshake, then nothing.
    pub silent: bool,
}

/// One step of a conversation in bytes.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Send.
    Send(Text),
    /// Send bytes that are given in hexadecimal.
    Hex(String),
    /// Read an HTTP/1 response.
    Response,
    /// Read the response to a request of this method.
    ResponseTo(String),
    /// Read a response's head only.
    Head,
    /// Read up to this text.
    Until(String),
    /// Read so many bytes.
    Bytes(usize),
    /// Read to the end.
    Eof,
    /// Read to the end; compare only how much came.
    Drain,
    /// Compare whether the connection is still there.
    Fate,
    /// Compare how long the peer takes to close: `true` if within this many milliseconds.
    ClosedWithin(u64),
    /// Wait, in milliseconds.
    Pause(u64),
    /// End the sending side.
    Finish,
    /// Close with a reset.
    Abort,
    /// Send back everything that comes, to the end.
    Echo,
    /// Clients only: change something under the proxy.
    Change(Change),
}

/// One step of a conversation in HTTP/2 frames.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FrameStep {
    /// The connection preface and empty settings.
    Preface,
    /// A HEADERS frame.
    Headers {
        /// Stream.
        stream: u32,
        /// Names and values, in order.
        fields: Vec<(String, String)>,
        /// Flags; END_STREAM and END_HEADERS (5) if not given.
        #[serde(default)]
        flags: Option<u8>,
    },
    /// Any frame.
    Frame {
        /// Type.
        kind: u8,
        /// Flags.
        #[serde(default)]
        flags: u8,
        /// Stream.
        #[serde(default)]
        stream: u32,
        /// Payload, as text.
        #[serde(default)]
        text: Option<Text>,
        /// Payload, in hexadecimal.
        #[serde(default)]
        hex: String,
        /// How often.
        #[serde(default)]
        times: Option<usize>,
    },
    /// Read frames until one of this kind comes (`goaway`, `rst_stream`, `end_stream`, `ping`), or the connection closes.
    Read(String),
    /// Compare whether the connection is still there.
    Fate,
    /// Wait, in milliseconds.
    Pause(u64),
    /// Change something under the proxy.
    Change(Change),
}

/// A scripted server.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Upstream {
    /// What it speaks.
    pub protocol: Protocol,
    /// TLS with this certificate of `certs/`.
    pub tls: Option<TlsUpstream>,
    /// Its answer.
    pub answer: Answer,
    /// Answers by path (without query), before `answer`.
    pub paths: IndexMap<String, Answer>,
    /// Of a `tcp` server: the conversation; it echoes if empty.
    pub talk: Vec<Step>,
    /// A port of its own instead of the next.
    pub port: Option<u16>,
    /// An address of its own in the group's block (the last number).
    pub unix: Option<String>,
    /// Of a `dns` server: the addresses of its names; no other name exists.
    pub names: IndexMap<String, Vec<IpAddr>>,
    /// Of a `dns` server: what it does instead.
    pub says: Option<Says>,
    /// Nothing listens there.
    pub absent: bool,
}

/// What is wrong with a name server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Says {
    /// That it failed.
    Failed,
    /// By UDP that the answer does not fit.
    Cut,
    /// Nothing.
    Nothing,
}

/// TLS of an upstream.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsUpstream {
    /// Certificate's name in `certs/`.
    pub certificate: String,
    /// Application protocols.
    pub alpn: Vec<String>,
    /// Ask for a client certificate.
    pub wants_certificate: bool,
}

/// What a server speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2.
    Http2,
    /// Bytes.
    Tcp,
    /// gRPC services that are known to the proxy's protocols: messages are compared as JSON.
    Grpc,
    /// Answers to questions for addresses, by UDP and TCP. They are not written down: they are asked again and again.
    Dns,
}

/// A server's answer.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Answer {
    /// Status, 200 if not given.
    pub status: Option<u16>,
    /// Headers.
    pub headers: IndexMap<String, Values>,
    /// Body; the upstream's name if not given.
    pub body: Option<Text>,
    /// Send the body in these chunks.
    pub chunks: Vec<String>,
    /// Trailers.
    pub trailers: IndexMap<String, Values>,
    /// HTTP/1: these bytes instead of everything above.
    pub raw: Option<Text>,
    /// Interim responses before (HTTP/1).
    pub interim: Vec<u16>,
    /// Wait before the answer, in milliseconds.
    pub delay: u64,
    /// Wait between head and body, in milliseconds.
    pub body_delay: u64,
    /// Then.
    pub then: Then,
    /// HTTP/2: reset with this code instead.
    pub reset: Option<u32>,
    /// gRPC: the message, as JSON; several for a stream.
    pub messages: Vec<Value>,
    /// gRPC: the status.
    pub grpc_status: Option<u32>,
    /// The body is the request's body.
    pub echo: bool,
    /// Answer before the request's body came.
    pub early: bool,
}

/// What a server does after its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Then {
    /// Serves on.
    #[default]
    Keep,
    /// Closes.
    Close,
    /// Resets the connection.
    Abort,
    /// Sends back what comes (after an upgrade).
    Echo,
    /// Does not answer; records how the proxy ends it.
    Hold,
    /// Answers and says GOAWAY.
    Goaway,
}

impl Values {
    /// All values.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        match self {
            Values::One(value) => std::slice::from_ref(value),
            Values::Many(values) => values.as_slice(),
        }
        .iter()
        .map(String::as_str)
    }
}

impl Text {
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Text::Plain(text) => latin(text),
            Text::Repeated { repeat, times } => latin(&repeat.repeat(*times)),
        }
    }
}

/// A text's bytes: characters up to U+00FF are one byte each, so that `"\xff"` in YAML is that byte.
#[must_use]
pub fn latin(text: &str) -> Vec<u8> {
    if text.chars().all(|c| u32::from(c) < 256) {
        text.chars().map(|c| c as u8).collect()
    } else {
        text.as_bytes().to_vec()
    }
}
