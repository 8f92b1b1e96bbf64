//! The name table, pushed by Pilot (NDS): a stream of our own beside the proxy's, as the same node. While Pilot is away the last
//! table stays.

use std::sync::Arc;
use std::time::Duration;

use proto::envoy::config::core::v3::Node;
use proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use proto::istio::networking::nds::v1::NameTable;
use proto_component::backoff::Backoff;
use proto_component::drain::Drain;
use proto_component::grpc::{self, ClientOptions, InvalidTarget};
use proto_component::tls::{ClientTls, Pem, ServerIdentity, TlsError};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;

use super::Names;
use super::table::Table;
use crate::secret_cache::SecretCache;

const FIRST_RETRY: Duration = Duration::from_millis(200);
const RETRY_CAP: Duration = Duration::from_secs(10);
const MAX_ANSWER: usize = 64 << 20;

/// Where names come from, and for whom.
pub struct Pilot {
    /// `HOST:PORT`.
    pub address: String,
    /// Who it must be, where it is reached by mutual TLS.
    pub identity: Option<String>,
    /// The certificate to reach it with.
    pub secrets: SecretCache,
    /// Who we are: the proxy.
    pub node: Node,
    /// The pod's namespace.
    pub namespace: String,
    /// The domain of its short names.
    pub domain: String,
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("there is no certificate yet")]
    NoCertificate,
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Address(#[from] InvalidTarget),
    #[error("{}", .0.message())]
    Pilot(#[from] tonic::Status),
}

impl Pilot {
    /// Keeps `names` as Pilot says until the drain's end; `search` is the domain that the pod looks for short names in first.
    pub(super) async fn follow(self, names: &Names, search: &str, drain: &Drain) {
        let mut backoff = Backoff::new(FIRST_RETRY, RETRY_CAP);
        loop {
            let outcome = tokio::select! {
                outcome = self.listen(names, search, &mut backoff) => outcome,
                () = drain.expired() => return,
            };
            if let Err(error) = outcome {
                tracing::debug!(target: "dns", %error, "the stream of names has ended");
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next_delay()) => {}
                () = drain.expired() => return,
            }
        }
    }

    /// One stream, to its end.
    async fn listen(
        &self,
        names: &Names,
        search: &str,
        backoff: &mut Backoff,
    ) -> Result<(), StreamError> {
        let mut discovery = AggregatedDiscoveryServiceClient::new(self.channel()?)
            .max_decoding_message_size(MAX_ANSWER);
        let (requests, stream) = mpsc::channel(2);
        let mut request = DiscoveryRequest {
            node: Some(self.node.clone()),
            type_url: proto::type_url::NAME_TABLE.to_owned(),
            ..DiscoveryRequest::default()
        };
        // The channel is new: there is room.
        let _ = requests.try_send(request.clone());
        let answers = discovery
            .stream_aggregated_resources(ReceiverStream::new(stream))
            .await?;
        let mut answers = answers.into_inner();
        request.node = None;
        while let Some(answer) = answers.message().await? {
            request.response_nonce.clone_from(&answer.nonce);
            request.error_detail = None;
            match read(&answer) {
                Ok(table) => {
                    backoff.reset();
                    request.version_info.clone_from(&answer.version_info);
                    let table = Table::new(table, &self.namespace, &self.domain, search);
                    tracing::debug!(target: "dns", names = table.len(), "names have come");
                    names.store(Some(Arc::new(table)));
                }
                Err(message) => {
                    tracing::warn!(target: "dns", message, "names stay as they were");
                    request.error_detail = Some(proto::google::rpc::Status {
                        code: Code::InvalidArgument as i32,
                        message,
                        ..proto::google::rpc::Status::default()
                    });
                }
            }
            if requests.send(request.clone()).await.is_err() {
                break;
            }
        }
        Ok(())
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

fn read(answer: &DiscoveryResponse) -> Result<NameTable, String> {
    match answer.resources.as_slice() {
        [] => Ok(NameTable::default()),
        [resource] => {
            proto::any::unpack(resource).map_err(|error| format!("no name table: {error}"))
        }
        _ => Err("there is more than one name table".to_owned()),
    }
}
