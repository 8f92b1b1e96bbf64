//! Delta streams: every response holds only what has changed, and the names of what is gone.

use std::collections::BTreeSet;

use proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use super::discovery::Current;
use super::form::{Form, Planned, control_plane};
use super::frame::Message;
use super::generate::{Generated, generate};
use super::name::{Name, Names};
use super::push::PushRequest;
use super::sent::Pools;
use super::watch::{Decision, Watched};
use super::{Connection, ResourceType};
use crate::networking::View;

/// The form.
pub(super) enum Delta {}

impl Form for Delta {
    type Request = DeltaDiscoveryRequest;
    const IS_DELTA: bool = true;

    fn decide(
        watched: &mut Watched,
        kind: ResourceType,
        request: &DeltaDiscoveryRequest,
        is_first: bool,
        names: &Names,
    ) -> Decision {
        watched.on_delta_request(kind, request, is_first, names)
    }

    fn answer(
        connection: &Connection,
        current: &Current,
        kind: ResourceType,
        names: Option<&[Name]>,
    ) -> Planned {
        let view = View::new(&connection.proxy, &current.push);
        let watches = connection.watches.lock();
        let empty = Watched::default();
        let watched = watches[kind.index()].as_ref().unwrap_or(&empty);
        match names {
            Some(names) => {
                let mut planned = increment(&view, current, watched, kind, names.iter());
                planned
                    .resources
                    .retain(|resource| !kind.is_wildcard() || names.contains(&resource.name));
                // A name that was asked for and does not exist is answered too, so that nobody waits for it.
                let is_made = |name: &Name| {
                    let mut made = planned.resources.iter();
                    made.any(|resource| resource.name == *name)
                };
                let can_lack = kind.is_wildcard() || kind == ResourceType::Extension;
                planned.removed = names
                    .iter()
                    .filter(|name| can_lack && !is_made(name))
                    .cloned()
                    .collect();
                planned
            }
            None => {
                let names = watched.asked.names().iter();
                increment(&view, current, watched, kind, names)
            }
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
        let mut warming: BTreeSet<Name> = BTreeSet::new();
        for &kind in kinds {
            let Some(watched) = &watches[kind.index()] else {
                continue;
            };
            let names = watched.names_to_push(kind, request);
            let mut increment = increment(&view, current, watched, kind, names);
            if kind == ResourceType::Cluster {
                let changed = increment.resources.iter();
                warming.extend(changed.map(|resource| resource.name.clone()));
            }
            if kind == ResourceType::Endpoint {
                // Clusters that are sent anew are warmed anew, and wait for their endpoints even if those are the same.
                let sent = |name: &&Name| {
                    let mut resources = increment.resources.iter();
                    watched.asked.names().contains(*name)
                        && resources.all(|resource| resource.name != **name)
                };
                let missing: Vec<&Name> = warming.iter().filter(sent).collect();
                let again = generate(&view, kind, missing.into_iter(), &current.cache);
                increment.resources.extend(again);
            }
            let has_removed = increment.removed.iter().any(|name| watched.sent.has(name));
            if !increment.resources.is_empty() || has_removed {
                planned.push(increment);
            }
        }
        planned
    }

    fn respond(
        watched: &mut Watched,
        planned: &Planned,
        current: &Current,
        number: u64,
        pools: &Pools,
    ) -> Message {
        let version = current.push.version.to_string();
        let nonce = format!("{version}-{number}");
        watched.sent.change(planned.sent(), &planned.removed, pools);
        watched.on_sent(&version, &nonce);
        let head = DeltaDiscoveryResponse {
            system_version_info: version,
            type_url: planned.kind.url().to_owned(),
            removed_resources: planned.removed.iter().map(ToString::to_string).collect(),
            nonce,
            control_plane: Some(control_plane()),
            ..DeltaDiscoveryResponse::default()
        };
        Message::new(&head, planned.resources.iter().map(Generated::increment))
    }
}

/// What differs from what the proxy has.
fn increment<'a>(
    view: &View<'_>,
    current: &Current,
    watched: &Watched,
    kind: ResourceType,
    names: impl Iterator<Item = &'a Name>,
) -> Planned {
    let mut resources = generate(view, kind, names, &current.cache);
    resources.retain(|resource| watched.wants(&resource.name));
    let mut removed = Vec::new();
    if kind.is_wildcard() {
        let present: BTreeSet<&Name> = resources.iter().map(|resource| &resource.name).collect();
        let known = watched.sent.names().chain(watched.asked.names());
        let gone: BTreeSet<&Name> = known.filter(|name| !present.contains(name)).collect();
        removed = gone.into_iter().cloned().collect();
    }
    resources.retain(|resource| watched.sent.get(&resource.name) != Some(resource.hash));
    Planned {
        kind,
        resources,
        removed,
    }
}
