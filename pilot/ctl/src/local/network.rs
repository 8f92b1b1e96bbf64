//! The mesh's network: a node namespace that routes between the pods' namespaces, cluster addresses, names, and the ports
//! that are handed out on the host.
//!
//! Every pod hangs on the node by its own point-to-point link (no bridge: packets between pods are routed, so that the
//! node's address translation sees both directions). Nothing of this appears in the host's own namespace: namespaces are
//! kept alive by open files, and vanish with the process. Where there are no namespaces, pods share the machine's network and
//! have loopback addresses ([`plan`]).

pub(crate) mod dns;
pub(crate) mod forward;
pub(crate) mod namespace;
pub(crate) mod node;
pub(crate) mod plan;
pub(crate) mod service_proxy;
