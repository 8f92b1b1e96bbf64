//! The configuration in force: what xDS delivered, checked, warmed, and published to the workers.
//!
//! Flow: an [`Update`] of one resource type → checked one by one (a bad one is reported and left out; what was there before it
//! stays) → warming (clusters wait for their endpoints and secrets, listeners for their routes and secrets) → published.
//! [`ConfigStore`] is the only writer. What is unchanged is not built again: resources are compared as they came. What is to be
//! asked for is counted as clusters come and go, not gathered.

mod clusters;
mod demand;
mod discovered;
mod endpoints;
mod entry;
mod extensions;
mod held;
mod known_clusters;
mod listeners;
mod routes;
mod slots;
mod store;
mod virtual_hosts;
mod wanted;

pub(crate) use demand::{Demand, DemandSource, Found};
pub(crate) use discovered::Discovered;
pub(crate) use entry::{Entry, Raw};
pub(crate) use extensions::{ExtensionSlot, ExtensionSlots};
pub(crate) use routes::{RouteSlot, RouteSlots};
pub(crate) use store::ConfigStore;
pub(crate) use wanted::{Key, Names, Wanted};

use prost_types::Any;
use std::{cell::RefCell, sync::Arc};

/// Slots that a listener uses, and waits for.
#[derive(Default)]
pub(crate) struct UsedSlots {
    /// Route configurations.
    pub(crate) routes: RefCell<Vec<Arc<RouteSlot>>>,
    /// Extensions.
    pub(crate) extensions: RefCell<Vec<Arc<ExtensionSlot>>>,
}

/// What a discovery response says about one type.
#[derive(Default)]
pub(crate) struct Update {
    /// Whether what is not in it is gone (state of the world of CDS and LDS).
    pub(crate) is_full: bool,
    /// Version of the response.
    pub(crate) version: String,
    /// New or changed resources.
    pub(crate) resources: Vec<Resource>,
    /// Names of resources that are gone.
    pub(crate) removed: Vec<String>,
    /// Names that were asked for and stand for nothing (VHDS).
    pub(crate) absent: Vec<String>,
}

/// One resource of an update.
pub(crate) struct Resource {
    /// Its name, where the response tells it beside the message (delta).
    pub(crate) name: String,
    /// Other names under which it may have been asked for (VHDS).
    pub(crate) aliases: Vec<String>,
    /// Its version.
    pub(crate) version: String,
    /// The message.
    pub(crate) any: Any,
}

/// Types of resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// CDS.
    Cluster,
    /// EDS.
    Endpoint,
    /// SDS.
    Secret,
    /// LDS.
    Listener,
    /// RDS.
    Route,
    /// RTDS.
    Runtime,
    /// ECDS.
    Extension,
    /// ODCDS: clusters that requests ask for.
    OnDemandCluster,
    /// VHDS.
    VirtualHost,
}

impl Kind {
    /// All, in the order in which they are asked for.
    pub(crate) const ALL: [Self; 9] = [
        Self::Cluster,
        Self::Endpoint,
        Self::Secret,
        Self::Listener,
        Self::Route,
        Self::Runtime,
        Self::Extension,
        Self::OnDemandCluster,
        Self::VirtualHost,
    ];

    /// Its place in [`Self::ALL`].
    pub(crate) fn index(self) -> usize {
        self as usize
    }

    /// Whether a state-of-the-world response has all that there is, so that the rest is gone.
    pub(crate) fn is_whole_in_sotw(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }

    /// The type URL.
    pub(crate) fn type_url(self) -> &'static str {
        match self {
            Self::Cluster | Self::OnDemandCluster => proto::type_url::CLUSTER,
            Self::Endpoint => proto::type_url::ENDPOINT,
            Self::Listener => proto::type_url::LISTENER,
            Self::Route => proto::type_url::ROUTE,
            Self::Secret => proto::type_url::SECRET,
            Self::Runtime => "type.googleapis.com/envoy.service.runtime.v3.Runtime",
            Self::VirtualHost => "type.googleapis.com/envoy.config.route.v3.VirtualHost",
            Self::Extension => "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
        }
    }

    /// The kind of a type URL; clusters are told apart by the stream that they come on, if at all.
    pub(crate) fn of(type_url: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.type_url() == type_url)
    }
}
