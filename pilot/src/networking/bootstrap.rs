//! BDS: what BOOTSTRAP patches say about the bootstrap of a proxy.
//!
//! Istio's Pilot makes the whole bootstrap and merges the patches into it. Here the agent makes it: it asks for the resource
//! [`PATCHES`], which holds all patches merged in their order, and merges that into its own in the same way (protobuf's merge: single
//! fields replaced, messages merged, lists appended). Who names nothing wants a whole bootstrap, and gets no answer.
//!
//! QUIRK: as in Istio the context of such a patch is not looked at, only which proxies it is for.

use prost::Message as _;
use proto::envoy::config::bootstrap::v3::Bootstrap;
use proto::istio::networking::v1alpha3::envoy_filter::ApplyTo;

use super::View;
use crate::push_context::envoy_filters::Value;

/// Type URL of bootstraps.
pub const TYPE_URL: &str = "type.googleapis.com/envoy.config.bootstrap.v3.Bootstrap";
/// The only resource.
pub const PATCHES: &str = "patches";

/// What is to be merged into the proxy's bootstrap, if `name` asks for that.
#[must_use]
pub fn build(view: &View<'_>, name: &str) -> Option<Bootstrap> {
    if name != PATCHES {
        return None;
    }
    let mut encoded = Vec::new();
    for patch in view.patches.of(ApplyTo::Bootstrap) {
        if let Some(Value::Bootstrap(value)) = &patch.value {
            encoded.extend(value.encode_to_vec());
        }
    }
    // Encodings one after the other are the encoding of what they are merged.
    Bootstrap::decode(encoded.as_slice()).ok()
}
