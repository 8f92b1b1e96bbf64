//! A workload for tests of who gets through: a server that says what reached it ([`serve`]), and a client that makes a list of
//! calls from inside a pod and says what came of each ([`call`]); and an external authorizer ([`check`]). None knows of the mesh.

mod announced;
pub mod call;
pub mod check;
pub mod serve;
mod tunnel;

use serde::{Deserialize, Serialize};

/// What every answer of the server begins with, whatever it came over.
pub const MARK: &str = "echo-served";

/// How a call is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// A unary gRPC call.
    Grpc,
    /// One line there, one line back.
    Tcp,
    /// An HTTP/1.1 request whose target is written as it is, byte for byte.
    Raw,
}

/// TLS by the caller itself, as somebody without a sidecar would do it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Name to ask for.
    pub server_name: String,
    /// Protocols to offer.
    pub alpn: Vec<String>,
    /// Certificate chain, PEM; empty for none.
    pub chain: String,
    /// Its key, PEM.
    pub key: String,
    /// Whom to trust, PEM.
    pub roots: String,
}

/// One call.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// How.
    pub protocol: Protocol,
    /// `HOST:PORT`.
    pub address: String,
    /// Method of HTTP.
    #[serde(default = "get")]
    pub method: String,
    /// Request target.
    #[serde(default = "root")]
    pub target: String,
    /// Host; the address if empty.
    #[serde(default)]
    pub host: String,
    /// Further headers.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// TLS, if the caller does it.
    #[serde(default)]
    pub tls: Option<Tls>,
}

/// What came of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// HTTP status; none where there is no HTTP, or no answer.
    pub status: Option<u16>,
    /// What came back, or why nothing did.
    pub text: String,
    /// How long it took, in milliseconds.
    #[serde(default)]
    pub millis: u64,
}

impl Call {
    /// A call of `/`.
    #[must_use]
    pub fn new(protocol: Protocol, address: &str) -> Self {
        Self {
            protocol,
            address: address.to_owned(),
            method: get(),
            target: root(),
            host: String::new(),
            headers: Vec::new(),
            tls: None,
        }
    }

    /// With another method.
    #[must_use]
    pub fn method(mut self, method: &str) -> Self {
        method.clone_into(&mut self.method);
        self
    }

    /// For another host.
    #[must_use]
    pub fn host(mut self, host: &str) -> Self {
        host.clone_into(&mut self.host);
        self
    }

    /// With another target.
    #[must_use]
    pub fn target(mut self, target: &str) -> Self {
        target.clone_into(&mut self.target);
        self
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With TLS by the caller.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }
}

impl Outcome {
    /// Whether the server itself answered.
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.status.is_none_or(|status| status == 200) && self.text.contains(MARK)
    }
}

fn get() -> String {
    "GET".to_owned()
}

fn root() -> String {
    "/".to_owned()
}
