//! Delta: a response carries what changed and what is gone.

use super::{
    Versions, service,
    stream::{Answered, Asked, Incoming, Variant, named},
};
use crate::{
    config::{Kind, Names, Resource, Update},
    upstream::GrpcChannel,
    wire::duration,
};
use proto::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    },
    google::rpc,
};
use std::collections::{BTreeMap, BTreeSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

/// Where we are.
#[derive(Default)]
pub(super) struct Delta {
    /// The versions that we have; told to the server when a stream begins.
    versions: BTreeMap<Kind, Versions>,
    asked: Asked,
}

impl Variant for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;
    const NAME: &'static str = "delta";

    fn open(
        kind: Option<Kind>,
        channel: GrpcChannel,
        request: tonic::Request<ReceiverStream<DeltaDiscoveryRequest>>,
    ) -> impl Future<Output = Result<Response<Streaming<DeltaDiscoveryResponse>>, Status>> + Send
    {
        service::open_delta(kind, channel, request)
    }

    fn begin(&mut self) {
        self.asked.clear();
    }

    fn ask(&mut self, kind: Kind, names: Option<&Names>) -> Option<DeltaDiscoveryRequest> {
        let none = Names::Some(BTreeSet::new());
        let before = self.asked.get(&kind);
        let is_new = before.is_none();
        let now = match names {
            Some(names) => names,
            None if is_new => return None,
            None => &none,
        };
        if before == Some(now) {
            return None;
        }
        let known = before.map(named).unwrap_or_default();
        let wanted = named(now);
        let unsubscribe: Vec<String> = known.difference(&wanted).map(ToString::to_string).collect();
        let have = self.versions.entry(kind).or_default();
        for gone in &unsubscribe {
            have.remove(gone);
        }
        let request = DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: wanted.difference(&known).map(ToString::to_string).collect(),
            resource_names_unsubscribe: unsubscribe,
            initial_resource_versions: if is_new {
                have.clone()
            } else {
                BTreeMap::new()
            },
            ..DeltaDiscoveryRequest::default()
        };
        self.asked.insert(kind, now.clone());
        Some(request)
    }

    fn read(&mut self, _: Option<Kind>, response: DeltaDiscoveryResponse) -> Incoming {
        let mut resources = Vec::with_capacity(response.resources.len());
        let mut lives = Vec::new();
        for resource in response.resources {
            if resource.ttl.is_some() || resource.resource.is_none() {
                let life = resource.ttl.as_ref().and_then(|ttl| duration(ttl).ok());
                lives.push((resource.name.clone(), life));
            }
            // Without a resource it is a heartbeat: what is there lives on.
            resources.extend(resource.resource.map(|any| Resource {
                name: resource.name,
                version: resource.version,
                any,
            }));
        }
        Incoming {
            type_url: response.type_url,
            nonce: response.nonce,
            update: Update {
                is_full: false,
                version: response.system_version_info,
                resources,
                removed: response.removed_resources,
            },
            lives,
        }
    }

    fn answer(
        &mut self,
        kind: Kind,
        answered: &Answered,
        error: Option<rpc::Status>,
    ) -> DeltaDiscoveryRequest {
        let have = self.versions.entry(kind).or_default();
        for name in &answered.removed {
            have.remove(name);
        }
        if error.is_none() {
            have.extend(answered.fresh.iter().cloned());
        }
        DeltaDiscoveryRequest {
            type_url: answered.type_url.clone(),
            response_nonce: answered.nonce.clone(),
            error_detail: error,
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn set_node(request: &mut DeltaDiscoveryRequest, node: Node) {
        request.node = Some(node);
    }
}
