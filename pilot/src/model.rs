//! The nouns of all stages: services, endpoints, the proxy that is configured, and the names that go on the wire.
//!
//! Plain data without behaviour that needs anything else. Mesh resources (VirtualService, …) are not repeated here: behind
//! the edge they travel as [`proto_mesh::Checked`] values.

pub mod credential;
pub mod endpoint;
pub mod mesh;
pub mod name;
pub mod proxy;
pub mod service;

pub use credential::{Credential, Credentials};
pub use endpoint::Endpoint;
pub use mesh::Mesh;
pub use name::{ClusterName, Direction};
pub use proxy::{InterceptionMode, Proxy, ProxyKind};
pub use service::{Protocol, Registry, Resolution, Service, ServiceKey, ServicePort};
