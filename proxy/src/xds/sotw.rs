//! State of the world: every response carries all resources of its type that were asked for.

use super::{
    Versions, service,
    stream::{Answered, Asked, Incoming, Variant},
};
use crate::{
    config::{Kind, Names, Resource, Update},
    upstream::GrpcChannel,
    wire::duration,
};
use prost_types::Any;
use proto::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{DiscoveryRequest, DiscoveryResponse, Resource as Envelope},
    },
    google::rpc,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

/// Where we are.
#[derive(Default)]
pub(super) struct StateOfTheWorld {
    /// Versions accepted last; they outlive a stream.
    versions: BTreeMap<Kind, String>,
    nonces: BTreeMap<Kind, String>,
    asked: Asked,
}

impl Variant for StateOfTheWorld {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;
    const NAME: &'static str = "state of the world";

    fn open(
        kind: Option<Kind>,
        channel: GrpcChannel,
        request: tonic::Request<ReceiverStream<DiscoveryRequest>>,
    ) -> impl Future<Output = Result<Response<Streaming<DiscoveryResponse>>, Status>> + Send {
        service::open_sotw(kind, channel, request)
    }

    fn begin(&mut self) {
        self.nonces.clear();
        self.asked.clear();
    }

    fn ask(
        &mut self,
        kind: Kind,
        names: Option<&Arc<Names>>,
        _: impl FnOnce() -> Versions,
    ) -> Option<DiscoveryRequest> {
        let before = self.asked.get(&kind);
        let now = match names {
            Some(names) => names.clone(),
            // No names left means none, not all, for the types that are asked for by name.
            None => before.map(|_| Arc::default())?,
        };
        if before == Some(&now) {
            return None;
        }
        self.asked.insert(kind, now);
        Some(self.request(kind, kind.type_url().to_owned()))
    }

    fn read(&mut self, kind: Option<Kind>, response: DiscoveryResponse) -> Incoming {
        let version = response.version_info;
        let kind = Kind::of(&response.type_url).or(kind);
        let mut resources = Vec::with_capacity(response.resources.len());
        let mut lives = Vec::new();
        let mut is_heartbeat = false;
        for any in response.resources {
            let (resource, life) = unwrap(any, &version);
            lives.extend(life);
            match resource {
                Some(resource) => resources.push(resource),
                None => is_heartbeat = true,
            }
        }
        Incoming {
            type_url: response.type_url,
            nonce: response.nonce,
            update: Update {
                // A heartbeat names what lives on and says nothing of the rest.
                is_full: kind.is_some_and(Kind::is_whole_in_sotw) && !is_heartbeat,
                version,
                resources,
                removed: Vec::new(),
                absent: Vec::new(),
            },
            lives,
        }
    }

    fn answer(
        &mut self,
        kind: Kind,
        answered: &Answered,
        error: Option<rpc::Status>,
    ) -> DiscoveryRequest {
        self.nonces.insert(kind, answered.nonce.clone());
        if error.is_none() {
            self.versions.insert(kind, answered.version.clone());
        }
        DiscoveryRequest {
            error_detail: error,
            ..self.request(kind, answered.type_url.clone())
        }
    }

    fn set_node(request: &mut DiscoveryRequest, node: Node) {
        request.node = Some(node);
    }
}

impl StateOfTheWorld {
    fn request(&self, kind: Kind, type_url: String) -> DiscoveryRequest {
        DiscoveryRequest {
            version_info: self.versions.get(&kind).cloned().unwrap_or_default(),
            resource_names: self
                .asked
                .get(&kind)
                .map_or_else(Vec::new, |names| names.sorted()),
            type_url,
            response_nonce: self.nonces.get(&kind).cloned().unwrap_or_default(),
            ..DiscoveryRequest::default()
        }
    }
}

/// A resource may come in an envelope that tells its own version and how long it lives; an empty envelope is a heartbeat.
fn unwrap(any: Any, version: &str) -> (Option<Resource>, Option<(String, Option<Duration>)>) {
    if !proto::any::is::<Envelope>(&any) {
        let resource = Resource {
            name: String::new(),
            aliases: Vec::new(),
            version: version.to_owned(),
            any,
        };
        return (Some(resource), None);
    }
    let Ok(envelope) = proto::any::unpack::<Envelope>(&any) else {
        let resource = Resource {
            name: String::new(),
            aliases: Vec::new(),
            version: version.to_owned(),
            any,
        };
        return (Some(resource), None);
    };
    let life = envelope.ttl.as_ref().and_then(|ttl| duration(ttl).ok());
    let resource = envelope.resource.map(|any| Resource {
        name: envelope.name.clone(),
        aliases: Vec::new(),
        version: envelope.version,
        any,
    });
    (resource, Some((envelope.name, life)))
}
