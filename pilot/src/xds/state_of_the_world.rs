//! State-of-the-world streams: every response holds all listeners or clusters, or those route configurations and endpoints
//! that have changed.

use std::collections::BTreeSet;

use proto::envoy::service::discovery::v3::DiscoveryResponse;

use super::discovery::Current;
use super::form::{Form, Planned, WorldRequest, control_plane};
use super::frame::Message;
use super::generate::{Generated, generate, version_text};
use super::name::{Name, Names};
use super::push::PushRequest;
use super::sent::Pools;
use super::watch::{Decision, Watched};
use super::{Connection, ResourceType};
use crate::networking::View;

/// The form.
pub(super) enum StateOfTheWorld {}

impl Form for StateOfTheWorld {
    type Request = WorldRequest;
    const IS_DELTA: bool = false;

    fn decide(
        watched: &mut Watched,
        kind: ResourceType,
        request: &WorldRequest,
        _: bool,
        names: &Names,
    ) -> Decision {
        watched.on_request(kind, request, names)
    }

    fn answer(
        connection: &Connection,
        current: &Current,
        kind: ResourceType,
        names: Option<&[Name]>,
    ) -> Planned {
        let view = View::new(&connection.proxy, &current.push);
        let watches = connection.watches.lock();
        let watched = watches[kind.index()].as_ref();
        let mut resources = match (names, watched) {
            (Some(names), _) if !kind.is_wildcard() => {
                generate(&view, kind, names.iter(), &current.cache)
            }
            // Listeners and clusters are always sent whole.
            (_, Some(watched)) => {
                generate(&view, kind, watched.asked.names().iter(), &current.cache)
            }
            (_, None) => Vec::new(),
        };
        if let Some(watched) = watched {
            resources.retain(|resource| watched.wants(&resource.name));
        }
        Planned {
            kind,
            resources,
            removed: Vec::new(),
        }
    }

    fn plan(
        connection: &Connection,
        current: &Current,
        request: &PushRequest,
        kinds: &[ResourceType],
    ) -> Vec<Planned> {
        let view = View::new(&connection.proxy, &current.push);
        let watches = connection.watches.lock();
        let mut planned = Vec::new();
        // Clusters that change are warmed anew, and wait for their endpoints even if those are the same.
        let mut warming: BTreeSet<Name> = BTreeSet::new();
        for &kind in kinds {
            let Some(watched) = &watches[kind.index()] else {
                continue;
            };
            let names = watched.names_to_push(kind, request);
            let mut resources = generate(&view, kind, names, &current.cache);
            resources.retain(|resource| watched.wants(&resource.name));
            if kind.is_wildcard() {
                let is_same = resources.len() == watched.sent.len()
                    && watched.changed(&resources).next().is_none();
                if is_same {
                    continue;
                }
                if kind == ResourceType::Cluster {
                    warming.extend(
                        watched
                            .changed(&resources)
                            .map(|resource| resource.name.clone()),
                    );
                }
            } else {
                resources.retain(|resource| {
                    let is_warming =
                        kind == ResourceType::Endpoint && warming.contains(&resource.name);
                    is_warming || watched.sent.get(&resource.name) != Some(resource.hash)
                });
                if resources.is_empty() {
                    continue;
                }
            }
            planned.push(Planned {
                kind,
                resources,
                removed: Vec::new(),
            });
        }
        planned
    }

    fn respond(
        watched: &mut Watched,
        planned: &Planned,
        _: &Current,
        number: u64,
        pools: &Pools,
    ) -> Message {
        if planned.kind.is_wildcard() {
            watched.sent.replace(planned.sent(), pools);
        } else {
            watched.sent.change(planned.sent(), &[], pools);
        }
        let version = version_text(watched.sent.fingerprint());
        let nonce = format!("{version}-{number}");
        watched.on_sent(&version, &nonce);
        let head = DiscoveryResponse {
            version_info: version,
            type_url: planned.kind.url().to_owned(),
            nonce,
            control_plane: Some(control_plane()),
            ..DiscoveryResponse::default()
        };
        Message::new(&head, planned.resources.iter().map(Generated::state))
    }
}
