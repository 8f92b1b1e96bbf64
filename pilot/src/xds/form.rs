//! The two forms of the protocol, and what their requests and responses have in common.

use std::sync::Arc;

use bytes::Bytes;
use proto::envoy::config::core::v3::{ControlPlane, Node};
use proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use proto::google::rpc::Status;

use super::discovery::Current;
use super::frame::Message;
use super::generate::Generated;
use super::name::{Name, Names};
use super::push::PushRequest;
use super::sent::Pools;
use super::watch::{Decision, Watched};
use super::{Connection, ResourceType};

/// What a request says, in whichever form.
pub(super) struct Said<'a> {
    pub(super) node: Option<&'a Node>,
    pub(super) type_url: &'a str,
    pub(super) nonce: &'a str,
    pub(super) error: Option<&'a Status>,
}

/// A request for the state of the world, as far as it is read. An acknowledgement repeats the name of everything that the proxy
/// follows, thousands of them: the names stay in the frame in which they came.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct WorldRequest {
    #[prost(message, optional, tag = "2")]
    pub(super) node: Option<Node>,
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub(super) resource_names: Vec<Bytes>,
    #[prost(string, tag = "4")]
    pub(super) type_url: String,
    #[prost(string, tag = "5")]
    pub(super) response_nonce: String,
    #[prost(message, optional, tag = "6")]
    pub(super) error_detail: Option<Status>,
}

impl WorldRequest {
    /// The names; what is not text names nothing.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> + Clone {
        let names = self.resource_names.iter();
        names.filter_map(|name| std::str::from_utf8(name).ok())
    }
}

impl<'a> Said<'a> {
    /// What `request` says.
    pub(super) fn of(request: &'a impl Request) -> Self {
        request.said()
    }
}

/// A request, in whichever form.
pub(super) trait Request: prost::Message + Default + 'static {
    fn said(&self) -> Said<'_>;
}

macro_rules! requests {
    ($($request:ty)*) => {
        $(impl Request for $request {
            fn said(&self) -> Said<'_> {
                Said {
                    node: self.node.as_ref(),
                    type_url: &self.type_url,
                    nonce: &self.response_nonce,
                    error: self.error_detail.as_ref(),
                }
            }
        })*
    };
}
requests!(WorldRequest DeltaDiscoveryRequest);

/// One form of the protocol.
pub(super) trait Form: Send + Sync + 'static {
    type Request: Request;
    /// Responses hold increments.
    const IS_DELTA: bool;

    /// Takes a request in.
    fn decide(
        watched: &mut Watched,
        kind: ResourceType,
        request: &Self::Request,
        is_first: bool,
        names: &Names,
    ) -> Decision;

    /// What answers a request for `names`, or for everything that is watched.
    fn answer(
        connection: &Connection,
        current: &Current,
        kind: ResourceType,
        names: Option<&[Name]>,
    ) -> Planned;

    /// What has to be sent of each of `kinds` after a change: nothing, if it is as it was sent last.
    fn plan(
        connection: &Connection,
        current: &Current,
        request: &PushRequest,
        kinds: &[ResourceType],
    ) -> Vec<Planned>;

    /// Takes down what is sent, and writes the response.
    fn respond(
        watched: &mut Watched,
        planned: &Planned,
        current: &Current,
        number: u64,
        pools: &Pools,
    ) -> Message;
}

/// What is to be sent of one type.
pub(super) struct Planned {
    pub(super) kind: ResourceType,
    pub(super) resources: Vec<Generated>,
    /// Names of what is gone.
    pub(super) removed: Vec<Name>,
}

impl Planned {
    /// There is nothing to say.
    pub(super) fn is_empty(&self) -> bool {
        self.resources.is_empty() && self.removed.is_empty()
    }

    /// Names and hashes of the resources.
    pub(super) fn sent(&self) -> impl Iterator<Item = (Name, u64)> + Clone {
        let resources = self.resources.iter();
        resources.map(|resource| (Arc::clone(&resource.name), resource.hash))
    }
}

/// Who answers.
pub(super) fn control_plane() -> ControlPlane {
    ControlPlane {
        identifier: concat!("pilot-", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}
