//! The other end of the control API: what every `local` subcommand but `up` talks through.

use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::Method;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::net::UnixStream;

use super::{
    api::{PodRequest, Selector},
    http_client,
    state::StateDir,
};

/// Long enough for an apply of many objects while Galley comes back.
const PATIENCE: Duration = Duration::from_secs(120);

/// A connection to a running mesh.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    state: StateDir,
}

/// What the mesh answered instead of what was wanted.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refused(pub String);

impl Client {
    /// A client for the mesh of this directory.
    pub(crate) fn new(state: StateDir) -> Self {
        Self { state }
    }

    /// Reads something.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        selector: &Selector,
    ) -> anyhow::Result<T> {
        let query = [
            ("kind", &selector.kind),
            ("namespace", &selector.namespace),
            ("name", &selector.name),
        ];
        let query: Vec<String> = query
            .iter()
            .map(|(key, value)| format!("{key}={}", encode(value)))
            .collect();
        let body = self
            .call(Method::GET, &format!("{path}?{}", query.join("&")), None)
            .await?;
        serde_json::from_slice(&body).context("read the mesh's answer")
    }

    /// Does something.
    pub(crate) async fn post<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> anyhow::Result<T> {
        let body = self
            .call(Method::POST, path, Some(serde_json::to_vec(body)?))
            .await?;
        serde_json::from_slice(&body).context("read the mesh's answer")
    }

    /// Asks a port inside a pod; the answer's body.
    pub(crate) async fn ask_pod(&self, request: &PodRequest) -> anyhow::Result<Bytes> {
        self.call(
            Method::POST,
            "/v1/request",
            Some(serde_json::to_vec(request)?),
        )
        .await
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> anyhow::Result<Bytes> {
        let socket = self.state.socket();
        let stream = UnixStream::connect(&socket).await.with_context(|| {
            let hint = if self.state.is_stale() {
                "it seems to have been killed: `biremectl local down` cleans up after it"
            } else {
                "start one with `biremectl local up`, or name it with --mesh"
            };
            format!("no mesh runs here ({}); {hint}", socket.display())
        })?;
        let request = http_client::request(method, "local", path, body)?;
        let response = http_client::send(stream, request, PATIENCE).await?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        let text = String::from_utf8_lossy(response.body()).into_owned();
        let error = serde_json::from_str::<Value>(&text)
            .ok()
            .and_then(|value| value["error"].as_str().map(str::to_owned));
        Err(
            Refused(error.unwrap_or_else(|| format!("{}: {}", response.status(), text.trim())))
                .into(),
        )
    }
}

/// Percent-encodes what has a meaning in a query.
fn encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
