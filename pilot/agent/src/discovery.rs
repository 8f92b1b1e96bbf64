//! The agent's own way to Pilot, beside the proxy's and as the same node.

use proto::envoy::config::core::v3::Node;
use proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use proto_component::grpc::{self, ClientOptions, InvalidTarget};
use proto_component::tls::{ClientTls, Pem, ServerIdentity, TlsError};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::secret_cache::SecretCache;

const MAX_ANSWER: usize = 64 << 20;
/// Requests that may wait for the stream.
const REQUESTS: usize = 2;

/// Pilot, and who asks it.
#[derive(Clone)]
pub struct Pilot {
    /// `HOST:PORT`.
    pub address: String,
    /// Who it must be, where it is reached by mutual TLS.
    pub identity: Option<String>,
    /// The certificate to reach it with.
    pub secrets: SecretCache,
    /// Who we are: the proxy.
    pub node: Node,
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Citadel has not issued it.
    #[error("there is no certificate yet")]
    NoCertificate,
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address cannot.
    #[error(transparent)]
    Address(#[from] InvalidTarget),
    /// Pilot is away, or says no.
    #[error("{}", .0.message())]
    Pilot(#[from] tonic::Status),
}

/// An open stream.
pub struct Stream {
    /// To Pilot.
    pub requests: mpsc::Sender<DiscoveryRequest>,
    /// From Pilot.
    pub answers: Streaming<DiscoveryResponse>,
}

impl Pilot {
    /// Opens a stream with `first`, to which the node is added.
    ///
    /// # Errors
    /// When Pilot cannot be reached, or does not want us.
    pub async fn open(&self, first: DiscoveryRequest) -> Result<Stream, StreamError> {
        let mut discovery = AggregatedDiscoveryServiceClient::new(self.channel()?)
            .max_decoding_message_size(MAX_ANSWER);
        let (requests, outgoing) = mpsc::channel(REQUESTS);
        // The channel is new: there is room.
        let _ = requests.try_send(DiscoveryRequest {
            node: Some(self.node.clone()),
            ..first
        });
        let answers = discovery
            .stream_aggregated_resources(ReceiverStream::new(outgoing))
            .await?
            .into_inner();
        Ok(Stream { requests, answers })
    }

    fn channel(&self) -> Result<Channel, StreamError> {
        let tls = match &self.identity {
            None => None,
            Some(identity) => {
                let workload = self.secrets.workload();
                let workload = (*workload).as_ref().ok_or(StreamError::NoCertificate)?;
                let (chain, key) = workload.pem();
                let trusted = self.secrets.trusted().unwrap_or_default();
                let pem = Pem {
                    chain: chain.as_bytes().to_vec(),
                    key: key.as_bytes().to_vec(),
                    roots: trusted.into_bytes(),
                    ..Pem::default()
                };
                let identity = ServerIdentity::AnyOf(vec![identity.clone()]);
                Some(ClientTls::from_pem(&pem, identity, &["h2"])?)
            }
        };
        Ok(grpc::channel(
            &self.address,
            tls,
            &ClientOptions::default(),
        )?)
    }
}
