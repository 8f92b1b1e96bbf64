//! Filter state: values that filters leave for each other by name, of connections and of requests.

mod setter;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::access_log::write_json_text;

pub(crate) use setter::Setters;

/// The cluster that `tcp_proxy` uses.
pub(crate) const CLUSTER: &str = "envoy.tcp_proxy.cluster";
/// How long a connection of `tcp_proxy`'s may be idle.
pub(crate) const IDLE_TIMEOUT: &str = "envoy.tcp_proxy.per_connection_idle_timeout_ms";
/// Where clusters go that ask for the original destination.
pub(crate) const DESTINATION: &str = "envoy.network.transport_socket.original_dst_address";

/// A value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Object {
    /// A text.
    Text(Box<str>),
    /// A truth.
    Bool(bool),
    /// An address without a port.
    Ip(IpAddr),
    /// A cluster's name.
    Cluster(Arc<str>),
    /// An address.
    Address(SocketAddr),
    /// A duration.
    Milliseconds(u64),
}

/// Values by name. There are few of them, mostly none.
#[derive(Clone, Debug, Default)]
pub(crate) struct FilterState(Vec<Entry>);

#[derive(Clone, Debug)]
struct Entry {
    key: Arc<str>,
    value: Object,
    sharing: Sharing,
}

/// Whether the upstream connection gets a value too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// It does not.
    Own,
    /// It does; who comes later with another one may use the same connection.
    Upstream,
    /// It does, and it is for those with the same value only.
    Apart,
}

impl FilterState {
    /// The value of that name.
    pub(crate) fn get(&self, key: &str) -> Option<&Object> {
        let entry = self.0.iter().find(|entry| &*entry.key == key);
        entry.map(|entry| &entry.value)
    }

    /// Takes over all of `other`.
    pub(crate) fn extend(&mut self, other: Self) {
        for entry in other.0 {
            self.set(&entry.key, entry.value, entry.sharing);
        }
    }

    /// Sets a value, in the place of another.
    pub(crate) fn set(&mut self, key: &Arc<str>, value: Object, sharing: Sharing) {
        let entry = Entry {
            key: key.clone(),
            value,
            sharing,
        };
        match self.0.iter_mut().find(|present| present.key == *key) {
            Some(present) => *present = entry,
            None => self.0.push(entry),
        }
    }

    /// What an upstream connection gets of it.
    pub(crate) fn shared(&self) -> Self {
        let shared = |entry: &&Entry| entry.sharing != Sharing::Own;
        Self(self.0.iter().filter(shared).cloned().collect())
    }

    /// What connections are kept apart by.
    pub(crate) fn apart(&self) -> Vec<Object> {
        let apart = |entry: &&Entry| entry.sharing == Sharing::Apart;
        let values = self.0.iter().filter(apart);
        values.map(|entry| entry.value.clone()).collect()
    }
}

impl Object {
    /// What access logs show of it as `PLAIN`.
    pub(crate) fn plain(&self) -> String {
        match self {
            Self::Text(text) => text.to_string(),
            Self::Bool(value) => value.to_string(),
            // QUIRK: with the port that it has not.
            Self::Ip(ip) => SocketAddr::new(*ip, 0).to_string(),
            Self::Cluster(name) => name.to_string(),
            Self::Address(address) => address.to_string(),
            Self::Milliseconds(count) => count.to_string(),
        }
    }

    /// What they show of it as `TYPED`: JSON, of the kinds that have such a form.
    pub(crate) fn json(&self) -> Option<String> {
        match self {
            Self::Text(text) => {
                let mut out = String::new();
                write_json_text(text, &mut out);
                // As Protobuf's own JSON has them.
                Some(out.replace('<', "\\u003c").replace('>', "\\u003e"))
            }
            Self::Bool(value) => Some(value.to_string()),
            // Numbers of 64 bits are texts in Protobuf's JSON.
            Self::Milliseconds(count) => Some(format!("\"{count}\"")),
            Self::Ip(_) | Self::Cluster(_) | Self::Address(_) => None,
        }
    }

    /// One field of it, of the kinds that have fields.
    pub(crate) fn field(&self, name: &str) -> Option<String> {
        match (self, name) {
            (Self::Address(address), "ip") => Some(address.ip().to_string()),
            (Self::Address(address), "port") => Some(address.port().to_string()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_as_envoy_shows_them() {
        let shown = |object: Object| (object.plain(), object.json());
        let text = Object::Text("a\"<".into());
        assert_eq!(
            shown(text),
            ("a\"<".to_owned(), Some("\"a\\\"\\u003c\"".to_owned()))
        );
        assert_eq!(
            shown(Object::Milliseconds(5)),
            ("5".to_owned(), Some("\"5\"".to_owned()))
        );
        assert_eq!(
            shown(Object::Ip("::1".parse().unwrap())),
            ("[::1]:0".to_owned(), None)
        );
        let address = Object::Address("10.0.0.1:80".parse().unwrap());
        assert_eq!(address.field("port").as_deref(), Some("80"));
        assert_eq!(address.field("host"), None);
    }

    #[test]
    fn last_value_counts() {
        let (mut state, key) = (FilterState::default(), Arc::from("k"));
        state.set(&key, Object::Bool(false), Sharing::Upstream);
        state.set(&key, Object::Bool(true), Sharing::Own);
        assert_eq!(state.get("k"), Some(&Object::Bool(true)));
        assert_eq!(state.get("l"), None);
        assert_eq!(state.shared().get("k"), None);
    }

    #[test]
    fn upstream_gets_what_is_shared() {
        let mut state = FilterState::default();
        for (key, sharing) in [
            ("own", Sharing::Own),
            ("told", Sharing::Upstream),
            ("apart", Sharing::Apart),
        ] {
            state.set(&key.into(), Object::Text(key.into()), sharing);
        }
        let shared = state.shared();
        assert!(shared.get("told").is_some() && shared.get("apart").is_some());
        assert_eq!(shared.get("own"), None);
        assert_eq!(shared.apart(), [Object::Text("apart".into())]);
    }
}
