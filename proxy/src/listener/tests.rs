//! How workers follow the listeners of the process.

use super::run_listeners;
use crate::{
    config::{ConfigStore, Key, Kind, Resource, Update},
    http::testing::{on_worker, server},
    worker::Worker,
    xds::Source,
};
use proto::envoy::config::listener::v3::Listener;
use serde_json::json;
use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};
use tokio::{io::AsyncReadExt as _, net::TcpStream};

/// A listener that greets, bound or reached by hand-over only.
fn greeting(name: &str, is_bound: bool) -> Resource {
    let wire: Listener = proto::json::from_value(&json!({
        "name": name,
        "bind_to_port": is_bound,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [{"name": "d", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config",
            "response": {"inline_string": "hi"}}}]}],
    }))
    .unwrap();
    Resource {
        name: name.to_owned(),
        aliases: Vec::new(),
        version: String::new(),
        any: proto::any::pack(&wire),
    }
}

fn address(store: &ConfigStore, name: &str) -> SocketAddr {
    let map = store.listeners.map();
    map.by_name[name].local_addresses[0]
        .to_string()
        .parse()
        .unwrap()
}

#[test]
fn a_listener_that_comes_as_others_go_is_served() {
    on_worker(async {
        let (trigger, drain) = proto_component::drain::channel();
        let server = server(&[], &trigger, &drain);
        let store = ConfigStore::new(server.clone());
        let worker = Rc::new(Worker::new(0, server));
        tokio::task::spawn_local(run_listeners(worker, store.listeners.clone()));
        let apply = |store: &Arc<ConfigStore>, new: Resource, old: Option<String>| {
            let update = Update {
                resources: vec![new],
                removed: old.into_iter().collect(),
                ..Update::default()
            };
            let key = Key::of(Kind::Listener, Source::Ads);
            store.apply(&key, update).unwrap();
        };
        for round in 0..50 {
            let (old, new) = (format!("old-{round}"), format!("new-{round}"));
            apply(&store, greeting(&old, false), None);
            tokio::task::yield_now().await;
            // The worker sees both at once, and what comes may have the place in memory of what went.
            apply(&store, greeting(&new, true), Some(old));
            let mut stream = TcpStream::connect(address(&store, &new)).await.unwrap();
            let mut greeting = [0; 2];
            let read = stream.read_exact(&mut greeting);
            let read = tokio::time::timeout(Duration::from_secs(30), read).await;
            assert!(read.is_ok_and(|read| read.is_ok()), "round {round}");
        }
    });
}
