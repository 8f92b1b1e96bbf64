//! Configuration over MCP: subscribes to every collection that Pilot follows and turns what comes into checked updates.
//!
//! A resource that cannot be decoded or breaks its kind's rules is refused (NACK, with its name and the reason) while the rest
//! of its collection takes effect; what it was before stays in force. When the source goes away, everything stays.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::{Message, Name};
use proto::istio::mcp::v1alpha1::Resource as WireResource;
use proto::istio::mesh::v1alpha1::MeshConfig;
use proto::istio::networking::v1alpha3::{
    DestinationRule, Gateway, ServiceEntry, Sidecar, VirtualService,
};
use proto::istio::security::v1beta1::{
    AuthorizationPolicy, PeerAuthentication, RequestAuthentication,
};
use proto::kind::SYNTHETIC_SERVICE_ENTRIES;
use proto_mcp::sink::{Sink, Subscription};
use proto_mcp::snapshot::Collection;
use proto_mesh::kind::Resource;
use proto_mesh::{Checked, Metadata};
use tokio::sync::mpsc;

use super::Synthetic;
use super::store::{Change, Update};

const VIRTUAL_SERVICES: &str = "istio/networking/v1alpha3/virtualservices";
const DESTINATION_RULES: &str = "istio/networking/v1alpha3/destinationrules";
const GATEWAYS: &str = "istio/networking/v1alpha3/gateways";
const SIDECARS: &str = "istio/networking/v1alpha3/sidecars";
const SERVICE_ENTRIES: &str = "istio/networking/v1alpha3/serviceentries";
const PEER_AUTHENTICATIONS: &str = "istio/security/v1beta1/peerauthentications";
const REQUEST_AUTHENTICATIONS: &str = "istio/security/v1beta1/requestauthentications";
const AUTHORIZATION_POLICIES: &str = "istio/security/v1beta1/authorizationpolicies";

/// What Pilot subscribes to. Collections that Istio 1.4 does not have are optional.
#[must_use]
pub fn subscriptions() -> Vec<Subscription> {
    let required = [
        VIRTUAL_SERVICES,
        DESTINATION_RULES,
        GATEWAYS,
        SIDECARS,
        SERVICE_ENTRIES,
        SYNTHETIC_SERVICE_ENTRIES,
        AUTHORIZATION_POLICIES,
    ];
    let optional = [PEER_AUTHENTICATIONS, REQUEST_AUTHENTICATIONS];
    let required = required.into_iter().map(Subscription::required);
    required
        .chain(optional.into_iter().map(Subscription::optional))
        .collect()
}

/// Everything decoded so far, so that only what changed is decoded again.
#[derive(Default)]
pub struct Decoder {
    virtual_services: Decoded<Checked<VirtualService>>,
    destination_rules: Decoded<Checked<DestinationRule>>,
    gateways: Decoded<Checked<Gateway>>,
    sidecars: Decoded<Checked<Sidecar>>,
    service_entries: Decoded<Checked<ServiceEntry>>,
    synthetic_service_entries: Decoded<Synthetic<ServiceEntry>>,
    peer_authentications: Decoded<Checked<PeerAuthentication>>,
    request_authentications: Decoded<Checked<RequestAuthentication>>,
    authorization_policies: Decoded<Checked<AuthorizationPolicy>>,
}

type Decoded<O> = BTreeMap<String, (Arc<WireResource>, Option<Arc<O>>)>;

impl Decoder {
    /// The state of a collection, and what had to be refused, by name.
    pub fn decode(
        &mut self,
        collection: &str,
        state: &Collection,
    ) -> Option<(Update, Vec<String>)> {
        macro_rules! decode {
            ($field:ident, $variant:ident) => {
                decode!($field, $variant, check)
            };
            ($field:ident, $variant:ident, $check:ident) => {{
                let (change, refused) = decode_all(&mut self.$field, state, $check);
                (Update::$variant(change), refused)
            }};
        }
        Some(match collection {
            VIRTUAL_SERVICES => decode!(virtual_services, VirtualServices),
            DESTINATION_RULES => decode!(destination_rules, DestinationRules),
            GATEWAYS => decode!(gateways, Gateways),
            SIDECARS => decode!(sidecars, Sidecars),
            SERVICE_ENTRIES => decode!(service_entries, ServiceEntries),
            SYNTHETIC_SERVICE_ENTRIES => {
                decode!(synthetic_service_entries, SyntheticServiceEntries, trust)
            }
            PEER_AUTHENTICATIONS => decode!(peer_authentications, PeerAuthentications),
            REQUEST_AUTHENTICATIONS => decode!(request_authentications, RequestAuthentications),
            AUTHORIZATION_POLICIES => decode!(authorization_policies, AuthorizationPolicies),
            _ => return None,
        })
    }
}

fn decode_all<T: Message + Name + Default, O>(
    known: &mut Decoded<O>,
    state: &Collection,
    check: impl Fn(Metadata, T) -> Result<O, String>,
) -> (Change<O>, Vec<String>) {
    let mut refused = Vec::new();
    known.retain(|name, _| state.resources.contains_key(name));
    for (name, resource) in &state.resources {
        if known
            .get(name)
            .is_some_and(|(old, _)| Arc::ptr_eq(old, resource))
        {
            continue;
        }
        let last_good = known.get(name).and_then(|(_, config)| config.clone());
        let config = match decode_one(resource).and_then(|(meta, spec)| check(meta, spec)) {
            Ok(config) => Some(Arc::new(config)),
            Err(reason) => {
                refused.push(format!("{name}: {reason}"));
                last_good
            }
        };
        known.insert(name.clone(), (Arc::clone(resource), config));
    }
    let set = known
        .values()
        .filter_map(|(_, config)| config.clone())
        .collect();
    (
        Change {
            is_full: true,
            set,
            removed: Vec::new(),
        },
        refused,
    )
}

fn decode_one<T: Message + Name + Default>(
    resource: &WireResource,
) -> Result<(Metadata, T), String> {
    let meta = resource
        .metadata
        .as_ref()
        .map(Metadata::from)
        .unwrap_or_default();
    let body = resource.body.as_ref().ok_or("the resource has no body")?;
    let spec: T = proto::any::unpack(body).map_err(|error| error.to_string())?;
    Ok((meta, spec))
}

/// The rules for what users write.
fn check<T: Resource>(meta: Metadata, spec: T) -> Result<Checked<T>, String> {
    Checked::new(meta, spec)
        .map(|(checked, _)| checked)
        .map_err(|invalid| invalid.to_string())
}

/// What Galley made from the platform's objects is taken as it is.
#[allow(clippy::unnecessary_wraps, reason = "stands beside `check`")]
fn trust<T>(meta: Metadata, spec: T) -> Result<Synthetic<T>, String> {
    Ok(Synthetic { meta, spec })
}

/// Receives until the process drains.
pub async fn run(sink: Sink, updates: mpsc::Sender<Update>) {
    let mut decoder = Decoder::default();
    while let Some(update) = sink.next().await {
        let Some((decoded, refused)) = decoder.decode(&update.collection, &update.state) else {
            let reason = format!("collection {} was not asked for", update.collection);
            update.nack(reason);
            continue;
        };
        tracing::debug!(target: "mcp", collection = update.collection, version = update.state.version, resources = update.state.resources.len(), "collection received");
        if updates.send(decoded).await.is_err() {
            return;
        }
        if refused.is_empty() {
            update.ack();
        } else {
            update.nack(refused.join("; "));
        }
    }
}

/// Addresses of the sources that the mesh's settings name.
#[must_use]
pub fn sources(mesh: &MeshConfig) -> Vec<String> {
    mesh.config_sources
        .iter()
        .map(|source| source.address.clone())
        .filter(|address| !address.is_empty())
        .collect()
}
