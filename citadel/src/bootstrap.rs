//! Builds Citadel's parts in the order in which they need each other, binds its ports, starts its tasks.

mod authority;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use proto::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryServiceServer;
use proto::istio::v1::auth::istio_ca_service_server::IstioCaServiceServer;
use proto::istio::v1::auth::istio_certificate_service_server::IstioCertificateServiceServer;
use proto_component::args::Address;
use proto_component::drain::Drain;
use proto_component::grpc::{self, GrpcMetrics, ServerOptions};
use proto_component::kubernetes::lease::{self, Leadership};
use proto_component::listen::{Incoming, Listener};
use proto_component::monitoring::Monitoring;
use proto_component::process::{Process, Usage};
use proto_component::readiness::Condition;
use proto_component::task;
use tokio::sync::Notify;

use crate::admin::Admin;
use crate::args::ServeArgs;
use crate::authenticate::KeyRing;
use crate::authorize::Impersonators;
use crate::ca::{CertificateAuthority, TtlRules};
use crate::features::Features;
use crate::kubernetes::{self, RootConfigMaps, SharedRevocations, WorkloadSecrets};
use crate::ledger::{Ledger, Writer};
use crate::metrics::{Metrics, SecretMetrics};
use crate::pki::Validity;
use crate::probe;
use crate::revocation::Revocations;
use crate::root_file;
use crate::server::{
    CertificateService, MAX_MESSAGE, OwnCertificate, Rules, StreamLimits, TrustDiscovery,
    with_deadline,
};
use crate::store;
use crate::trust::Trust;

use authority::{Authority, authenticators, authority, key_ring};

/// The Lease of whoever of several replicas writes to the cluster.
const LEASE: &str = "istio-citadel";

/// Everything built and bound, nothing started.
pub struct Citadel {
    process: Process,
    serving: Condition,
    keys_loaded: Condition,
    args: ServeArgs,
    authority: Authority,
    trust: Arc<Trust>,
    admin: Admin,
    cluster: Option<kube::Client>,
    secrets: Option<WorkloadSecrets>,
    keys: Option<Arc<KeyRing>>,
    own: Arc<OwnCertificate>,
    writer: Writer,
    metrics: Metrics,
    service: CertificateService,
    listener: Option<Listener>,
}

impl Citadel {
    /// Opens the store, makes or loads the CA, binds the ports.
    pub async fn new(
        process: &Process,
        args: &ServeArgs,
        features: &Features,
    ) -> anyhow::Result<Self> {
        // Declared before anybody can ask on the monitoring port.
        let serving = process.readiness.condition("serving");
        let keys_loaded = process.readiness.condition("token issuer's keys");
        let store = store::open(&args.data_dir).await?;
        let cluster = kubernetes::client(args.kube_config.as_deref()).await?;
        let authority = authority(&store, args, features, cluster.as_ref()).await?;
        let ca = authority.ca();
        let (ledger, writer) = Ledger::open(&store, args.ledger_retention)?;
        match ledger.verify() {
            Ok(count) => tracing::info!(target: "ca", count, "the ledger is as it was written"),
            // What it has is still shown, and new entries are still made.
            Err(error) => tracing::error!(target: "ca", %error, "the ledger is damaged"),
        }
        let revocations = Revocations::open(&store)?;
        let trust = Arc::new(Trust::new(ca.clone(), revocations.clone())?);
        let shared =
            shared_revocations(args, cluster.as_ref(), &revocations, &ledger, &trust).await?;
        let metrics = Metrics::new(&process.registry)?;
        let keys = key_ring(args)?.map(Arc::new);
        let own = OwnCertificate::new(ca.clone(), &args.host_names(), args.max_workload_cert_ttl)
            .context("mint the server certificate")?;
        let service = CertificateService::new(
            ca.clone(),
            authenticators(args, &revocations, keys.as_ref(), cluster.as_ref()),
            rules(args, features)?,
            ledger.clone(),
            revocations.clone(),
            metrics.clone(),
        );
        let secrets = match &cluster {
            Some(client) if !args.server_only => Some(WorkloadSecrets::new(
                client.clone(),
                ca.clone(),
                ledger.clone(),
                revocations.clone(),
                trust.watch(),
                args.secret_settings(features)?,
                SecretMetrics::new(&process.registry)?,
            )),
            _ => None,
        };
        let admin = Admin {
            ledger,
            revocations,
            trust: trust.clone(),
            shared,
            root: authority.root(),
        };
        let listener = match args.grpc_port {
            // QUIRK: Istio turns the CSR service off with a port that is not positive.
            0 => None,
            port => {
                let address = Address::Tcp((args.grpc_address, port).into());
                Some(Listener::bind(&address, "--grpc-port").await?)
            }
        };
        publish_root(&trust, args, &metrics, &ca)?;
        Monitoring::new(process)
            .bind(&format!(":{}", args.monitoring_port), "--monitoring-port")
            .await?
            .start(process);
        Ok(Self {
            process: process.clone(),
            serving,
            keys_loaded,
            args: args.clone(),
            authority,
            trust,
            admin,
            cluster,
            secrets,
            keys,
            own: Arc::new(own),
            writer,
            metrics,
            service,
            listener,
        })
    }

    /// Serves until the drain.
    pub async fn run(self) -> anyhow::Result<()> {
        let drain = &self.process.drain;
        let ignored = self.args.ignored.given();
        if !ignored.is_empty() {
            tracing::warn!(target: "ca", flags = ?ignored, "flags without effect here");
        }
        task::spawn_drained("ledger", self.writer.run(drain.clone()));
        if let Some(keys) = self.keys {
            let (loaded, drain) = (self.keys_loaded, drain.clone());
            task::spawn(
                "jwks",
                async move { keys.run(drain, || loaded.set()).await },
            );
        } else {
            self.keys_loaded.set();
            if self.cluster.is_none() {
                tracing::warn!(target: "ca", "no --oidc-issuer and no cluster: only callers with a client certificate are recognised");
            }
        }
        let own = self.own.clone();
        let own_drain = drain.clone();
        task::spawn("own-certificate", async move { own.run(own_drain).await });
        if let Some(shared) = self.admin.shared.clone() {
            let drain = drain.clone();
            task::spawn("shared-revocations", async move { shared.run(drain).await });
        }
        self.admin.start(&self.args.data_dir, drain).await?;
        let ca = self.authority.ca();
        let mut new_root = None;
        if let Some(cluster) = self.cluster {
            let writers = Writers {
                leadership: lease::elect(
                    cluster.clone(),
                    LEASE,
                    &self.args.election,
                    drain.clone(),
                ),
                secrets: self.secrets,
                config_maps: RootConfigMaps::new(cluster, ca.clone()),
            };
            new_root = Some(writers.config_maps.changed());
            task::spawn("cluster-writers", writers.run(drain.clone()));
        }
        let (trust, args, metrics) = (self.trust.clone(), self.args.clone(), self.metrics.clone());
        task::spawn(
            "roots",
            follow(trust, args, metrics, ca.clone(), self.own.clone(), new_root),
        );
        let trust = self.trust.clone();
        let changed = move || {
            if let Err(error) = trust.refresh() {
                tracing::error!(target: "ca", error = format!("{error:#}"), "hand out the new root");
            }
        };
        task::spawn("authority", self.authority.keep(changed, drain.clone()));
        spawn_probe(&ca, &self.args, &self.process);
        self.serving.set();
        let Some(listener) = self.listener else {
            drain.signaled().await;
            return Ok(());
        };
        let address = listener.address().clone();
        let incoming: Incoming = listener.tls(self.own.tls(), drain);
        tracing::info!(target: "ca", %address, trust_domain = self.args.trust_domain(), "serving certificate requests");
        let (callers, limits) = (self.service.clone(), StreamLimits::default());
        let discovery = TrustDiscovery::new(callers, self.trust.watch(), limits, drain.clone());
        serve(self.service, discovery, incoming, &self.process).await
    }
}

/// Who writes to the cluster: of several replicas, the leader.
struct Writers {
    leadership: Leadership,
    secrets: Option<WorkloadSecrets>,
    config_maps: RootConfigMaps,
}

impl Writers {
    /// Writes while this replica leads, until the drain.
    async fn run(mut self, drain: Drain) {
        while self.leadership.gained().await {
            let secrets = async {
                match &mut self.secrets {
                    Some(secrets) => secrets.run(&drain).await,
                    None => drain.signaled().await,
                }
            };
            tokio::select! {
                ((), ()) = futures::future::join(secrets, self.config_maps.run(&drain)) => return,
                () = self.leadership.lost() => {}
            }
        }
    }
}

/// What other replicas have revoked, and others before this pod, is in force before anybody is served.
async fn shared_revocations(
    args: &ServeArgs,
    cluster: Option<&kube::Client>,
    revocations: &Revocations,
    ledger: &Ledger,
    trust: &Arc<Trust>,
) -> anyhow::Result<Option<Arc<SharedRevocations>>> {
    let Some(client) = cluster else {
        return Ok(None);
    };
    let shared = SharedRevocations::new(
        client.clone(),
        &args.citadel_storage_namespace,
        revocations.clone(),
        ledger.clone(),
        trust.clone(),
    );
    shared.load().await?;
    Ok(Some(Arc::new(shared)))
}

/// How the CSR services work.
fn rules(args: &ServeArgs, features: &Features) -> Result<Rules, Usage> {
    let impersonators = Impersonators::parse(&features.trusted_node_accounts)
        .map_err(|error| Usage(format!("CA_TRUSTED_NODE_ACCOUNTS: {error}")))?;
    Ok(Rules {
        trust_domain: args.trust_domain().to_owned(),
        ttl: TtlRules {
            default: args.workload_cert_ttl,
            max: args.max_workload_cert_ttl,
        },
        dual_use: args.experimental_dual_use,
        impersonators,
    })
}

/// Carries each change of what is to be believed to those who take it from us: the file, our own certificate, the cluster.
async fn follow(
    trust: Arc<Trust>,
    args: ServeArgs,
    metrics: Metrics,
    ca: Arc<dyn CertificateAuthority>,
    own: Arc<OwnCertificate>,
    new_root: Option<Arc<Notify>>,
) {
    let mut anchors = trust.watch();
    let mut roots = anchors.borrow().roots.clone();
    while anchors.changed().await.is_ok() {
        anchors.mark_unchanged();
        if let Err(error) = publish_root(&trust, &args, &metrics, &ca) {
            tracing::error!(target: "ca", error = format!("{error:#}"), "publish the new root");
        }
        own.refresh();
        // Revocations are no concern of the namespaces'.
        let before = std::mem::replace(&mut roots, anchors.borrow().roots.clone());
        if let Some(new_root) = new_root.as_ref().filter(|_| before != roots) {
            new_root.notify_one();
        }
    }
}

async fn serve(
    service: CertificateService,
    discovery: TrustDiscovery,
    incoming: Incoming,
    process: &Process,
) -> anyhow::Result<()> {
    let legacy = IstioCaServiceServer::new(service.clone()).max_decoding_message_size(MAX_MESSAGE);
    let service = IstioCertificateServiceServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE * 16);
    let discovery =
        SecretDiscoveryServiceServer::new(discovery).max_decoding_message_size(MAX_MESSAGE);
    let options = ServerOptions {
        max_concurrent_streams: 64,
        stream_window: 64 << 10,
        connection_window: 256 << 10,
        ..ServerOptions::default()
    };
    let calls = tonic::service::Routes::new(service).add_service(legacy);
    // A stream lives as long as the agent: the deadline is for calls.
    let streams = tonic::service::Routes::new(discovery).into_axum_router();
    let streams = streams.reset_fallback();
    let routes = with_deadline(calls).into_axum_router().merge(streams);
    let routes = tonic::service::Routes::from(routes);
    let metrics = GrpcMetrics::register(&process.registry, &[])?;
    grpc::serve(
        incoming,
        routes,
        &options,
        Some(metrics),
        process.drain.clone(),
    )
    .await
}

/// Writes the root for others to trust, and its end into the metric.
fn publish_root(
    trust: &Trust,
    args: &ServeArgs,
    metrics: &Metrics,
    ca: &Arc<dyn CertificateAuthority>,
) -> anyhow::Result<()> {
    let bundle = ca.bundle();
    if let Some(end) = bundle
        .roots
        .iter()
        .filter_map(|root| Validity::of(root).ok())
        .map(|life| life.not_after)
        .min()
    {
        // Seconds fit a double for some millions of years.
        #[allow(clippy::cast_precision_loss, reason = "a timestamp")]
        metrics.root_expiry.set(end.unix_timestamp() as f64);
    }
    if let Some(path) = &args.root_cert_out {
        let anchors = trust.watch().borrow().clone();
        let lists = path.with_file_name(proto_component::tls::CRLS);
        // The lists first: whoever reads a new root has them, too.
        for (path, text) in [(&lists, &anchors.crls), (path, &anchors.roots)] {
            root_file::write(path, text)
                .with_context(|| format!("write --root-cert-out {}", path.display()))?;
        }
    }
    Ok(())
}

fn spawn_probe(ca: &Arc<dyn CertificateAuthority>, args: &ServeArgs, process: &Process) {
    let Some(path) = args.liveness_probe_path.clone() else {
        return;
    };
    if args.liveness_probe_interval.is_zero() {
        return;
    }
    let interval = args.liveness_probe_interval.min(args.probe_check_interval);
    let interval = interval.max(Duration::from_secs(1));
    let (ca, drain) = (ca.clone(), process.drain.clone());
    task::spawn("probe", async move {
        probe::run(ca, &path, interval, drain).await;
    });
}
