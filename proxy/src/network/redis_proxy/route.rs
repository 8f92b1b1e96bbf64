//! Which cluster a key belongs to, and which host of it: by prefix, then by hash.

use crate::invalid::{At as _, Invalid, try_all};
use bytes::Bytes;
use proto::envoy::extensions::filters::network::redis_proxy::v3::redis_proxy::{
    PrefixRoutes, prefix_routes::Route as WireRoute,
};
use std::sync::Arc;

/// Checked prefix routes.
pub(super) struct Routes {
    /// The longest prefix first.
    routes: Vec<Route>,
    catch_all: Option<Route>,
    ignores_case: bool,
}

/// Where the keys of a prefix go.
pub(super) struct Route {
    prefix: Vec<u8>,
    is_prefix_removed: bool,
    /// The cluster's name.
    pub(super) cluster: Arc<str>,
}

impl TryFrom<&WireRoute> for Route {
    type Error = Invalid;

    fn try_from(wire: &WireRoute) -> Result<Self, Invalid> {
        for (is_set, field) in [
            (
                !wire.request_mirror_policy.is_empty(),
                "request_mirror_policy",
            ),
            (!wire.key_formatter.is_empty(), "key_formatter"),
            (wire.read_command_policy.is_some(), "read_command_policy"),
        ] {
            if is_set {
                return Err(Invalid::new("not supported").at(field));
            }
        }
        if wire.cluster.is_empty() {
            return Err(Invalid::new("it is needed").at("cluster"));
        }
        Ok(Self {
            prefix: wire.prefix.clone().into_bytes(),
            is_prefix_removed: wire.remove_prefix,
            cluster: wire.cluster.as_str().into(),
        })
    }
}

impl TryFrom<&PrefixRoutes> for Routes {
    type Error = Invalid;

    fn try_from(wire: &PrefixRoutes) -> Result<Self, Invalid> {
        let mut routes = try_all("routes", &wire.routes, Route::try_from)?;
        if wire.case_insensitive {
            for route in &mut routes {
                route.prefix.make_ascii_lowercase();
            }
        }
        routes.sort_by_key(|route| std::cmp::Reverse(route.prefix.len()));
        let mut sorted: Vec<_> = routes.iter().map(|route| &route.prefix).collect();
        sorted.sort();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            let prefix = String::from_utf8_lossy(pair[0]);
            return Err(Invalid::new(format!("prefix `{prefix}` already exists.")).at("routes"));
        }
        let catch_all = wire.catch_all_route.as_ref().map(Route::try_from);
        let catch_all = catch_all.transpose().at("catch_all_route")?;
        if routes.is_empty() && catch_all.is_none() {
            return Err(Invalid::new("no routes"));
        }
        Ok(Self {
            routes,
            catch_all,
            ignores_case: wire.case_insensitive,
        })
    }
}

impl Routes {
    /// The route of a key, and the key as the server is to see it.
    pub(super) fn find(&self, key: &Bytes) -> Option<(&Route, Bytes)> {
        let fits = |route: &&Route| {
            key.get(..route.prefix.len()).is_some_and(|start| {
                if self.ignores_case {
                    start.eq_ignore_ascii_case(&route.prefix)
                } else {
                    start == route.prefix
                }
            })
        };
        let route = self.routes.iter().find(fits).or(self.catch_all.as_ref())?;
        let cut = if route.is_prefix_removed {
            route.prefix.len()
        } else {
            0
        };
        Some((route, key.slice(cut..)))
    }
}

/// The part of a key that is hashed: what is between the first braces, if they are not empty.
pub(super) fn hash_tag(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|byte| *byte == b'{') else {
        return key;
    };
    match key[open + 1..].iter().position(|byte| *byte == b'}') {
        Some(length) if length > 0 => &key[open + 1..open + 1 + length],
        _ => key,
    }
}

/// Envoy's hash of keys: MurmurHash2 for 64 bits, with the seed of the C++ library.
pub(super) fn murmur_hash(key: &[u8]) -> u64 {
    const MULTIPLIER: u64 = 0xc6a4_a793_5bd1_e995;
    const SEED: u64 = 0xc70f_6907;
    let mix = |value: u64| value ^ (value >> 47);
    let mut hash = SEED ^ (key.len() as u64).wrapping_mul(MULTIPLIER);
    let (chunks, rest) = key.as_chunks::<8>();
    for chunk in chunks {
        let data =
            mix(u64::from_le_bytes(*chunk).wrapping_mul(MULTIPLIER)).wrapping_mul(MULTIPLIER);
        hash = (hash ^ data).wrapping_mul(MULTIPLIER);
    }
    if !rest.is_empty() {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        hash = (hash ^ u64::from_le_bytes(last)).wrapping_mul(MULTIPLIER);
    }
    mix(mix(hash).wrapping_mul(MULTIPLIER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_wins_and_may_be_removed() {
        let route = |prefix: &str, cluster: &str, remove_prefix| WireRoute {
            prefix: prefix.into(),
            cluster: cluster.into(),
            remove_prefix,
            ..WireRoute::default()
        };
        let routes = Routes::try_from(&PrefixRoutes {
            routes: vec![route("ab", "a", false), route("ABC", "b", true)],
            case_insensitive: true,
            catch_all_route: None,
        })
        .unwrap();
        let find = |key: &'static str| {
            let (route, key) = routes.find(&Bytes::from_static(key.as_bytes()))?;
            Some((
                route.cluster.to_string(),
                String::from_utf8(key.to_vec()).unwrap(),
            ))
        };
        assert_eq!(find("ab:x"), Some(("a".into(), "ab:x".into())));
        assert_eq!(find("Abc:x"), Some(("b".into(), ":x".into())));
        assert_eq!(find("x"), None);
    }

    #[test]
    fn keys_are_hashed_as_envoy_does() {
        assert_eq!(hash_tag(b"{user}.a"), b"user");
        assert_eq!(hash_tag(b"{}.a"), b"{}.a");
        assert_eq!(hash_tag(b"a{b"), b"a{b");
        // From the published values of the C++ library's hash.
        assert_eq!(murmur_hash(b""), 6_142_509_188_972_423_790);
        assert_eq!(murmur_hash(b"a"), 4_993_892_634_952_068_459);
        assert_eq!(murmur_hash(b"abcdefgh"), murmur_hash(b"abcdefgh"));
    }
}
