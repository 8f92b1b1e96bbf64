//! Both ends of MCP against each other over real connections.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails where it cannot go on"
)]

mod churn;
mod protocol;
mod xds;

use proto_component::{
    drain::{self, Drain, Trigger},
    grpc::{ClientOptions, ServerOptions, channel, serve},
    listen::Listener,
    task,
};
use proto_mcp::{
    metrics::McpMetrics,
    sink::{Sink, SinkOptions, Subscription, Update},
    snapshot::{Collection, Snapshot},
    source::Source,
    wire::{Metadata, Resource},
    xds::Xds,
};
use std::{sync::Arc, time::Duration};
use tonic::{service::Routes, transport::Channel};

pub(crate) const GATEWAYS: &str = "istio/networking/v1alpha3/gateways";
pub(crate) const RULES: &str = "istio/networking/v1alpha3/destinationrules";

/// A source that serves on a port of its own.
pub(crate) struct Served {
    pub(crate) source: Source,
    pub(crate) target: String,
    stop: Trigger,
}

impl Served {
    pub(crate) async fn start(address: &str) -> Self {
        let (stop, drain) = drain::channel();
        let known = [GATEWAYS, RULES].map(str::to_owned);
        let metrics = McpMetrics::unregistered("galley");
        let source = Source::new(known, metrics, Arc::new(|_| Ok(())), drain.clone());
        let listener = Listener::bind_text(address, "--server-address")
            .await
            .unwrap();
        let target = listener.address().to_string();
        let types = [(
            "networking.istio.io/v1/Gateway".to_owned(),
            GATEWAYS.to_owned(),
        )];
        let xds = Xds::new(source.clone(), types.into_iter().collect());
        let routes = Routes::new(source.service(1 << 20)).add_service(xds.service(1 << 20));
        let incoming = listener.plaintext(&drain);
        task::spawn("source", async move {
            serve(incoming, routes, &ServerOptions::default(), None, drain).await
        });
        Self {
            source,
            target,
            stop,
        }
    }

    pub(crate) fn channel(&self) -> Channel {
        channel(&self.target, None, &ClientOptions::default()).unwrap()
    }

    pub(crate) fn sink(&self, subscriptions: Vec<Subscription>) -> Sink {
        let options = SinkOptions {
            id: "pilot".into(),
            collections: subscriptions,
            ..SinkOptions::default()
        };
        Sink::dial(
            self.channel(),
            options,
            McpMetrics::unregistered("pilot"),
            Drain::never(),
        )
    }

    /// Ends the server and every stream.
    pub(crate) async fn stop(self) -> String {
        self.stop.drain(Duration::ZERO);
        // The port is free once nobody answers.
        while tokio::net::TcpStream::connect(&self.target).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.target
    }
}

pub(crate) fn resource(name: &str, version: u32) -> Arc<Resource> {
    typed(name, version, "istio.networking.v1alpha3.Gateway")
}

pub(crate) fn typed(name: &str, version: u32, message: &str) -> Arc<Resource> {
    Arc::new(Resource {
        metadata: Some(Metadata {
            name: name.to_owned(),
            version: version.to_string(),
            ..Metadata::default()
        }),
        body: Some(prost_types::Any {
            type_url: format!("type.googleapis.com/{message}"),
            value: Default::default(),
        }),
    })
}

pub(crate) fn gateways(resources: &[(&str, u32)]) -> Arc<Snapshot> {
    let resources = resources
        .iter()
        .map(|(name, version)| resource(name, *version));
    Arc::new(Snapshot::new().with(GATEWAYS, Collection::new(resources)))
}

/// The next update, soon.
pub(crate) async fn next(sink: &Sink) -> Update {
    tokio::time::timeout(Duration::from_secs(60), sink.next())
        .await
        .expect("an update in time")
        .expect("not drained")
}

pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(
        tokio::time::timeout(Duration::from_secs(60), wait)
            .await
            .is_ok(),
        "not in time: {what}"
    );
}
