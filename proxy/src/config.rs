//! The configuration in force: what xDS delivered, checked, warmed, and published to the workers.
//!
//! Flow: an [`Update`] of one resource type → checked one by one (a bad one is reported and left out; what was there before it
//! stays) → warming (clusters wait for their endpoints and secrets, listeners for their routes and secrets) → published.
//! [`ConfigStore`] is the only writer.

mod clusters;
mod listeners;
mod routes;
mod store;

pub(crate) use routes::{RouteSlot, RouteSlots};
pub(crate) use store::{ConfigStore, Entry, Wanted};

use prost_types::Any;

/// What a discovery response says about one type.
pub(crate) struct Update {
    /// Whether what is not in it is gone (state of the world of CDS and LDS).
    pub(crate) is_full: bool,
    /// Version of the response.
    pub(crate) version: String,
    /// New or changed resources.
    pub(crate) resources: Vec<Resource>,
    /// Names of resources that are gone.
    pub(crate) removed: Vec<String>,
}

/// One resource of an update.
pub(crate) struct Resource {
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
    /// LDS.
    Listener,
    /// RDS.
    Route,
    /// SDS.
    Secret,
}

impl Kind {
    /// All, in the order in which they are asked for.
    pub(crate) const ALL: [Self; 5] = [
        Self::Cluster,
        Self::Endpoint,
        Self::Secret,
        Self::Listener,
        Self::Route,
    ];

    /// The type URL.
    pub(crate) fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => proto::type_url::CLUSTER,
            Self::Endpoint => proto::type_url::ENDPOINT,
            Self::Listener => proto::type_url::LISTENER,
            Self::Route => proto::type_url::ROUTE,
            Self::Secret => proto::type_url::SECRET,
        }
    }

    /// The kind of a type URL.
    pub(crate) fn of(type_url: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.type_url() == type_url)
    }
}
