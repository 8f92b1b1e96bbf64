//! What one stream has asked for of one type, what it was sent, and what it said to that.

use std::collections::BTreeSet;

use proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;

use super::ResourceType;
use super::form::WorldRequest;
use super::generate::Generated;
use super::name::{Name, Names};
use super::push::PushRequest;
use super::sent::{Asked, Sent};
use crate::networking::endpoint::LOCAL_CLUSTER;

/// The state of one type on one stream.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    /// What was asked for by name.
    pub asked: Asked,
    /// Everything was asked for.
    pub is_wildcard: bool,
    /// Nonce of the last response.
    pub nonce_sent: String,
    /// Nonce of the last response that was accepted.
    pub nonce_acked: String,
    /// Nonce of the last response that was refused, if none has been accepted since.
    pub nonce_rejected: String,
    /// Version of the last response.
    pub version_sent: String,
    /// Version of the last response that was accepted.
    pub version_acked: String,
    /// Why the last response was refused.
    pub error: String,
    /// What was sent last.
    pub sent: Sent,
}

/// What a request asks us to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing.
    Nothing,
    /// It answers an older response.
    Stale,
    /// Remember a refusal.
    Rejected,
    /// Answer, whether anything has changed or not.
    Respond,
    /// Answer with these.
    RespondWith(BTreeSet<Name>),
}

impl Watched {
    /// The resources that differ from what was sent last.
    pub(super) fn changed<'a>(
        &'a self,
        resources: &'a [Generated],
    ) -> impl Iterator<Item = &'a Generated> {
        resources
            .iter()
            .filter(|resource| self.sent.get(&resource.name) != Some(resource.hash))
    }

    /// The names of this type whose resources may have changed.
    pub(super) fn names_to_push<'a>(
        &'a self,
        kind: ResourceType,
        request: &'a PushRequest,
    ) -> Box<dyn Iterator<Item = &'a Name> + 'a> {
        if kind == ResourceType::Endpoint && request.is_endpoints_only() {
            let own = self.asked.names().get(LOCAL_CLUSTER);
            Box::new(self.asked.of_hosts(&request.hosts).chain(own))
        } else {
            Box::new(self.asked.names().iter())
        }
    }

    /// Takes a state-of-the-world request in.
    pub(super) fn on_request(
        &mut self,
        kind: ResourceType,
        request: &WorldRequest,
        known: &Names,
    ) -> Decision {
        let is_first = request.response_nonce.is_empty() || self.nonce_sent.is_empty();
        if request.error_detail.is_none() && is_first {
            // The first request of the stream; a nonce can only be of an earlier stream.
            *self = Watched::default();
            self.subscribe(kind, request.names(), known);
            return Decision::Respond;
        }
        if request.response_nonce != self.nonce_sent {
            return Decision::Stale;
        }
        if let Some(error) = &request.error_detail {
            self.nonce_rejected.clone_from(&request.response_nonce);
            self.error.clone_from(&error.message);
            return Decision::Rejected;
        }
        self.accept(&request.response_nonce);
        if self.asked.is(&request.resource_names) {
            return Decision::Nothing;
        }
        let names = interned(request.names(), known);
        let added: BTreeSet<Name> = names.difference(self.asked.names()).cloned().collect();
        if !self.is_wildcard {
            self.sent.retain(|name| names.contains(name), &known.pools);
        }
        self.asked.set(names, &known.pools);
        if self.is_wildcard || added.is_empty() {
            Decision::Nothing
        } else {
            Decision::RespondWith(added)
        }
    }

    /// Takes a delta request in.
    pub fn on_delta_request(
        &mut self,
        kind: ResourceType,
        request: &DeltaDiscoveryRequest,
        is_first: bool,
        known: &Names,
    ) -> Decision {
        let mut decision = Decision::Nothing;
        if !request.response_nonce.is_empty() && !is_first {
            if request.response_nonce != self.nonce_sent {
                // Several responses may be under way; only subscriptions count in an older answer.
                decision = Decision::Stale;
            } else if let Some(error) = &request.error_detail {
                self.nonce_rejected.clone_from(&request.response_nonce);
                self.error.clone_from(&error.message);
                decision = Decision::Rejected;
            } else {
                self.accept(&request.response_nonce);
            }
        }
        if is_first {
            // What the client has from an earlier stream; versions that are not ours only differ.
            let versions = request.initial_resource_versions.iter();
            let sent = versions.map(|(name, version)| {
                let hash = u64::from_str_radix(version, 16).unwrap_or(0);
                (known.intern(name), hash)
            });
            self.sent.replace(sent, &known.pools);
        }
        let unsubscribed = &request.resource_names_unsubscribe;
        if unsubscribed.iter().any(|name| name == "*") {
            self.is_wildcard = false;
        }
        if is_first {
            self.subscribe(kind, texts(&request.resource_names_subscribe), known);
            return Decision::Respond;
        }
        let subscribed = interned(texts(&request.resource_names_subscribe), known);
        let wants_all = texts(&request.resource_names_subscribe).any(|name| name == "*");
        if !subscribed.is_empty() || !unsubscribed.is_empty() {
            let added = subscribed.iter().cloned();
            self.asked.change(added, unsubscribed, &known.pools);
        }
        if !self.is_wildcard && !unsubscribed.is_empty() {
            let gone: Vec<Name> = unsubscribed
                .iter()
                .map(|name| name.as_str().into())
                .collect();
            self.sent.change(std::iter::empty(), &gone, &known.pools);
        }
        self.is_wildcard |= wants_all;
        if wants_all {
            return Decision::Respond;
        }
        if subscribed.is_empty() {
            return decision;
        }
        // Who asks again has lost what he had.
        let lost: Vec<Name> = subscribed.iter().cloned().collect();
        self.sent.change(std::iter::empty(), &lost, &known.pools);
        Decision::RespondWith(subscribed)
    }

    fn subscribe<'a>(
        &mut self,
        kind: ResourceType,
        given: impl Iterator<Item = &'a str> + Clone,
        known: &Names,
    ) {
        let is_empty = given.clone().next().is_none();
        let wants_all = is_empty || given.clone().any(|name| name == "*");
        self.is_wildcard = kind.is_wildcard() && wants_all;
        self.asked.set(interned(given, known), &known.pools);
    }

    fn accept(&mut self, nonce: &str) {
        nonce.clone_into(&mut self.nonce_acked);
        self.version_acked.clone_from(&self.version_sent);
        self.nonce_rejected.clear();
        self.error.clear();
    }

    /// Notes a response.
    pub fn on_sent(&mut self, version: &str, nonce: &str) {
        version.clone_into(&mut self.version_sent);
        nonce.clone_into(&mut self.nonce_sent);
    }

    /// True when `name` is asked for.
    #[must_use]
    pub fn wants(&self, name: &str) -> bool {
        self.is_wildcard || self.asked.names().contains(name)
    }
}

fn texts(names: &[String]) -> impl Iterator<Item = &str> + Clone {
    names.iter().map(String::as_str)
}

fn interned<'a>(names: impl Iterator<Item = &'a str>, known: &Names) -> BTreeSet<Name> {
    let named = names.filter(|name| *name != "*");
    named.map(|name| known.intern(name)).collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn request(nonce: &str, names: &[&str]) -> WorldRequest {
        WorldRequest {
            response_nonce: nonce.to_owned(),
            resource_names: names
                .iter()
                .map(|name| Bytes::copy_from_slice(name.as_bytes()))
                .collect(),
            ..WorldRequest::default()
        }
    }

    fn set(names: &[&str]) -> BTreeSet<Name> {
        names.iter().map(|name| Name::from(*name)).collect()
    }

    #[test]
    fn first_request_is_answered_and_acks_are_not() {
        let mut watched = Watched::default();
        assert_eq!(
            watched.on_request(
                ResourceType::Endpoint,
                &request("", &["a"]),
                &Names::default()
            ),
            Decision::Respond
        );
        watched.on_sent("v1", "n1");
        assert_eq!(
            watched.on_request(
                ResourceType::Endpoint,
                &request("n1", &["a"]),
                &Names::default()
            ),
            Decision::Nothing
        );
        assert_eq!(watched.version_acked, "v1");
    }

    #[test]
    fn added_names_are_answered_alone_and_old_nonces_ignored() {
        let mut watched = Watched::default();
        watched.on_request(
            ResourceType::Endpoint,
            &request("", &["a"]),
            &Names::default(),
        );
        watched.on_sent("v1", "n1");
        let added = watched.on_request(
            ResourceType::Endpoint,
            &request("n1", &["a", "b"]),
            &Names::default(),
        );
        assert_eq!(added, Decision::RespondWith(set(&["b"])));
        watched.on_sent("v2", "n2");
        assert_eq!(
            watched.on_request(
                ResourceType::Endpoint,
                &request("n1", &["a", "c"]),
                &Names::default()
            ),
            Decision::Stale
        );
        assert_eq!(*watched.asked.names(), set(&["a", "b"]));
    }

    #[test]
    fn refusals_are_remembered_until_something_is_accepted() {
        let mut watched = Watched::default();
        watched.on_request(ResourceType::Cluster, &request("", &[]), &Names::default());
        watched.on_sent("v1", "n1");
        let mut refusal = request("n1", &[]);
        refusal.error_detail = Some(proto::google::rpc::Status {
            message: "bad".to_owned(),
            ..Default::default()
        });
        assert_eq!(
            watched.on_request(ResourceType::Cluster, &refusal, &Names::default()),
            Decision::Rejected
        );
        assert_eq!(
            (watched.nonce_rejected.as_str(), watched.error.as_str()),
            ("n1", "bad")
        );
        watched.on_sent("v2", "n2");
        watched.on_request(
            ResourceType::Cluster,
            &request("n2", &[]),
            &Names::default(),
        );
        assert!(watched.nonce_rejected.is_empty());
    }

    #[test]
    fn delta_subscriptions_add_up() {
        let mut watched = Watched::default();
        let first = DeltaDiscoveryRequest {
            resource_names_subscribe: vec!["a".into()],
            ..Default::default()
        };
        assert_eq!(
            watched.on_delta_request(ResourceType::Route, &first, true, &Names::default()),
            Decision::Respond
        );
        let more = DeltaDiscoveryRequest {
            resource_names_subscribe: vec!["b".into()],
            ..Default::default()
        };
        assert_eq!(
            watched.on_delta_request(ResourceType::Route, &more, false, &Names::default()),
            Decision::RespondWith(set(&["b"]))
        );
        let less = DeltaDiscoveryRequest {
            resource_names_unsubscribe: vec!["a".into()],
            ..Default::default()
        };
        assert_eq!(
            watched.on_delta_request(ResourceType::Route, &less, false, &Names::default()),
            Decision::Nothing
        );
        assert_eq!(*watched.asked.names(), set(&["b"]));
    }
}
