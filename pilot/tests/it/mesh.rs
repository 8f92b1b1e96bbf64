//! A Pilot in this process, fed from YAML.

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Command, FromArgMatches as _};
use pilot::config::{Update, file};
use pilot::features::Features;
use pilot::metrics::Metrics;
use pilot::model::Mesh;
use pilot::xds::Discovery;
use pilot::xds::authenticate::Authenticator;
use pilot::xds::discovery::{self, UPDATES};
use pilot::xds::server::Server;
use pilot::xds::stream::StreamLimits;
use proto_component::drain::{self, Drain, Trigger};
use proto_component::grpc::{self, ServerOptions};
use proto_component::listen::{Incoming, Listener};
use proto_component::task;
use proto_component::tls::ServerTls;
use tokio::sync::mpsc;
use tonic::transport::Channel;

/// Long enough for everything that is to come, and waited for only when something is wrong.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running Pilot.
pub(crate) struct Pilot {
    /// Its state.
    pub(crate) discovery: Arc<Discovery>,
    /// A channel to it.
    pub(crate) channel: Channel,
    /// Its port.
    pub(crate) port: u16,
    /// Tells it what has changed.
    pub(crate) updates: mpsc::Sender<Update>,
    /// Ends with it.
    pub(crate) drain: Drain,
    _trigger: Trigger,
}

/// The settings when nothing is said.
pub(crate) fn features() -> Features {
    let matches = Features::augment_args(Command::new("test")).get_matches_from(["test"]);
    Features::from_arg_matches(&matches).unwrap()
}

/// Waits until it is so.
pub(crate) async fn eventually(is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .expect("in time");
}

fn serve(
    discovery: &Arc<Discovery>,
    incoming: Incoming,
    authenticator: Authenticator,
    drain: &Drain,
) {
    let limits = StreamLimits {
        drain: drain.clone(),
        max_age: None,
    };
    let server = Server::new(Arc::clone(discovery), limits, authenticator);
    let drain = drain.clone();
    task::spawn("xds", async move {
        let options = ServerOptions::default();
        grpc::serve(incoming, server.routes(), &options, None, drain).await
    });
}

impl Pilot {
    /// Starts one with this configuration.
    pub(crate) async fn start(yaml: &str) -> Self {
        let pilot = Pilot::start_empty().await;
        pilot.apply(yaml).await;
        pilot
    }

    /// Starts one that knows nothing yet.
    pub(crate) async fn start_empty() -> Self {
        Pilot::start_with(features()).await
    }

    /// The same with other settings.
    pub(crate) async fn start_with(features: Features) -> Self {
        proto_component::tls::install_provider();
        let features = Features {
            debounce_after: Duration::from_millis(1),
            workload_entry_grace_period: Duration::from_millis(1),
            ..features
        };
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let discovery = Discovery::new(features, metrics);
        let (trigger, drain): (Trigger, Drain) = drain::channel();
        let (updates, received) = mpsc::channel(UPDATES);
        let listener = Listener::bind_text("127.0.0.1:0", "--grpcAddr")
            .await
            .unwrap();
        let port = listener.port().unwrap();
        let nobody = Authenticator::default();
        serve(&discovery, listener.plaintext(&drain), nobody, &drain);
        let mesh = Arc::new(Mesh::default());
        task::spawn(
            "discovery",
            discovery::run(
                Arc::clone(&discovery),
                "cluster.local".to_owned(),
                mesh,
                received,
                async {},
                drain.clone(),
            ),
        );
        let channel = grpc::channel(
            &format!("127.0.0.1:{port}"),
            None,
            &grpc::ClientOptions::default(),
        )
        .unwrap();
        Pilot {
            discovery,
            channel,
            port,
            updates,
            drain,
            _trigger: trigger,
        }
    }

    /// Serves with TLS too; the port.
    pub(crate) async fn serve_tls(&self, tls: ServerTls, authenticator: Authenticator) -> u16 {
        let listener = Listener::bind_text("127.0.0.1:0", "--secureGrpcAddr")
            .await
            .unwrap();
        let port = listener.port().unwrap();
        let incoming = listener.tls(tls, &self.drain);
        serve(&self.discovery, incoming, authenticator, &self.drain);
        port
    }

    /// Replaces the configuration and the mesh's settings; returns when they are in force.
    pub(crate) async fn replace(&self, mesh: Mesh, updates: Vec<Update>) {
        let before = self.discovery.current().push.version;
        self.updates
            .send(Update::Mesh(Arc::new(mesh)))
            .await
            .unwrap();
        for update in updates {
            self.updates.send(update).await.unwrap();
        }
        // Quiet time and push: a case that changes nothing has no new version.
        let patience = Duration::from_secs(2);
        let newer = async {
            while self.discovery.current().push.version == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(patience, newer).await;
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
