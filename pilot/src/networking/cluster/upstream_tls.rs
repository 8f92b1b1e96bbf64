//! What a client of a cluster speaks: plaintext, TLS, mesh mTLS, or (automatic mTLS) whatever the endpoint can.

use std::collections::BTreeSet;
use std::sync::Arc;

use proto::envoy::config::cluster::v3::{
    Cluster,
    cluster::{ClusterDiscoveryType, DiscoveryType, TransportSocketMatch},
};
use proto::envoy::config::core::v3::{
    ProxyProtocolConfig, TransportSocket, proxy_protocol_config::Version,
};
use proto::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, SdsSecretConfig, TlsCertificate,
    UpstreamTlsContext, common_tls_context::ValidationContextType,
};
use proto::istio::networking::v1alpha3::traffic_policy::{
    ProxyProtocol, proxy_protocol::Version as VersionOfIstio,
};
use proto::istio::networking::v1alpha3::{ClientTlsSettings, client_tls_settings::TlSmode};

use super::TrafficPolicy;
use super::protocol_options::ServerNames;
use crate::model::{ClusterName, Endpoint, Registry, Service, ServicePort};
use crate::networking::endpoint::takes_mutual_tls;
use crate::networking::wire::{strings, transport_socket};
use crate::networking::{View, secret, tls};
use crate::push_context::policies::MtlsMode;
use crate::push_context::status::Metric;

/// Gives `cluster` its transport sockets.
pub(super) fn apply(
    view: &View<'_>,
    cluster: &mut Cluster,
    service: &Service,
    port: &ServicePort,
    name: &ClusterName,
    policy: &TrafficPolicy<'_>,
    is_http2: bool,
) {
    match policy.tls {
        Some(settings) => explicit(view, cluster, service, name, settings, is_http2),
        None => automatic(view, cluster, service, port, name, is_http2),
    }
    if let Some(settings) = policy.proxy_protocol {
        announce_client(cluster, settings);
    }
}

/// Puts the PROXY protocol before whatever the endpoint is spoken to with.
fn announce_client(cluster: &mut Cluster, settings: &ProxyProtocol) {
    let version = match settings.version() {
        VersionOfIstio::V1 => Version::V1,
        VersionOfIstio::V2 => Version::V2,
    };
    let wrap = |inner: TransportSocket| {
        let config = ProxyProtocolUpstreamTransport {
            config: Some(ProxyProtocolConfig {
                version: version as i32,
                ..ProxyProtocolConfig::default()
            }),
            transport_socket: Some(inner),
            ..ProxyProtocolUpstreamTransport::default()
        };
        transport_socket("envoy.transport_sockets.upstream_proxy_protocol", &config)
    };
    if cluster.transport_socket_matches.is_empty() {
        let inner = cluster
            .transport_socket
            .take()
            .unwrap_or_else(tls::raw_buffer);
        cluster.transport_socket = Some(wrap(inner));
    }
    for candidate in &mut cluster.transport_socket_matches {
        candidate.transport_socket = candidate.transport_socket.take().map(wrap);
    }
}

fn explicit(
    view: &View<'_>,
    cluster: &mut Cluster,
    service: &Service,
    name: &ClusterName,
    settings: &ClientTlsSettings,
    is_http2: bool,
) {
    match settings.mode() {
        TlSmode::Disable => {}
        TlSmode::IstioMutual => {
            let names = if settings.subject_alt_names.is_empty() {
                accounts(view, service)
            } else {
                settings.subject_alt_names.clone()
            };
            let sni = if settings.sni.is_empty() {
                name.sni()
            } else {
                settings.sni.clone()
            };
            cluster.transport_socket =
                Some(tls::mesh_client(&view.push.mesh, &names, &sni, is_http2));
        }
        TlSmode::Simple | TlSmode::Mutual => match origination(view, settings, service, is_http2) {
            Ok(context) => cluster.transport_socket = Some(tls::client(&context)),
            Err(reason) => {
                // Without what it needs the connection must fail rather than go out in the clear.
                view.record(Metric::InvalidCluster, &cluster.name, &reason);
                cluster.transport_socket = Some(tls::mesh_client(
                    &view.push.mesh,
                    &[format!("spiffe://invalid/{reason}")],
                    &name.sni(),
                    is_http2,
                ));
            }
        },
    }
}

/// What TLS to servers outside of the mesh asks them for, if nobody says it: the host of each request, and unless there are other
/// names (or nobody is to look) that is who they have to be.
pub(super) fn server_names(
    view: &View<'_>,
    service: &Service,
    policy: &TrafficPolicy<'_>,
) -> ServerNames {
    let originates = |settings: &&ClientTlsSettings| {
        matches!(settings.mode(), TlSmode::Simple | TlSmode::Mutual) && settings.sni.is_empty()
    };
    let Some(settings) = policy.tls.filter(originates) else {
        return ServerNames::Fixed;
    };
    if origination(view, settings, service, false).is_err() {
        return ServerNames::Fixed;
    }
    let has_names = !names_of(settings, service).is_empty();
    if has_names || settings.insecure_skip_verify == Some(true) {
        ServerNames::Asked
    } else {
        ServerNames::Checked
    }
}

/// The names that somebody has given a server outside of the mesh. Those of the platform's services are identities in the mesh.
fn names_of<'a>(settings: &'a ClientTlsSettings, service: &'a Service) -> &'a [String] {
    if !settings.subject_alt_names.is_empty() {
        &settings.subject_alt_names
    } else if service.registry == Registry::Kubernetes {
        &[]
    } else {
        &service.subject_alt_names
    }
}

/// TLS to a server outside of the mesh.
fn origination(
    view: &View<'_>,
    settings: &ClientTlsSettings,
    service: &Service,
    is_http2: bool,
) -> Result<UpstreamTlsContext, String> {
    // As in Istio: whoever may not have the credential would wait for it before it starts.
    let is_selected = || {
        let rule = view.destination_rule(service);
        rule.is_some_and(|rule| !rule.selector.is_empty())
    };
    if !settings.credential_name.is_empty() && !view.proxy.is_router() && !is_selected() {
        return Err(
            "a credentialName is for gateways and for workloads that a rule selects".into(),
        );
    }
    let mut common = CommonTlsContext {
        tls_params: Some(tls::client_parameters(&view.push.mesh.tls_defaults)),
        ..CommonTlsContext::default()
    };
    if is_http2 {
        common.alpn_protocols = vec!["h2".to_owned()];
    }
    let names = names_of(settings, service);
    let matchers = tls::san_matchers(names.iter().map(String::as_str));
    let skip_verify = settings.insecure_skip_verify.unwrap_or(false);
    if settings.mode() == TlSmode::Mutual {
        if !settings.credential_name.is_empty() {
            common.tls_certificate_sds_secret_configs =
                vec![credential(view, &settings.credential_name)];
        } else if settings.client_certificate.is_empty() || settings.private_key.is_empty() {
            return Err(
                "mode MUTUAL needs clientCertificate and privateKey, or credentialName".to_owned(),
            );
        } else {
            common.tls_certificates = vec![TlsCertificate {
                certificate_chain: Some(tls::file(&settings.client_certificate)),
                private_key: Some(tls::file(&settings.private_key)),
                ..TlsCertificate::default()
            }];
        }
    }
    common.validation_context_type = if skip_verify {
        None
    } else if !settings.credential_name.is_empty() {
        let roots = format!("{}-cacert", settings.credential_name);
        Some(tls::validation(credential(view, &roots), matchers))
    } else if !settings.ca_certificates.is_empty() {
        Some(ValidationContextType::ValidationContext(
            CertificateValidationContext {
                trusted_ca: Some(tls::file(&settings.ca_certificates)),
                match_typed_subject_alt_names: matchers,
                crl: (!settings.ca_crl.is_empty()).then(|| tls::file(&settings.ca_crl)),
                ..CertificateValidationContext::default()
            },
        ))
    } else {
        Some(tls::validation(
            tls::secret(tls::SYSTEM_ROOTS_SECRET),
            matchers,
        ))
    };
    let host = if service.host.starts_with('*') {
        String::new()
    } else {
        service.host.clone()
    };
    Ok(UpstreamTlsContext {
        common_tls_context: Some(common),
        sni: if settings.sni.is_empty() {
            host
        } else {
            settings.sni.clone()
        },
        auto_sni_san_validation: false,
        ..UpstreamTlsContext::default()
    })
}

/// The reference to a credential: a gateway's may be served from here, all others are their agents'.
fn credential(view: &View<'_>, name: &str) -> SdsSecretConfig {
    if secret::is_served(view) {
        secret::reference(view, name)
    } else {
        tls::secret(name)
    }
}

/// mTLS to the endpoints that can, plaintext to the others.
fn automatic(
    view: &View<'_>,
    cluster: &mut Cluster,
    service: &Service,
    port: &ServicePort,
    name: &ClusterName,
    is_http2: bool,
) {
    let is_off = !view.push.mesh.is_auto_mtls
        || service.is_external
        || view.push.policies.service_mode(service, port) == MtlsMode::Disable;
    if is_off {
        return;
    }
    let socket = || {
        tls::mesh_client(
            &view.push.mesh,
            &accounts(view, service),
            &name.sni(),
            is_http2,
        )
    };
    let original_destination = ClusterDiscoveryType::Type(DiscoveryType::OriginalDst as i32);
    if cluster.cluster_discovery_type == Some(original_destination) {
        // Without endpoint metadata the choice is made for the whole cluster.
        let endpoints = view.push.endpoints.of(&service.key());
        let takes = |endpoint: &Arc<Endpoint>| takes_mutual_tls(view, service, endpoint, port);
        if !endpoints.is_empty() && endpoints.iter().all(takes) {
            cluster.transport_socket = Some(socket());
        }
        return;
    }
    cluster.transport_socket_matches = vec![
        TransportSocketMatch {
            name: "tlsMode-istio".to_owned(),
            r#match: Some(strings([("tlsMode", "istio")])),
            transport_socket: Some(socket()),
        },
        TransportSocketMatch {
            name: "tlsMode-disabled".to_owned(),
            r#match: Some(strings([])),
            transport_socket: Some(tls::raw_buffer()),
        },
    ];
}

/// The identities that may answer for a service, sorted; local trust domain and its aliases are all accepted.
pub(super) fn accounts(view: &View<'_>, service: &Service) -> Vec<String> {
    let mut accounts: BTreeSet<String> = view
        .push
        .endpoints
        .identities(&service.key())
        .into_iter()
        .map(str::to_owned)
        .collect();
    let mesh = &view.push.mesh;
    for alias in &mesh.trust_domain_aliases {
        let local = format!("spiffe://{}/", mesh.trust_domain);
        let aliased: Vec<String> = accounts
            .iter()
            .filter_map(|account| {
                account
                    .strip_prefix(&local)
                    .map(|rest| format!("spiffe://{alias}/{rest}"))
            })
            .collect();
        accounts.extend(aliased);
    }
    accounts.extend(service.subject_alt_names.iter().cloned());
    accounts.into_iter().collect()
}
