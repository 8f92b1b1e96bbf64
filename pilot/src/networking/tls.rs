//! TLS contexts of both ends. Certificates come by SDS from the agent beside the proxy, over the cluster `sds-grpc`, or
//! ([`super::secret`]) from Pilot itself, unless a resource names files.

use proto::envoy::config::core::v3::{
    ApiConfigSource, ApiVersion, ConfigSource, DataSource, GrpcService, TransportSocket,
    api_config_source::ApiType, config_source::ConfigSourceSpecifier, data_source, grpc_service,
};
use proto::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use proto::envoy::extensions::transport_sockets::tls::v3::{
    self as tls, CertificateValidationContext, CommonTlsContext, DownstreamTlsContext,
    SdsSecretConfig, SubjectAltNameMatcher, TlsParameters, UpstreamTlsContext,
    common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
    subject_alt_name_matcher::SanType,
    tls_parameters::TlsProtocol,
};
use proto::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};

use proto::istio::mesh::v1alpha1::mesh_config::{
    TlsConfig, tls_config::TlsProtocol as MeshProtocol,
};

use super::wire::{ads, exact, pattern, seconds, transport_socket};
use crate::model::Mesh;

/// The agent's cluster.
pub const SDS_CLUSTER: &str = "sds-grpc";
/// Secret with the workload's certificate.
pub const WORKLOAD_SECRET: &str = "default";
/// Secret with the mesh's roots.
pub const ROOT_SECRET: &str = "ROOTCA";
/// Secret with the roots that the proxy's system trusts; Envoy itself does not know them.
pub const SYSTEM_ROOTS_SECRET: &str = "file-root:system";
/// Says that mesh mTLS is spoken, with peer metadata.
pub const ALPN_PEER_EXCHANGE: &str = "istio-peer-exchange";
/// Says that mesh mTLS is spoken.
pub const ALPN_ISTIO: &str = "istio";
/// Name of TLS transport sockets.
const TLS_SOCKET: &str = "envoy.transport_sockets.tls";

/// A reference to a secret that the agent serves.
#[must_use]
pub fn secret(name: &str) -> SdsSecretConfig {
    let service = GrpcService {
        target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(
            grpc_service::EnvoyGrpc {
                cluster_name: SDS_CLUSTER.to_owned(),
                ..grpc_service::EnvoyGrpc::default()
            },
        )),
        ..GrpcService::default()
    };
    SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(ConfigSource {
            resource_api_version: ApiVersion::V3 as i32,
            // Wait for as long as it takes: a listener without its certificate could only refuse.
            initial_fetch_timeout: Some(seconds(0)),
            config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(
                ApiConfigSource {
                    api_type: ApiType::Grpc as i32,
                    transport_api_version: ApiVersion::V3 as i32,
                    grpc_services: vec![service],
                    set_node_on_first_message_only: true,
                    ..ApiConfigSource::default()
                },
            )),
            ..ConfigSource::default()
        }),
    }
}

/// A reference to a secret that Pilot serves on the aggregated stream.
#[must_use]
pub fn served_secret(name: &str) -> SdsSecretConfig {
    SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(ads()),
    }
}

/// Checks a peer against the roots in `root` and, if there are any, `names`.
#[must_use]
pub fn validation(
    root: SdsSecretConfig,
    names: Vec<SubjectAltNameMatcher>,
) -> ValidationContextType {
    let checks = CertificateValidationContext {
        match_typed_subject_alt_names: names,
        ..CertificateValidationContext::default()
    };
    checked(root, checks)
}

/// Checks a peer against the roots in `root` and whatever `checks` says.
#[must_use]
pub fn checked(
    root: SdsSecretConfig,
    checks: CertificateValidationContext,
) -> ValidationContextType {
    ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
        default_validation_context: Some(checks),
        validation_context_sds_secret_config: Some(root),
        ..CombinedCertificateValidationContext::default()
    })
}

/// SAN matchers for SPIFFE ids and other names.
#[must_use]
pub fn san_matchers<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<SubjectAltNameMatcher> {
    names
        .into_iter()
        .flat_map(|name| {
            if name.contains("://") {
                vec![san(SanType::Uri, exact(name))]
            } else if name.contains('@') {
                vec![san(SanType::Email, exact(name))]
            } else if let Some(suffix) = name.strip_prefix('*') {
                vec![san(
                    SanType::Dns,
                    pattern(MatchPattern::Suffix(suffix.to_owned())),
                )]
            } else {
                vec![
                    san(SanType::Dns, exact(name)),
                    san(SanType::IpAddress, exact(name)),
                ]
            }
        })
        .collect()
}

/// URI SAN prefixes of the trust domains whose certificates are accepted.
#[must_use]
pub fn trust_domain_matchers<'a>(
    domains: impl IntoIterator<Item = &'a str>,
) -> Vec<SubjectAltNameMatcher> {
    let prefix = |domain| pattern(MatchPattern::Prefix(format!("spiffe://{domain}/")));
    domains
        .into_iter()
        .map(|domain| san(SanType::Uri, prefix(domain)))
        .collect()
}

fn san(kind: SanType, matcher: StringMatcher) -> SubjectAltNameMatcher {
    SubjectAltNameMatcher {
        san_type: kind as i32,
        matcher: Some(matcher),
        oid: String::new(),
    }
}

/// A file's content.
#[must_use]
pub fn file(path: &str) -> DataSource {
    DataSource {
        specifier: Some(data_source::Specifier::Filename(path.to_owned())),
        ..DataSource::default()
    }
}

/// Mesh mTLS towards `names`.
#[must_use]
pub fn mesh_client(mesh: &Mesh, names: &[String], sni: &str, is_http2: bool) -> TransportSocket {
    let mut alpn = vec![ALPN_PEER_EXCHANGE.to_owned(), ALPN_ISTIO.to_owned()];
    if is_http2 {
        alpn.push("h2".to_owned());
    }
    client(&UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            alpn_protocols: alpn,
            // Whom a client may speak to is the servers' to say by their suites: only the version is limited here.
            tls_params: Some(client_parameters(&TlsConfig {
                min_protocol_version: mesh.mesh_tls.min_protocol_version,
                ..TlsConfig::default()
            })),
            tls_certificate_sds_secret_configs: vec![secret(WORKLOAD_SECRET)],
            validation_context_type: Some(validation(
                secret(ROOT_SECRET),
                san_matchers(names.iter().map(String::as_str)),
            )),
            ..CommonTlsContext::default()
        }),
        sni: sni.to_owned(),
        ..UpstreamTlsContext::default()
    })
}

/// Mesh mTLS at the workload: a certificate of an accepted trust domain is demanded.
#[must_use]
pub fn mesh_server(mesh: &Mesh, alpn: &[&str]) -> TransportSocket {
    server(&DownstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            alpn_protocols: alpn.iter().map(ToString::to_string).collect(),
            tls_params: Some(limited(&mesh.mesh_tls)),
            tls_certificate_sds_secret_configs: vec![secret(WORKLOAD_SECRET)],
            validation_context_type: Some(validation(
                secret(ROOT_SECRET),
                trust_domain_matchers(mesh.trust_domains()),
            )),
            ..CommonTlsContext::default()
        }),
        require_client_certificate: Some(true),
        ..DownstreamTlsContext::default()
    })
}

/// What the mesh's settings leave of TLS: 1.2 at least.
#[must_use]
pub fn limited(limits: &TlsConfig) -> TlsParameters {
    let minimum = match limits.min_protocol_version() {
        MeshProtocol::Tlsv13 => TlsProtocol::TlSv13,
        MeshProtocol::TlsAuto | MeshProtocol::Tlsv12 => TlsProtocol::TlSv12,
    };
    TlsParameters {
        tls_minimum_protocol_version: minimum as i32,
        cipher_suites: limits.cipher_suites.clone(),
        ecdh_curves: limits.ecdh_curves.clone(),
        ..TlsParameters::default()
    }
}

/// The same for a client: Envoy's would stop at 1.2 if it were not told to go further.
#[must_use]
pub fn client_parameters(limits: &TlsConfig) -> TlsParameters {
    TlsParameters {
        tls_maximum_protocol_version: TlsProtocol::TlSv13 as i32,
        ..limited(limits)
    }
}

/// A client's socket.
#[must_use]
pub fn client(context: &UpstreamTlsContext) -> TransportSocket {
    transport_socket(TLS_SOCKET, context)
}

/// A server's socket.
#[must_use]
pub fn server(context: &DownstreamTlsContext) -> TransportSocket {
    transport_socket(TLS_SOCKET, context)
}

/// Plaintext.
#[must_use]
pub fn raw_buffer() -> TransportSocket {
    transport_socket("envoy.transport_sockets.raw_buffer", &RawBuffer {})
}

/// The certificate provider of gRPC's bootstrap, under the name that Istio's agent gives it.
fn provider(certificate: &str) -> tls::CertificateProviderPluginInstance {
    tls::CertificateProviderPluginInstance {
        instance_name: "default".to_owned(),
        certificate_name: certificate.to_owned(),
    }
}

/// Mesh mTLS of a gRPC client that configures itself: of the server's names it looks only at the older field.
#[allow(deprecated, reason = "gRPC reads no other field")]
#[must_use]
pub fn grpc_client(names: &[String], sni: &str) -> TransportSocket {
    client(&UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificate_provider_instance: Some(provider(WORKLOAD_SECRET)),
            validation_context_type: Some(ValidationContextType::CombinedValidationContext(
                CombinedCertificateValidationContext {
                    default_validation_context: Some(CertificateValidationContext {
                        ca_certificate_provider_instance: Some(provider(ROOT_SECRET)),
                        match_subject_alt_names: names.iter().map(|name| exact(name)).collect(),
                        ..CertificateValidationContext::default()
                    }),
                    ..CombinedCertificateValidationContext::default()
                },
            )),
            ..CommonTlsContext::default()
        }),
        sni: sni.to_owned(),
        ..UpstreamTlsContext::default()
    })
}

/// Mesh mTLS of a gRPC server that configures itself.
#[must_use]
pub fn grpc_server() -> TransportSocket {
    server(&DownstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificate_provider_instance: Some(provider(WORKLOAD_SECRET)),
            validation_context_type: Some(ValidationContextType::ValidationContext(
                CertificateValidationContext {
                    ca_certificate_provider_instance: Some(provider(ROOT_SECRET)),
                    ..CertificateValidationContext::default()
                },
            )),
            ..CommonTlsContext::default()
        }),
        require_client_certificate: Some(true),
        ..DownstreamTlsContext::default()
    })
}
