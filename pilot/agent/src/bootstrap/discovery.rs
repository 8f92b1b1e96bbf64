//! BDS: what EnvoyFilters say about the bootstrap (`applyTo: BOOTSTRAP`), from Pilot, for a proxy that is to have it
//! (`BOOTSTRAP_XDS_AGENT`).
//!
//! As in Istio such a proxy does not start without: the agent asks again and again until Pilot answers, with longer and longer pauses,
//! and later changes wait for the proxy's next start. Istio's Pilot sends the whole bootstrap; here the agent makes it and asks, by
//! the name [`PATCHES`], for what is to be merged into it. Another control plane does not know the name: what it sends is refused.

use std::time::Duration;

use prost::{DecodeError, Message as _};
use proto::envoy::config::bootstrap::v3::Bootstrap;
use proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use proto_component::backoff::Backoff;

use crate::discovery::{Pilot, StreamError};

const BOOTSTRAP: &str = "type.googleapis.com/envoy.config.bootstrap.v3.Bootstrap";
/// The resource that is asked for.
const PATCHES: &str = "patches";
/// How long an answer may take: Pilot lets streams wait for their turn.
const ANSWER: Duration = Duration::from_secs(30);
const FIRST_RETRY: Duration = Duration::from_millis(500);
const RETRY_CAP: Duration = Duration::from_secs(30);

/// Why there is nothing to merge.
#[derive(Debug, thiserror::Error)]
enum NoPatches {
    /// No stream, or no longer.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// Pilot says nothing.
    #[error("no answer within {} s", ANSWER.as_secs())]
    Late,
    /// The stream has ended without an answer.
    #[error("the stream has ended")]
    Ended,
    /// What came is not one bootstrap.
    #[error("the answer holds {0} resources of type {1:?}")]
    Unexpected(usize, String),
    /// It cannot be read.
    #[error("the answer cannot be read: {0}")]
    Encoding(#[from] DecodeError),
    /// It is a bootstrap for another agent.
    #[error("the answer is a whole bootstrap, and not what is to be merged into one")]
    Whole,
}

/// Merges into `bootstrap` what Pilot says; asks until it has answered.
pub(crate) async fn patch(bootstrap: &mut Bootstrap, pilot: &Pilot) {
    let mut backoff = Backoff::new(FIRST_RETRY, RETRY_CAP);
    loop {
        let answered = tokio::time::timeout(ANSWER, ask(pilot)).await;
        match answered.unwrap_or(Err(NoPatches::Late)) {
            Ok(patches) => {
                let is_empty = patches.is_empty();
                // Encodings one after the other are the encoding of what they are merged.
                if bootstrap.merge(patches.as_slice()).is_ok() {
                    tracing::info!(target: "ads", is_empty, "the bootstrap is as Pilot wants it");
                    return;
                }
            }
            Err(reason) => {
                tracing::warn!(target: "ads", %reason, "the proxy waits for Pilot's patches of its bootstrap");
            }
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

async fn ask(pilot: &Pilot) -> Result<Vec<u8>, NoPatches> {
    let request = DiscoveryRequest {
        type_url: BOOTSTRAP.to_owned(),
        resource_names: vec![PATCHES.to_owned()],
        ..DiscoveryRequest::default()
    };
    let mut stream = pilot.open(request).await?;
    let answer = stream.answers.message().await.map_err(StreamError::from)?;
    read(answer.ok_or(NoPatches::Ended)?)
}

/// The encoded patches.
fn read(answer: DiscoveryResponse) -> Result<Vec<u8>, NoPatches> {
    let [resource] = answer.resources.as_slice() else {
        return Err(NoPatches::Unexpected(
            answer.resources.len(),
            answer.type_url,
        ));
    };
    if resource.type_url != BOOTSTRAP {
        return Err(NoPatches::Unexpected(1, resource.type_url.clone()));
    }
    // A patch has no reason to say whose bootstrap it is.
    if Bootstrap::decode(resource.value.as_slice())?.node.is_some() {
        return Err(NoPatches::Whole);
    }
    Ok(resource.value.clone())
}
