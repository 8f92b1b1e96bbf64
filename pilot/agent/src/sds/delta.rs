//! Delta messages: names come and go one by one, each with its own version.

use std::collections::BTreeMap;

use proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use tonic::Status;

use super::session::{Meaning, Protocol};
use crate::secret::Versioned;

/// The delta protocol.
#[derive(Default)]
pub(super) struct Delta;

impl Protocol for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn read(
        &mut self,
        request: DeltaDiscoveryRequest,
        _: &BTreeMap<String, Option<String>>,
    ) -> Result<Meaning, Status> {
        super::check_type(&request.type_url)?;
        let subscribe = super::check_names(request.resource_names_subscribe)?;
        let unsubscribe = super::check_names(request.resource_names_unsubscribe)?;
        Ok(Meaning {
            subscribe: subscribe.into_iter().collect(),
            unsubscribe: unsubscribe.into_iter().collect(),
            known: request.initial_resource_versions.into_iter().collect(),
            nonce: request.response_nonce,
            error: request.error_detail.map(|status| status.message),
        })
    }

    fn respond(&self, secrets: &[Versioned], nonce: String) -> DeltaDiscoveryResponse {
        let resource = |secret: &Versioned| Resource {
            name: secret.secret.name.clone(),
            version: secret.version.clone(),
            resource: Some(proto::any::pack(&secret.secret)),
            ..Resource::default()
        };
        DeltaDiscoveryResponse {
            resources: secrets.iter().map(resource).collect(),
            type_url: proto::type_url::SECRET.to_owned(),
            nonce,
            ..DeltaDiscoveryResponse::default()
        }
    }
}
