//! MCP, the mesh configuration protocol (`istio.mcp.v1alpha1`): collections of resources from a source to its sinks.
//!
//! [`snapshot`] (what there is) → [`source`] (a session for each sink: one response in flight a collection, newer ones
//! coalesce) → wire → [`sink`] (folds full states and increments into a map, the consumer accepts or refuses).
//! [`xds`]: the same collections for those who speak xDS. [`metrics`]: `istio_mcp_*` of both ends. Either end may dial: `ResourceSource` and `ResourceSink` differ in that only.

pub mod metrics;
pub mod sink;
pub mod snapshot;
pub mod source;
pub mod xds;

pub use proto::istio::mcp::v1alpha1 as wire;
