//! What everybody is to believe, pushed by Citadel over secret discovery: roots and revocation lists go into the cache, and from
//! there to the proxy, as soon as they change. As for certificates, the token says who listens, or else the certificate in use. A
//! CA that does not speak it is asked again now and then.

use std::time::Duration;

use proto::envoy::extensions::transport_sockets::tls::v3::{Secret, secret::Type};
use proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use proto::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use proto_component::backoff::Backoff;
use proto_component::drain::Drain;
use tokio::sync::mpsc::{self, Sender};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Streaming};

use crate::citadel_client::{CitadelClient, FetchError};
use crate::secret::{Anchors, InvalidSecret, ROOT_CA, Workload};
use crate::secret_cache::SecretCache;

const FIRST_RETRY: Duration = Duration::from_millis(200);
const RETRY_CAP: Duration = Duration::from_secs(5);
/// How soon a CA that has no such service is asked again.
const UNKNOWN_RETRY: Duration = Duration::from_secs(300);
const MAX_ANSWER: usize = 4 << 20;

/// Follows Citadel until the drain's end: connections that drain are checked, too.
pub async fn follow(client: CitadelClient, cache: SecretCache, drain: Drain) {
    let mut backoff = Backoff::new(FIRST_RETRY, RETRY_CAP);
    loop {
        let outcome = tokio::select! {
            outcome = listen(&client, &cache, &mut backoff) => outcome,
            () = drain.expired() => return,
        };
        let wait = match outcome {
            Ok(()) => backoff.next_delay(),
            Err(FetchError::Citadel(status)) if status.code() == Code::Unimplemented => {
                tracing::info!(target: "ca", "the CA does not push what is to be trusted");
                UNKNOWN_RETRY
            }
            Err(error) => {
                tracing::debug!(target: "ca", %error, "the stream of what is to be trusted has ended");
                backoff.next_delay()
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = drain.expired() => return,
        }
    }
}

/// One stream, to its end.
async fn listen(
    client: &CitadelClient,
    cache: &SecretCache,
    backoff: &mut Backoff,
) -> Result<(), FetchError> {
    let mut request = DiscoveryRequest {
        resource_names: vec![ROOT_CA.to_owned()],
        type_url: proto::type_url::SECRET.to_owned(),
        ..DiscoveryRequest::default()
    };
    let current = cache.workload();
    let by_token = open(client, &request, None).await;
    let refused = by_token.as_ref().err();
    let (requests, mut answers) =
        match refused.and_then(|error| error.other_proof(current.as_ref().as_ref())) {
            Some(workload) => open(client, &request, Some(workload)).await.or(by_token)?,
            None => by_token?,
        };
    while let Some(answer) = answers.message().await? {
        request.response_nonce.clone_from(&answer.nonce);
        request.error_detail = None;
        match read(&answer) {
            Ok(anchors) => {
                backoff.reset();
                request.version_info.clone_from(&answer.version_info);
                tracing::info!(target: "ca", version = answer.version_info, "what is to be trusted has come");
                cache.set_anchors(anchors);
            }
            Err(error) => {
                tracing::warn!(target: "ca", %error, "what is to be trusted stays as it was");
                request.error_detail = Some(proto::google::rpc::Status {
                    code: Code::InvalidArgument as i32,
                    message: error.to_string(),
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

/// A stream as the token's owner, or as that of the certificate in use; its first request is sent.
async fn open(
    client: &CitadelClient,
    first: &DiscoveryRequest,
    current: Option<&Workload>,
) -> Result<(Sender<DiscoveryRequest>, Streaming<DiscoveryResponse>), FetchError> {
    let channel = client.channel(current, None)?;
    let mut discovery =
        SecretDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
    let (requests, stream) = mpsc::channel(2);
    // The channel is new: there is room.
    let _ = requests.try_send(first.clone());
    let mut request = Request::new(ReceiverStream::new(stream));
    client.sign(&mut request, current)?;
    let answers = discovery.stream_secrets(request).await?;
    Ok((requests, answers.into_inner()))
}

fn read(answer: &DiscoveryResponse) -> Result<Anchors, InvalidSecret> {
    let [resource] = answer.resources.as_slice() else {
        return Err(InvalidSecret::Anchors("there is not one of them"));
    };
    let secret: Secret =
        proto::any::unpack(resource).map_err(|_| InvalidSecret::Anchors("they are no secret"))?;
    match &secret.r#type {
        Some(Type::ValidationContext(context)) => Anchors::new(context),
        _ => Err(InvalidSecret::Anchors("they are no validation context")),
    }
}
