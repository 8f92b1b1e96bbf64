//! One gRPC call with bytes for messages: what is in them only the descriptors know.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _};
use proto::istio::policy::v1beta1 as policy;
use proto_component::grpc::{self, ClientOptions};
use proto_component::tls::{ClientTls, PemFiles, ServerIdentity};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::Authentication;
use super::token::Token;

/// The roots of a connection with `tls` that names none.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";
const SESSION: &str = "session-id";
/// A larger answer is refused.
const MAX_ANSWER: usize = 4 << 20;

/// The way to an adapter. It connects when it is first called, and again after every failure.
#[derive(Clone)]
pub(in crate::adapter) struct Caller {
    address: String,
    tls: Option<ClientTls>,
    token: Option<Arc<Token>>,
    channel: Arc<std::sync::OnceLock<Channel>>,
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Caller({})", self.address)
    }
}

impl Caller {
    pub(in crate::adapter) fn new(
        address: &str,
        authentication: Option<&Authentication>,
    ) -> Result<Self, String> {
        let (tls, token) = match authentication {
            None => (None, None),
            Some(Authentication::Mutual(mutual)) => (Some(mutual_tls(mutual)?), None),
            Some(Authentication::Tls(tls)) => {
                (Some(plain_tls(tls)?), Token::new(tls)?.map(Arc::new))
            }
        };
        let caller = Self {
            address: address.to_owned(),
            tls,
            token,
            channel: Arc::default(),
        };
        if !address.starts_with("unix:") && !address.contains(':') {
            return Err(format!("address: {address:?} is not HOST:PORT"));
        }
        Ok(caller)
    }

    /// The channel; made where there is a runtime for it.
    fn channel(&self) -> Result<Channel, Status> {
        if let Some(channel) = self.channel.get() {
            return Ok(channel.clone());
        }
        let options = ClientOptions::default();
        let channel = grpc::channel(&self.address, self.tls.clone(), &options)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(self.channel.get_or_init(|| channel).clone())
    }

    /// Calls a method.
    pub(in crate::adapter) async fn call(
        &self,
        method: &str,
        message: Vec<u8>,
        session: Option<&str>,
        timeout: Duration,
    ) -> Result<Vec<u8>, Status> {
        let path = method
            .parse()
            .map_err(|_| Status::internal(format!("{method} is no method")))?;
        let mut request = tonic::Request::new(message);
        request.set_timeout(timeout);
        if let Some(session) = session {
            let value = MetadataValue::try_from(session)
                .map_err(|_| Status::internal("the session's name is not printable"))?;
            request.metadata_mut().insert(SESSION, value);
        }
        let mut client = tonic::client::Grpc::new(self.channel()?);
        let exchange = async {
            if let Some(token) = &self.token {
                let (key, value) = token.header().await?;
                request.metadata_mut().insert(key, value);
            }
            let not_ready = |error: tonic::transport::Error| {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                Status::unavailable(cause.unwrap_or_else(|| error.to_string()))
            };
            client.ready().await.map_err(not_ready)?;
            let answer = client.unary(request, path, Raw).await;
            if let (Some(token), Err(status)) = (&self.token, &answer)
                && status.code() == Code::Unauthenticated
            {
                token.refused();
            }
            answer
        };
        let answered = tokio::time::timeout(timeout, exchange).await;
        let answer = answered.map_err(|_| {
            Status::new(
                Code::DeadlineExceeded,
                format!("no answer within {timeout:?}"),
            )
        })?;
        answer.map(tonic::Response::into_inner)
    }
}

fn mutual_tls(mutual: &policy::Mutual) -> Result<ClientTls, String> {
    let files = PemFiles::new(
        &mutual.client_certificate,
        &mutual.private_key,
        Some(PathBuf::from(&mutual.ca_certificates)),
    );
    let tls = ClientTls::from_files(files, identity(&mutual.server_name), &["h2"]);
    with_name(
        tls.map_err(|error| format!("authentication.mutual: {error}"))?,
        &mutual.server_name,
    )
}

fn plain_tls(config: &policy::Tls) -> Result<ClientTls, String> {
    let path = match config.ca_certificates.as_str() {
        "" => SYSTEM_ROOTS,
        path => path,
    };
    let files = PemFiles {
        roots: Some(PathBuf::from(path)),
        ..PemFiles::default()
    };
    let tls = ClientTls::from_files(files, ServerIdentity::Name, &["h2"]);
    with_name(
        tls.map_err(|error| format!("authentication.tls: {error}"))?,
        &config.server_name,
    )
}

/// Without a name the chain alone counts: adapters have SPIFFE ids, which no address tells.
fn identity(name: &str) -> ServerIdentity {
    if name.is_empty() {
        ServerIdentity::Trusted
    } else {
        ServerIdentity::AnyOf(vec![name.to_owned()])
    }
}

fn with_name(tls: ClientTls, name: &str) -> Result<ClientTls, String> {
    if name.is_empty() || name.contains("://") {
        return Ok(tls);
    }
    tls.with_server_name(name)
        .map_err(|error| format!("authentication: serverName: {error}"))
}

/// Messages as they are.
#[derive(Clone, Copy, Debug, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        if buffer.remaining() > MAX_ANSWER {
            return Err(Status::out_of_range("the answer is too large"));
        }
        let mut message = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut message);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::istio::policy::v1beta1::tls::TokenSource;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn waiting_for_a_token_is_part_of_a_call() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "s").unwrap();
        // It is connected to, and says nothing.
        let issuer = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let oauth = policy::OAuth {
            client_id: "mixer".into(),
            client_secret: secret.display().to_string(),
            token_url: format!("http://{}/token", issuer.local_addr().unwrap()),
            ..policy::OAuth::default()
        };
        let tls = policy::Tls {
            token_source: Some(TokenSource::Oauth(oauth)),
            ..policy::Tls::default()
        };
        let caller = Caller {
            address: "127.0.0.1:9".into(),
            tls: None,
            token: Token::new(&tls).unwrap().map(Arc::new),
            channel: Arc::default(),
        };
        let timeout = Duration::from_millis(50);
        let answer = caller.call("/a.B/C", Vec::new(), None, timeout).await;
        assert_eq!(answer.unwrap_err().code(), Code::DeadlineExceeded);
    }
}
