//! External authorization of connections: a gRPC service says whether one may be served.
//!
//! It is asked when the connection is up, not with the first byte as in Envoy: nothing is served before the answer.

#![allow(
    deprecated,
    reason = "the first version's name is deprecated, and refused"
)]

use super::{FactoryContext, Filter, NetworkFilter, Verdict};
use crate::{
    invalid::{At as _, Invalid},
    listener::{Connection, ConnectionInfo},
    matcher::MetadataMatcher,
    stat_group,
    transport::url_encoded_pem,
    upstream::GrpcChannel,
    wire::duration_or,
};
use futures::future::LocalBoxFuture;
use prost_types::{Any, Struct, value::Kind};
use proto::envoy::{
    config::core::v3::{
        Address, ApiVersion, GrpcService, SocketAddress, address, grpc_service::TargetSpecifier,
        socket_address::PortSpecifier,
    },
    extensions::filters::network::ext_authz::v3::ExtAuthz as Wire,
    service::auth::v3::{
        AttributeContext, CheckRequest, CheckResponse,
        attribute_context::{Peer, TlsSession},
        authorization_client::AuthorizationClient,
    },
};
use std::{collections::BTreeMap, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};

/// Envoy's patience with the service.
const TIMEOUT: Duration = Duration::from_millis(200);
/// Where the answer's metadata goes.
const NAMESPACE: &str = "envoy.filters.network.ext_authz";

stat_group! {
    /// `ext_authz.<stat_prefix>.…`
    pub(crate) struct ExtAuthzStats {
        active: Gauge, cx_closed: Counter, denied: Counter, disabled: Counter, error: Counter, failure_mode_allowed: Counter,
        ok: Counter, total: Counter,
    }
}

struct ExtAuthz {
    channel: GrpcChannel,
    metadata: MetadataMap,
    timeout: Duration,
    is_open: bool,
    has_certificate: bool,
    has_tls_session: bool,
    enabled: Option<MetadataMatcher>,
    namespaces: Vec<String>,
    labels: BTreeMap<String, String>,
    stats: Arc<ExtAuthzStats>,
}

/// Builds the filter.
pub(super) fn build(any: &Any, context: &FactoryContext<'_>) -> Result<Filter, Invalid> {
    let wire: Wire = proto::any::unpack(any)?;
    for (is_set, field) in [
        (wire.shadow_mode, "shadow_mode"),
        (wire.send_tls_alert_on_denial, "send_tls_alert_on_denial"),
        (
            !wire.typed_metadata_context_namespaces.is_empty(),
            "typed_metadata_context_namespaces",
        ),
    ] {
        if is_set {
            return Err(Invalid::new("not supported").at(field));
        }
    }
    if wire.stat_prefix.is_empty() {
        return Err(Invalid::new("it is needed").at("stat_prefix"));
    }
    if wire.transport_api_version() == ApiVersion::V2 {
        return Err(Invalid::unsupported("V2").at("transport_api_version"));
    }
    let service = wire.grpc_service.as_ref();
    let service = service.ok_or_else(|| Invalid::new("it is needed").at("grpc_service"))?;
    let (channel, metadata) = channel(service, context).at("grpc_service")?;
    Ok(Filter::Passing(Arc::new(ExtAuthz {
        channel,
        metadata,
        timeout: duration_or(service.timeout.as_ref(), TIMEOUT, "grpc_service.timeout")?,
        is_open: wire.failure_mode_allow,
        has_certificate: wire.include_peer_certificate,
        has_tls_session: wire.include_tls_session,
        enabled: wire
            .filter_enabled_metadata
            .as_ref()
            .map(MetadataMatcher::try_from)
            .transpose()
            .at("filter_enabled_metadata")?,
        namespaces: wire.metadata_context_namespaces,
        labels: labels(&wire.bootstrap_metadata_labels_key, context),
        stats: context
            .stats
            .scope("ext_authz")
            .tagged("", "envoy.ext_authz_prefix", &wire.stat_prefix)
            .group(),
    })))
}

fn channel(
    wire: &GrpcService,
    context: &FactoryContext<'_>,
) -> Result<(GrpcChannel, MetadataMap), Invalid> {
    let Some(TargetSpecifier::EnvoyGrpc(envoy)) = &wire.target_specifier else {
        return Err(Invalid::unsupported("anything but envoy_grpc"));
    };
    let mut metadata = MetadataMap::new();
    for header in &wire.initial_metadata {
        let invalid = |_| Invalid::new(format!("{:?} is not metadata", header.key));
        let key: MetadataKey<_> = header
            .key
            .parse()
            .map_err(|_| invalid(()))
            .at("initial_metadata")?;
        let value: MetadataValue<_> = header
            .value
            .parse()
            .map_err(|_| invalid(()))
            .at("initial_metadata")?;
        metadata.append(key, value);
    }
    let clusters = context.server.clusters.clone();
    let channel = GrpcChannel::new(clusters, &envoy.cluster_name, &envoy.authority);
    Ok((channel, metadata))
}

/// The node's metadata of that name, as labels.
fn labels(key: &str, context: &FactoryContext<'_>) -> BTreeMap<String, String> {
    let metadata = context.server.node.metadata.as_ref();
    let value = metadata.and_then(|metadata| metadata.fields.get(key));
    match value.and_then(|value| value.kind.as_ref()) {
        Some(Kind::StructValue(fields)) => fields
            .fields
            .iter()
            .filter_map(|(name, value)| match &value.kind {
                Some(Kind::StringValue(text)) => Some((name.clone(), text.clone())),
                _ => None,
            })
            .collect(),
        _ => BTreeMap::new(),
    }
}

impl NetworkFilter for ExtAuthz {
    fn on_new_connection<'a>(
        &'a self,
        connection: &'a mut Connection,
    ) -> LocalBoxFuture<'a, Verdict> {
        Box::pin(async move {
            let info = &connection.info;
            if let Some(enabled) = &self.enabled
                && !enabled.matches(info.metadata.get(enabled.filter()))
            {
                self.stats.disabled.inc();
                return Verdict::Continue;
            }
            self.stats.total.inc();
            self.stats.active.inc();
            let answer = self.ask(info).await;
            self.stats.active.dec();
            let is_allowed = match answer {
                Ok(answer) => {
                    let is_ok = answer.status.as_ref().is_none_or(|status| status.code == 0);
                    if let Some(metadata) = answer.dynamic_metadata {
                        Rc::make_mut(&mut connection.info)
                            .metadata
                            .merge(NAMESPACE, metadata);
                    }
                    if is_ok {
                        &self.stats.ok
                    } else {
                        &self.stats.denied
                    }
                    .inc();
                    is_ok
                }
                Err(status) => {
                    tracing::debug!(target: "ext_authz", connection = info.id, error = status.message(), "no answer");
                    self.stats.error.inc();
                    if self.is_open {
                        self.stats.failure_mode_allowed.inc();
                    }
                    self.is_open
                }
            };
            if is_allowed {
                return Verdict::Continue;
            }
            self.stats.cx_closed.inc();
            connection.info.meter.because("ext_authz_close");
            Verdict::Close
        })
    }
}

impl ExtAuthz {
    async fn ask(&self, info: &ConnectionInfo) -> Result<CheckResponse, tonic::Status> {
        let mut request = tonic::Request::new(CheckRequest {
            attributes: Some(self.describe(info)),
        });
        *request.metadata_mut() = self.metadata.clone();
        let mut client = AuthorizationClient::new(self.channel.clone());
        let answer = client.check(request);
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(tonic::Status::deadline_exceeded("timeout")),
        }
    }

    fn describe(&self, info: &ConnectionInfo) -> AttributeContext {
        let tls = info.tls.as_deref();
        let peer = tls.and_then(|tls| tls.peer.as_deref());
        let principal = |uris: &[String], dns: &[String], subject: &str| {
            let first = uris.first().or_else(|| dns.first());
            first.map_or_else(|| subject.to_owned(), Clone::clone)
        };
        let filter_metadata: BTreeMap<String, Struct> = self
            .namespaces
            .iter()
            .filter_map(|name| Some((name.clone(), info.metadata.get(name)?.clone())))
            .collect();
        AttributeContext {
            source: Some(Peer {
                address: Some(address(info.remote_address)),
                principal: peer
                    .map(|peer| principal(&peer.uri_sans, &peer.dns_sans, &peer.subject))
                    .unwrap_or_default(),
                certificate: peer
                    .filter(|_| self.has_certificate)
                    .and_then(|peer| peer.chain.first())
                    .map(|leaf| url_encoded_pem(std::slice::from_ref(leaf)))
                    .unwrap_or_default(),
                ..Peer::default()
            }),
            destination: Some(Peer {
                address: Some(address(info.local_address)),
                principal: tls
                    .map(|tls| {
                        principal(&tls.local.uri_sans, &tls.local.dns_sans, &tls.local.subject)
                    })
                    .unwrap_or_default(),
                labels: self.labels.clone(),
                ..Peer::default()
            }),
            tls_session: (self.has_tls_session && info.server_name.is_some()).then(|| TlsSession {
                sni: info.server_name.as_deref().unwrap_or_default().to_owned(),
            }),
            metadata_context: Some(proto::envoy::config::core::v3::Metadata {
                filter_metadata,
                ..Default::default()
            }),
            ..AttributeContext::default()
        }
    }
}

fn address(of: SocketAddr) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: of.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(of.port().into())),
            ..SocketAddress::default()
        })),
    }
}
