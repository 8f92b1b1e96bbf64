//! What the filter does on a route, put together once for each worker: the attributes that all of its requests share, the header
//! for the next proxy, the client.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use http::HeaderValue;
use proto_mesh::attribute::record::Base;

use crate::http::stream::Stream;
use crate::mixer_client::config::ServiceConfig;
use crate::mixer_client::{Client, FilterKind};

use super::{MixerConfig, request};

/// Profiles that a worker keeps; beyond, it begins anew. There is one for each route of each filter.
const MAX_PROFILES: usize = 4096;

thread_local! {
    /// By the addresses of the configurations that they are made of.
    static PROFILES: RefCell<HashMap<(usize, usize), Rc<Profile>, foldhash::fast::RandomState>> = RefCell::default();
}

/// What is the same for all requests of a route.
pub(super) struct Profile {
    /// What it is made of: nothing else gets these addresses as long as they are held here.
    config: Weak<MixerConfig>,
    service: Option<Weak<ServiceConfig>>,
    /// Who is asked and told, and what all requests share; none where nothing is to be done.
    pub(super) client: Option<(Rc<Client>, Rc<Base>)>,
    /// What tells the next proxy who we are.
    pub(super) forward: Option<HeaderValue>,
}

impl Profile {
    /// The profile of the stream's route, which has this service.
    pub(super) fn of(
        config: &Arc<MixerConfig>,
        service: Option<&Arc<ServiceConfig>>,
        stream: &Stream,
    ) -> Rc<Self> {
        let address = |service: &Arc<ServiceConfig>| Arc::as_ptr(service).addr();
        let key = (Arc::as_ptr(config).addr(), service.map_or(0, address));
        PROFILES.with_borrow_mut(|profiles| {
            let known = profiles.get(&key).filter(|known| !known.is_closed());
            if let Some(known) = known {
                return known.clone();
            }
            profiles.retain(|_, profile| !profile.is_over());
            if profiles.len() >= MAX_PROFILES {
                profiles.clear();
            }
            let profile = Rc::new(Self::new(config, service, stream));
            profiles.insert(key, profile.clone());
            profile
        })
    }

    fn new(
        config: &Arc<MixerConfig>,
        service: Option<&Arc<ServiceConfig>>,
        stream: &Stream,
    ) -> Self {
        let mut attributes = config.own_attributes(stream).clone();
        attributes.merge(&config.attributes);
        let mut forward = config.forward.clone();
        if let Some(service) = service {
            attributes.merge(&service.attributes);
            forward.merge(&service.forward);
        }
        let client = service
            .filter(|service| service.is_checked || service.is_reported)
            .map(|_| Client::of(stream.worker(), &config.transport, FilterKind::Http));
        let client = client.map(|client| {
            let base = client.base(&attributes);
            (client, base)
        });
        Self {
            config: Arc::downgrade(config),
            service: service.map(Arc::downgrade),
            client,
            forward: request::encode_forwarded(&forward),
        }
    }

    /// Its client sends nothing any more.
    fn is_closed(&self) -> bool {
        self.client
            .as_ref()
            .is_some_and(|(client, _)| client.is_closed())
    }

    /// Nobody will ask for it again.
    fn is_over(&self) -> bool {
        let is_gone = |service: &Weak<ServiceConfig>| service.strong_count() == 0;
        self.is_closed()
            || self.config.strong_count() == 0
            || self.service.as_ref().is_some_and(is_gone)
    }
}
