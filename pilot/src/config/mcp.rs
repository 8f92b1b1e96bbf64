//! Configuration over MCP: subscribes to every collection that Pilot follows and turns what comes into checked updates.
//!
//! A resource that cannot be decoded or breaks its kind's rules is refused (NACK, with its name and the reason) while the rest
//! of its collection takes effect; what it was before stays in force. When the source goes away, everything stays.

use std::path::PathBuf;
use std::sync::Arc;

use prost::{Message, Name};
use proto::istio::mcp::v1alpha1::Resource as WireResource;
use proto::istio::mesh::v1alpha1::{ConfigSource, MeshConfig};
use proto::istio::networking::v1alpha3::client_tls_settings::TlSmode;
use proto_component::tls::{ClientTls, PemFiles, ServerIdentity, TlsError};
use proto_mcp::sink::{Sink, Subscription};
use proto_mcp::snapshot::Collection;
use proto_mesh::{Checked, Metadata};
use tokio::sync::mpsc;

use super::by_name::ByName;
use super::kinds::for_each_kind;
use super::store::{Change, Kind, Update};
use super::{Object, Synthetic};

macro_rules! define {
    ($($field:ident $update:ident $kind:ident $wrapper:ident $message:ty, $manifest:literal $collection:literal $need:ident;)*) => {
        /// What Pilot subscribes to; the platform's services only if they come this way. Collections that a source of the 1.4 line
        /// may not have are optional.
        #[must_use]
        pub fn subscriptions(has_services: bool) -> Vec<Subscription> {
            let mut all = Vec::new();
            $(if has_services || Kind::$kind != Kind::SyntheticServiceEntry {
                all.push(Subscription::$need($collection));
            })*
            all
        }

        /// Everything decoded so far, so that only what changed is decoded again.
        #[derive(Default)]
        pub struct Decoder {
            $($field: Decoded<$wrapper<$message>>,)*
        }

        impl Decoder {
            /// The state of a collection, and what had to be refused, by name.
            pub fn decode(&mut self, collection: &str, state: &Collection) -> Option<(Update, Vec<String>)> {
                match collection {
                    $($collection => {
                        let (change, refused) = decode_all(&mut self.$field, state);
                        Some((Update::$update(change), refused))
                    })*
                    _ => None,
                }
            }
        }
    };
}
for_each_kind!(define);

type Decoded<O> = ByName<(Arc<WireResource>, Option<Arc<O>>)>;

fn decode_all<O: Object>(known: &mut Decoded<O>, state: &Collection) -> (Change<O>, Vec<String>) {
    let mut refused = Vec::new();
    let names = known
        .names()
        .filter(|name| !state.resources.contains_key(*name));
    let gone: Vec<String> = names.map(ToOwned::to_owned).collect();
    for name in gone {
        known.remove(&name);
    }
    for (name, resource) in &state.resources {
        if known
            .get(name)
            .is_some_and(|(old, _)| Arc::ptr_eq(old, resource))
        {
            continue;
        }
        let last_good = known.get(name).and_then(|(_, config)| config.clone());
        let accept = |(meta, spec)| O::accept(meta, spec).map_err(|refused| refused.to_string());
        let config = match decode_one(resource).and_then(accept) {
            Ok(config) => Some(Arc::new(config)),
            Err(reason) => {
                refused.push(format!("{name}: {reason}"));
                last_good
            }
        };
        known.insert(name, (Arc::clone(resource), config));
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

/// Receives until the process drains.
pub async fn run(sink: Sink, updates: mpsc::Sender<Update>) {
    let mut decoder = Decoder::default();
    while let Some(update) = sink.next().await {
        let Some((decoded, refused)) = decoder.decode(&update.collection, &update.state) else {
            let reason = format!("collection {} was not asked for", update.collection);
            update.nack(reason);
            continue;
        };
        tracing::debug!(target: "mcp", collection = update.collection, version = update.state.version, resources = update.state.resources.size(), "collection received");
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

/// The sources that the mesh's settings name.
#[must_use]
pub fn sources(mesh: &MeshConfig) -> Vec<&ConfigSource> {
    let sources = mesh.config_sources.iter();
    sources
        .filter(|source| !source.address.is_empty())
        .collect()
}

/// TLS towards a source; none for plain text. Files that its settings do not name are those of `own`, and a source under the
/// mesh's mutual TLS must be Galley (`galley` is its identity) unless they name somebody else.
///
/// # Errors
/// When the settings are none for a source, or the files unusable.
pub fn source_tls(
    source: &ConfigSource,
    own: &PemFiles,
    galley: &str,
) -> Result<Option<ClientTls>, String> {
    let Some(settings) = &source.tls_settings else {
        return Ok(None);
    };
    let or = |given: &str, own: &Option<PathBuf>| match given {
        "" => own.clone(),
        given => Some(given.into()),
    };
    let files = match settings.mode() {
        TlSmode::Disable => return Ok(None),
        TlSmode::IstioMutual => own.clone(),
        TlSmode::Mutual => PemFiles {
            chain: or(&settings.client_certificate, &own.chain),
            key: or(&settings.private_key, &own.key),
            roots: or(&settings.ca_certificates, &own.roots),
            ..PemFiles::default()
        },
        TlSmode::Simple => PemFiles {
            roots: or(&settings.ca_certificates, &own.roots),
            ..PemFiles::default()
        },
    };
    let identity = match settings.subject_alt_names.as_slice() {
        [] if settings.mode() == TlSmode::IstioMutual => {
            ServerIdentity::AnyOf(vec![galley.to_owned()])
        }
        [] => ServerIdentity::Name,
        names => ServerIdentity::AnyOf(names.to_vec()),
    };
    let tls = ClientTls::from_files(files, identity, &["h2"]).map_err(|error| describe(&error))?;
    let sni = settings.sni.as_str();
    let tls = if sni.is_empty() {
        tls
    } else {
        tls.with_server_name(sni)
            .map_err(|error| describe(&error))?
    };
    Ok(Some(tls))
}

fn describe(error: &TlsError) -> String {
    use std::error::Error as _;
    let cause = error.source().map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}
