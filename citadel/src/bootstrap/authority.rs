//! Which authority signs, and who recognises callers: what the flags say.

use std::sync::Arc;
use std::time::Duration;

use proto_component::drain::Drain;
use proto_component::process::Usage;
use proto_component::tls;
use time::OffsetDateTime;
use tokio::sync::Notify;

use crate::args::ServeArgs;
use crate::authenticate::{
    Authenticator, ClientCertificate, JwksSource, KeyRing, KubeJwt, Oidc, OidcSettings,
};
use crate::ca::{CertificateAuthority, Overlap, PluggedIn, PluggedInFiles, SelfSignedSettings};
use crate::features::Features;
use crate::kubernetes::RootSecret;
use crate::revocation::Revocations;
use crate::root::{RootKeeper, RootRotator, Rotation};
use crate::store::Store;

/// The authority, and what keeps it fresh.
pub(super) enum Authority {
    /// Our own root, and who renews it.
    SelfSigned {
        /// The root.
        keeper: Arc<RootKeeper>,
        /// Who renews it.
        rotator: RootRotator,
    },
    /// The user's.
    PluggedIn(Arc<PluggedIn>),
}

impl Authority {
    /// What signs.
    pub(super) fn ca(&self) -> Arc<dyn CertificateAuthority> {
        match self {
            Self::SelfSigned { keeper, .. } => keeper.ca().clone(),
            Self::PluggedIn(ca) => ca.clone(),
        }
    }

    /// The root that can be rotated, and whom to tell of it.
    pub(super) fn root(&self) -> Option<(Arc<RootKeeper>, Arc<Notify>)> {
        match self {
            Self::SelfSigned { keeper, rotator } => Some((keeper.clone(), rotator.wanted())),
            Self::PluggedIn(_) => None,
        }
    }

    /// Keeps it fresh; `changed` is told of each change.
    pub(super) async fn keep(self, changed: impl Fn() + Send + Sync, drain: Drain) {
        match self {
            Self::SelfSigned { keeper, rotator } => {
                let wanted = rotator.wanted();
                let taken = || {
                    changed();
                    // Whoever has begun a rotation may be gone before its end.
                    if keeper.ca().is_rotating() {
                        wanted.notify_one();
                    }
                };
                let follow = keeper.follow(taken, &drain);
                futures::future::join(follow, rotator.run(&changed)).await;
            }
            Self::PluggedIn(ca) => ca.follow(changed).await,
        }
    }
}

/// The authority that the flags name.
pub(super) async fn authority(
    store: &Store,
    args: &ServeArgs,
    features: &Features,
    cluster: Option<&kube::Client>,
) -> anyhow::Result<Authority> {
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
            curve: features.curve,
        };
        let secret =
            cluster.map(|client| RootSecret::new(client.clone(), &args.citadel_storage_namespace));
        let keeper = Arc::new(RootKeeper::open(store, settings, secret, now).await?);
        let retirement = match features.root_cert_retirement {
            Duration::ZERO => args.max_workload_cert_ttl,
            given => given,
        };
        let rotation = Rotation {
            check_interval: features.root_cert_check_interval,
            grace_percent: features.root_cert_grace_period_percentile,
            jitter: features.root_cert_rotator_jitter,
            overlap: Overlap {
                introduction: features.root_cert_introduction,
                retirement,
            },
        };
        let rotator = RootRotator::new(keeper.clone(), rotation);
        return Ok(Authority::SelfSigned { keeper, rotator });
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
    Ok(Authority::PluggedIn(Arc::new(ca)))
}

/// Who may recognise callers, in order.
pub(super) fn authenticators(
    args: &ServeArgs,
    revocations: &Revocations,
    keys: Option<&Arc<KeyRing>>,
    cluster: Option<&kube::Client>,
) -> Vec<Box<dyn Authenticator>> {
    let mut authenticators: Vec<Box<dyn Authenticator>> =
        vec![Box::new(ClientCertificate::new(revocations.clone()))];
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

/// The keys of the token issuer that the flags name.
pub(super) fn key_ring(args: &ServeArgs) -> Result<Option<KeyRing>, Usage> {
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
