//! State-of-the-world messages. A request lists all names wanted; those that are new are subscribed, those that are missing
//! are not wanted any more. Requests that answer an old nonce change nothing.

use std::collections::BTreeMap;

use proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use tonic::Status;

use super::session::{Meaning, Protocol};
use crate::secret::Versioned;

/// The state-of-the-world protocol.
#[derive(Default)]
pub(super) struct Sotw;

impl Protocol for Sotw {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn read(
        &mut self,
        request: DiscoveryRequest,
        wanted: &BTreeMap<String, Option<String>>,
    ) -> Result<Meaning, Status> {
        super::check_type(&request.type_url)?;
        let names = super::check_names(request.resource_names)?;
        let unsubscribe = wanted.keys().filter(|name| !names.contains(*name));
        let unsubscribe = unsubscribe.cloned().collect();
        let subscribe = names
            .into_iter()
            .filter(|name| !wanted.contains_key(name))
            .collect();
        Ok(Meaning {
            subscribe,
            unsubscribe,
            known: BTreeMap::new(),
            nonce: request.response_nonce,
            error: request.error_detail.map(|status| status.message),
        })
    }

    fn respond(&self, secrets: &[Versioned], nonce: String) -> DiscoveryResponse {
        response(secrets, nonce)
    }
}

/// A response with these secrets; its version stands for all of theirs.
pub(super) fn response(secrets: &[Versioned], nonce: String) -> DiscoveryResponse {
    let versions: Vec<&str> = secrets
        .iter()
        .map(|secret| secret.version.as_str())
        .collect();
    DiscoveryResponse {
        version_info: versions.join("-"),
        resources: secrets
            .iter()
            .map(|secret| proto::any::pack(&secret.secret))
            .collect(),
        type_url: proto::type_url::SECRET.to_owned(),
        nonce,
        ..DiscoveryResponse::default()
    }
}
