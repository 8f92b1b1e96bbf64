//! The types of resources that Pilot serves.

use proto::type_url;

use crate::networking::bootstrap;

/// One of them, in the order in which they are pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    /// CDS.
    Cluster,
    /// EDS.
    Endpoint,
    /// LDS.
    Listener,
    /// RDS.
    Route,
    /// ECDS: extensions' configurations that listeners refer to.
    Extension,
    /// NDS: the names that the agent's DNS proxy answers.
    NameTable,
    /// SDS: credentials of gateways.
    Secret,
    /// BDS: patches that an agent merges into its proxy's bootstrap.
    Bootstrap,
}

/// How many types there are.
pub const TYPES: usize = 8;

impl ResourceType {
    /// All of them, in push order: what is referred to comes first.
    pub const ALL: [ResourceType; TYPES] = [
        ResourceType::Cluster,
        ResourceType::Endpoint,
        ResourceType::Listener,
        ResourceType::Route,
        ResourceType::Extension,
        ResourceType::NameTable,
        ResourceType::Secret,
        ResourceType::Bootstrap,
    ];

    /// The type with this URL.
    #[must_use]
    pub fn from_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }

    /// The type URL.
    #[must_use]
    pub fn url(self) -> &'static str {
        match self {
            ResourceType::Cluster => type_url::CLUSTER,
            ResourceType::Endpoint => type_url::ENDPOINT,
            ResourceType::Listener => type_url::LISTENER,
            ResourceType::Route => type_url::ROUTE,
            ResourceType::Extension => type_url::EXTENSION_CONFIG,
            ResourceType::NameTable => type_url::NAME_TABLE,
            ResourceType::Secret => type_url::SECRET,
            ResourceType::Bootstrap => bootstrap::TYPE_URL,
        }
    }

    /// As in metrics.
    #[must_use]
    pub fn short_name(self) -> &'static str {
        match self {
            ResourceType::Cluster => "cds",
            ResourceType::Endpoint => "eds",
            ResourceType::Listener => "lds",
            ResourceType::Route => "rds",
            ResourceType::Extension => "ecds",
            ResourceType::NameTable => "nds",
            ResourceType::Secret => "sds",
            ResourceType::Bootstrap => "bds",
        }
    }

    /// As in metrics, for failed sends.
    #[must_use]
    pub fn send_error_name(self) -> &'static str {
        match self {
            ResourceType::Cluster => "cds_senderr",
            ResourceType::Endpoint => "eds_senderr",
            ResourceType::Listener => "lds_senderr",
            ResourceType::Route => "rds_senderr",
            ResourceType::Extension => "ecds_senderr",
            ResourceType::NameTable => "nds_senderr",
            ResourceType::Secret => "sds_senderr",
            ResourceType::Bootstrap => "bds_senderr",
        }
    }

    /// Position in tables by type.
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }

    /// A request is not answered before there is something: Envoy takes an answer without a secret for a mistake, and no agent can
    /// do anything with an answer without a bootstrap.
    #[must_use]
    pub fn is_withheld(self) -> bool {
        matches!(self, ResourceType::Secret | ResourceType::Bootstrap)
    }

    /// Agents ask for it, on streams of their own; proxies never do.
    #[must_use]
    pub fn is_for_agents(self) -> bool {
        matches!(self, ResourceType::NameTable | ResourceType::Bootstrap)
    }

    /// A request without names asks for everything there is.
    #[must_use]
    pub fn is_wildcard(self) -> bool {
        matches!(
            self,
            ResourceType::Cluster | ResourceType::Listener | ResourceType::NameTable
        )
    }
}
