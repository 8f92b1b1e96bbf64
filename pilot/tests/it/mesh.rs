//! A Pilot in this process, fed from YAML.

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Command, FromArgMatches as _};
use pilot::config::{Update, file};
use pilot::features::Features;
use pilot::metrics::Metrics;
use pilot::model::Mesh;
use pilot::xds::Discovery;
use pilot::xds::discovery::{self, UPDATES};
use pilot::xds::server::Server;
use pilot::xds::stream::StreamLimits;
use proto_component::drain::{self, Drain, Trigger};
use proto_component::grpc::{self, ServerOptions};
use proto_component::listen::Listener;
use proto_component::task;
use tokio::sync::mpsc;
use tonic::transport::Channel;

/// A running Pilot.
pub(crate) struct Pilot {
    /// Its state.
    pub(crate) discovery: Arc<Discovery>,
    /// A channel to it.
    pub(crate) channel: Channel,
    updates: mpsc::Sender<Update>,
    _trigger: Trigger,
}

/// The settings when nothing is said.
pub(crate) fn features() -> Features {
    let matches = Features::augment_args(Command::new("test")).get_matches_from(["test"]);
    Features::from_arg_matches(&matches).unwrap()
}

impl Pilot {
    /// Starts one with this configuration.
    pub(crate) async fn start(yaml: &str) -> Self {
        proto_component::tls::install_provider();
        let features = Features {
            debounce_after: Duration::from_millis(1),
            ..features()
        };
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let discovery = Discovery::new(features, metrics);
        let (trigger, drain): (Trigger, Drain) = drain::channel();
        let (updates, received) = mpsc::channel(UPDATES);
        let listener = Listener::bind_text("127.0.0.1:0", "--grpcAddr")
            .await
            .unwrap();
        let port = listener.port().unwrap();
        let limits = StreamLimits {
            drain: drain.clone(),
            max_age: None,
        };
        let server = Server::new(Arc::clone(&discovery), limits);
        let incoming = listener.plaintext(&drain);
        let serving = drain.clone();
        task::spawn("xds", async move {
            grpc::serve(
                incoming,
                server.routes(),
                &ServerOptions::default(),
                None,
                serving,
            )
            .await
        });
        let mesh = Arc::new(Mesh::default());
        task::spawn(
            "discovery",
            discovery::run(
                Arc::clone(&discovery),
                "cluster.local".to_owned(),
                mesh,
                received,
                async {},
                drain,
            ),
        );
        let channel = grpc::channel(
            &format!("127.0.0.1:{port}"),
            None,
            &grpc::ClientOptions::default(),
        )
        .unwrap();
        let pilot = Pilot {
            discovery,
            channel,
            updates,
            _trigger: trigger,
        };
        pilot.apply(yaml).await;
        pilot
    }

    /// Replaces the configuration.
    pub(crate) async fn apply(&self, yaml: &str) {
        let loaded = file::load([("test.yaml", yaml)].into_iter());
        assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
        for update in loaded.updates {
            self.updates.send(update).await.unwrap();
        }
    }
}
