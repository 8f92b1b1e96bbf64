//! Extension providers: what policies call by name, found as clusters.

use proto::envoy::config::core::v3::{GrpcService, HttpUri, grpc_service, http_uri};
use proto::istio::mesh::v1alpha1::mesh_config::ExtensionProvider;

use super::View;
use super::wire::seconds;
use crate::model::ClusterName;

/// A provider's service as a cluster.
#[derive(Clone, Debug)]
pub(super) struct Upstream {
    /// The cluster.
    pub(super) cluster: String,
    /// The service's host.
    pub(super) host: String,
    /// Its port.
    pub(super) port: u32,
}

/// The provider called `name`; names are not case-sensitive.
pub(super) fn find<'a>(view: &'a View<'_>, name: &str) -> Option<&'a ExtensionProvider> {
    let providers = &view.push.mesh.extension_providers;
    providers
        .iter()
        .find(|provider| provider.name.eq_ignore_ascii_case(name))
}

/// `service` (`host`, or `namespace/host`) as a cluster of the mesh.
///
/// # Errors
/// When no such service is known.
pub(super) fn upstream(view: &View<'_>, service: &str, port: u32) -> Result<Upstream, String> {
    let (namespace, host) = service
        .split_once('/')
        .map_or((None, service), |(namespace, host)| (Some(namespace), host));
    let found = match namespace {
        Some(namespace) => view.push.services.lookup(host, namespace),
        None => view
            .service(host)
            .or_else(|| view.push.services.lookup(host, &view.proxy.namespace)),
    };
    let found = found.ok_or_else(|| format!("service {service} is not known"))?;
    if found.port(port).is_none() {
        return Err(format!("service {service} has no port {port}"));
    }
    Ok(Upstream {
        cluster: ClusterName::outbound(port, "", &found.host).to_string(),
        host: found.host.clone(),
        port,
    })
}

impl Upstream {
    /// The service, asked over gRPC.
    pub(super) fn grpc(&self, timeout: Option<prost_types::Duration>) -> GrpcService {
        GrpcService {
            target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(
                grpc_service::EnvoyGrpc {
                    cluster_name: self.cluster.clone(),
                    authority: self.host.clone(),
                    ..grpc_service::EnvoyGrpc::default()
                },
            )),
            timeout,
            ..GrpcService::default()
        }
    }

    /// The service, asked over HTTP.
    pub(super) fn http(&self, path: &str, timeout: Option<prost_types::Duration>) -> HttpUri {
        HttpUri {
            uri: format!("http://{}:{}{path}", self.host, self.port),
            timeout: Some(timeout.unwrap_or(seconds(5))),
            http_upstream_type: Some(http_uri::HttpUpstreamType::Cluster(self.cluster.clone())),
        }
    }
}
