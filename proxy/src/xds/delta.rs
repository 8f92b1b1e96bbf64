//! Delta: a response carries what changed and what is gone. A stream begins with what is held already, and in which versions.

use super::{
    Versions, service,
    stream::{Answered, Asked, Incoming, Variant},
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
use std::sync::Arc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

/// Where we are.
#[derive(Default)]
pub(super) struct Delta {
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

    fn ask(
        &mut self,
        kind: Kind,
        names: Option<&Arc<Names>>,
        held: impl FnOnce() -> Versions,
    ) -> Option<DeltaDiscoveryRequest> {
        let before = self.asked.get(&kind).cloned();
        let is_new = before.is_none();
        let now = match names {
            Some(names) => names.clone(),
            None if is_new => return None,
            None => Arc::default(),
        };
        if before.as_ref() == Some(&now) {
            return None;
        }
        let known = before.unwrap_or_default();
        let mut have = if is_new { held() } else { Versions::new() };
        // A claim is good only for what is asked for. Virtual hosts have names other than those they are asked for by.
        have.retain(|name, _| kind == Kind::VirtualHost || now.has(name));
        let mut subscribed = now.new_since(&known);
        if is_new && kind == Kind::OnDemandCluster && subscribed.is_empty() {
            // To servers a first request without names asks for all clusters.
            return None;
        }
        if is_new && kind == Kind::VirtualHost && !subscribed.is_empty() {
            // Those that nobody has asked for are wanted besides; a first request without names wants them as well.
            subscribed.insert(0, "*".to_owned());
        }
        let request = DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: subscribed,
            resource_names_unsubscribe: known.missing_in(&now),
            initial_resource_versions: have,
            ..DeltaDiscoveryRequest::default()
        };
        self.asked.insert(kind, now);
        Some(request)
    }

    fn read(&mut self, kind: Option<Kind>, response: DeltaDiscoveryResponse) -> Incoming {
        let mut resources = Vec::with_capacity(response.resources.len());
        let mut lives = Vec::new();
        let mut absent = Vec::new();
        // A stream of one kind need not say it.
        let has_aliases = match &*response.type_url {
            "" => kind == Some(Kind::VirtualHost),
            said => said == Kind::VirtualHost.type_url(),
        };
        for resource in response.resources {
            if has_aliases && resource.resource.is_none() && resource.ttl.is_none() {
                absent.push(resource.name);
                absent.extend(resource.aliases);
                continue;
            }
            if resource.ttl.is_some() || resource.resource.is_none() {
                let life = resource.ttl.as_ref().and_then(|ttl| duration(ttl).ok());
                lives.push((resource.name.clone(), life));
            }
            // Without a resource it is a heartbeat: what is there lives on.
            resources.extend(resource.resource.map(|any| Resource {
                name: resource.name,
                aliases: resource.aliases,
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
                absent,
            },
            lives,
        }
    }

    fn answer(
        &mut self,
        _: Kind,
        answered: &Answered,
        error: Option<rpc::Status>,
    ) -> DeltaDiscoveryRequest {
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
