//! Builds Citadel's parts in the order in which they need each other, binds its ports, starts its tasks.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::extract::Query;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use proto::istio::v1::auth::istio_certificate_service_server::IstioCertificateServiceServer;
use proto_component::args::Address;
use proto_component::grpc::{self, GrpcMetrics, ServerOptions};
use proto_component::listen::{Incoming, Listener};
use proto_component::monitoring::Monitoring;
use proto_component::process::{Process, Usage};
use proto_component::readiness::Condition;
use proto_component::{task, tls};
use time::OffsetDateTime;
use tokio::sync::Notify;

use crate::args::ServeArgs;
use crate::authenticate::{
    Authenticator, ClientCertificate, JwksSource, KeyRing, KubeJwt, Oidc, OidcSettings,
};
use crate::ca::{
    CertificateAuthority, PluggedIn, PluggedInFiles, RootRotator, Rotation, SelfSigned,
    SelfSignedSettings, TtlRules,
};
use crate::features::Features;
use crate::kubernetes::{self, RootConfigMaps, RootSecret};
use crate::ledger::{Ledger, Writer};
use crate::metrics::Metrics;
use crate::pki::Validity;
use crate::probe;
use crate::root_file;
use crate::server::{CertificateService, MAX_MESSAGE, OwnCertificate, Rules, with_deadline};
use crate::store;

const ISSUED_LIMIT: usize = 10_000;

/// Everything built and bound, nothing started.
pub struct Citadel {
    process: Process,
    serving: Condition,
    keys_loaded: Condition,
    args: ServeArgs,
    ca: Arc<dyn CertificateAuthority>,
    root: Option<SelfSignedRoot>,
    cluster: Option<kube::Client>,
    keys: Option<Arc<KeyRing>>,
    own: Arc<OwnCertificate>,
    writer: Writer,
    metrics: Metrics,
    service: CertificateService,
    listener: Option<Listener>,
}

/// A self-signed root, and who renews it.
struct SelfSignedRoot {
    ca: Arc<SelfSigned>,
    rotator: Option<RootRotator>,
}

#[derive(serde::Deserialize)]
struct IssuedQuery {
    limit: Option<usize>,
    identity: Option<String>,
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
        let database = store::open(&args.data_dir).await?;
        let cluster = kubernetes::client(args.kube_config.as_deref()).await?;
        let (ca, root) = authority(&database, args, features, cluster.as_ref()).await?;
        let (ledger, writer) = Ledger::open(&database, args.ledger_retention)?;
        let metrics = Metrics::new(&process.registry)?;
        let keys = key_ring(args)?.map(Arc::new);
        let own = OwnCertificate::new(ca.clone(), &args.host_names(), args.max_workload_cert_ttl)
            .context("mint the server certificate")?;
        let service = CertificateService::new(
            ca.clone(),
            authenticators(args, keys.as_ref(), cluster.as_ref()),
            Rules {
                trust_domain: args.trust_domain().to_owned(),
                ttl: TtlRules {
                    default: args.workload_cert_ttl,
                    max: args.max_workload_cert_ttl,
                },
                dual_use: args.experimental_dual_use,
            },
            ledger.clone(),
            metrics.clone(),
        );
        let listener = match args.grpc_port {
            // QUIRK: Istio turns the CSR service off with a port that is not positive.
            0 => None,
            port => {
                let address = Address::Tcp((args.grpc_address, port).into());
                Some(Listener::bind(&address, "--grpc-port").await?)
            }
        };
        publish_root(&ca, args, &metrics)?;
        Monitoring::new(process)
            .debug(
                "/debug/issued",
                "certificates issued, newest first (?limit=, ?identity=)",
                get(move |query: Query<IssuedQuery>| issued(ledger.clone(), query)),
            )
            .bind(&format!(":{}", args.monitoring_port), "--monitoring-port")
            .await?
            .start(process);
        Ok(Self {
            process: process.clone(),
            serving,
            keys_loaded,
            args: args.clone(),
            ca,
            root,
            cluster,
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
        let new_root = Arc::new(Notify::new());
        if let Some(cluster) = self.cluster {
            let config_maps = RootConfigMaps::new(cluster.clone(), self.ca.clone());
            let config_maps_changed = config_maps.changed();
            task::spawn("root-config-maps", config_maps.run(drain.clone()));
            let secret = RootSecret::new(cluster, &self.args.citadel_storage_namespace);
            let root = self.root.as_ref().map(|root| root.ca.clone());
            let (new_root, drain) = (new_root.clone(), drain.clone());
            task::spawn("root-secret", async move {
                kubernetes::keep_root(root, &secret, &new_root, &config_maps_changed, &drain).await;
            });
        }
        if let Some(rotator) = self.root.and_then(|root| root.rotator) {
            let (ca, args, metrics) = (self.ca.clone(), self.args.clone(), self.metrics.clone());
            let own = self.own.clone();
            task::spawn("root-rotator", rotator.run(move || {
                if let Err(error) = publish_root(&ca, &args, &metrics) {
                    tracing::error!(target: "ca", error = format!("{error:#}"), "publish the new root");
                }
                own.refresh();
                new_root.notify_one();
            }));
        }
        spawn_probe(&self.ca, &self.args, &self.process);
        self.serving.set();
        let Some(listener) = self.listener else {
            drain.signaled().await;
            return Ok(());
        };
        let address = listener.address().clone();
        let incoming: Incoming = listener.tls(self.own.tls(), drain);
        tracing::info!(target: "ca", %address, trust_domain = self.args.trust_domain(), "serving certificate requests");
        serve(self.service, incoming, &self.process).await
    }
}

async fn serve(
    service: CertificateService,
    incoming: Incoming,
    process: &Process,
) -> anyhow::Result<()> {
    let service = IstioCertificateServiceServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE * 16);
    let options = ServerOptions {
        max_concurrent_streams: 64,
        stream_window: 64 << 10,
        connection_window: 256 << 10,
        ..ServerOptions::default()
    };
    let routes = with_deadline(tonic::service::Routes::new(service));
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

async fn authority(
    database: &sled::Db,
    args: &ServeArgs,
    features: &Features,
    cluster: Option<&kube::Client>,
) -> anyhow::Result<(Arc<dyn CertificateAuthority>, Option<SelfSignedRoot>)> {
    let now = OffsetDateTime::now_utc();
    if args.self_signed_ca {
        let organization = if args.org.is_empty() {
            args.trust_domain()
        } else {
            &args.org
        };
        let settings = SelfSignedSettings {
            organization: organization.to_owned(),
            ttl: features.self_signed_ca_cert_ttl,
        };
        let secret =
            cluster.map(|client| RootSecret::new(client.clone(), &args.citadel_storage_namespace));
        let ca = Arc::new(kubernetes::open_root(database, settings, secret.as_ref(), now).await?);
        let rotation = Rotation {
            check_interval: features.root_cert_check_interval,
            grace_percent: features.root_cert_grace_period_percentile,
            jitter: features.root_cert_rotator_jitter,
        };
        let rotates = !rotation.check_interval.is_zero();
        let rotator = rotates.then(|| RootRotator::new(ca.clone(), rotation));
        let root = SelfSignedRoot {
            ca: ca.clone(),
            rotator,
        };
        return Ok((ca, Some(root)));
    }
    let (Some(certificate), Some(key), Some(root)) =
        (&args.signing_cert, &args.signing_key, &args.root_cert)
    else {
        return Err(Usage(
            "no CA: give --self-signed-ca=true, or --signing-cert, --signing-key and --root-cert (and --cert-chain)"
                .to_owned(),
        )
        .into());
    };
    let files = PluggedInFiles {
        signing_certificate: certificate.clone(),
        signing_key: key.clone(),
        root_certificate: root.clone(),
        certificate_chain: args.cert_chain.clone(),
    };
    let ca = PluggedIn::load(&files, &tls::provider(), now)
        .map_err(|error| Usage(format!("plugged-in CA: {error}")))?;
    Ok((Arc::new(ca), None))
}

fn authenticators(
    args: &ServeArgs,
    keys: Option<&Arc<KeyRing>>,
    cluster: Option<&kube::Client>,
) -> Vec<Box<dyn Authenticator>> {
    let mut authenticators: Vec<Box<dyn Authenticator>> = vec![Box::new(ClientCertificate)];
    if let Some(cluster) = cluster {
        authenticators.push(Box::new(KubeJwt::new(
            cluster.clone(),
            args.oidc_audience.clone(),
            args.trust_domain().to_owned(),
        )));
    }
    if let (Some(keys), Some(issuer)) = (keys, &args.oidc_issuer) {
        let settings = OidcSettings {
            issuer: issuer.clone(),
            audiences: args.oidc_audience.clone(),
            trust_domain: args.trust_domain().to_owned(),
        };
        authenticators.push(Box::new(Oidc::new(settings, keys.clone())));
    }
    authenticators
}

fn key_ring(args: &ServeArgs) -> Result<Option<KeyRing>, Usage> {
    let jwks = match (&args.oidc_issuer, &args.oidc_jwks) {
        (None, None) => return Ok(None),
        (Some(_), Some(jwks)) => jwks,
        _ => {
            return Err(Usage(
                "--oidc-issuer and --oidc-jwks go together".to_owned(),
            ));
        }
    };
    let is_url = ["http://", "https://"]
        .iter()
        .any(|scheme| jwks.starts_with(scheme));
    let source = if is_url {
        JwksSource::Url {
            url: jwks
                .parse()
                .map_err(|error| Usage(format!("--oidc-jwks {jwks}: {error}")))?,
            ca_file: args.oidc_ca_cert.clone(),
        }
    } else {
        JwksSource::File(jwks.into())
    };
    Ok(Some(KeyRing::new(source)))
}

/// Writes the root for others to trust, and its end into the metric.
fn publish_root(
    ca: &Arc<dyn CertificateAuthority>,
    args: &ServeArgs,
    metrics: &Metrics,
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
        root_file::write(path, &bundle.roots_pem())
            .with_context(|| format!("write --root-cert-out {}", path.display()))?;
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

async fn issued(ledger: Ledger, Query(query): Query<IssuedQuery>) -> Response {
    let limit = query.limit.unwrap_or(100).min(ISSUED_LIMIT);
    match ledger.newest(limit, query.identity.as_deref()) {
        Ok(newest) => axum::Json(newest).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
