//! SDS: one stream a secret, as Envoy has it, usually to the agent's Unix socket. Files are read and read again.
#![allow(
    deprecated,
    reason = "control planes still send the fields that Envoy has deprecated"
)]

use super::{Pause, channel, is_ads};
use crate::{config::ConfigStore, transport::SecretSlot};
use proto::{
    envoy::{
        config::core::v3::{ApiConfigSource, ConfigSource, config_source::ConfigSourceSpecifier},
        extensions::transport_sockets::tls::v3::Secret as WireSecret,
        service::{
            discovery::v3::{DiscoveryRequest, DiscoveryResponse},
            secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient,
        },
    },
    google::rpc::{Code, Status},
};
use proto_component::task;
use std::{
    collections::HashSet,
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;

/// How often a file is looked at.
const FILE_INTERVAL: Duration = Duration::from_secs(1);
/// Patience for the server to accept a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);

/// Starts a task for every secret that is asked for, for ever.
pub(crate) async fn run_secrets(store: Arc<ConfigStore>) {
    let mut added = store.secrets.watch();
    let mut known: HashSet<usize> = HashSet::new();
    loop {
        added.mark_unchanged();
        let slots = store.secrets.all();
        let now: HashSet<usize> = slots
            .iter()
            .map(|slot| Arc::as_ptr(slot) as usize)
            .collect();
        known.retain(|pointer| now.contains(pointer));
        for slot in slots {
            let Some(source) = slot.source.clone().filter(|source| !is_ads(source)) else {
                continue;
            };
            if known.insert(Arc::as_ptr(&slot) as usize) {
                task::spawn(
                    "sds",
                    follow(
                        store.clone(),
                        Arc::downgrade(&slot),
                        slot.name.clone(),
                        source,
                    ),
                );
            }
        }
        if added.changed().await.is_err() {
            return;
        }
    }
}

async fn follow(
    store: Arc<ConfigStore>,
    slot: Weak<SecretSlot>,
    name: String,
    source: ConfigSource,
) {
    match &source.config_source_specifier {
        Some(ConfigSourceSpecifier::ApiConfigSource(api)) => {
            follow_grpc(&store, &slot, &name, &source, api).await;
        }
        Some(ConfigSourceSpecifier::PathConfigSource(path)) => {
            follow_file(&store, &slot, &name, &source, &path.path).await;
        }
        Some(ConfigSourceSpecifier::Path(path)) => {
            follow_file(&store, &slot, &name, &source, path).await;
        }
        _ => tracing::error!(target: "secret", name, "this source of secrets is not supported"),
    }
}

async fn follow_grpc(
    store: &Arc<ConfigStore>,
    slot: &Weak<SecretSlot>,
    name: &str,
    source: &ConfigSource,
    api: &ApiConfigSource,
) {
    let mut pause = Pause::new();
    let mut version = String::new();
    while slot.strong_count() > 0 {
        let began = Instant::now();
        if let Err(error) = stream(store, slot, name, source, api, &mut version).await {
            tracing::warn!(target: "secret", name, %error, "secret stream failed");
        }
        pause.after(began.elapsed()).await;
    }
}

async fn stream(
    store: &Arc<ConfigStore>,
    slot: &Weak<SecretSlot>,
    name: &str,
    source: &ConfigSource,
    api: &ApiConfigSource,
    version: &mut String,
) -> anyhow::Result<()> {
    let (channel, metadata) = channel(store, api)?;
    let (sender, requests) = mpsc::channel(4);
    let first = DiscoveryRequest {
        version_info: version.clone(),
        node: Some(store.server.node.clone()),
        resource_names: vec![name.to_owned()],
        type_url: proto::type_url::SECRET.to_owned(),
        ..DiscoveryRequest::default()
    };
    sender.send(first).await?;
    let mut request = tonic::Request::new(ReceiverStream::new(requests));
    *request.metadata_mut() = metadata;
    let mut service = SecretDiscoveryServiceClient::new(channel);
    let mut responses = tokio::time::timeout(OPEN_TIMEOUT, service.stream_secrets(request))
        .await??
        .into_inner();
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    loop {
        let response = tokio::select! {
            response = responses.message() => response?,
            _ = tick.tick() => {
                if slot.strong_count() == 0 {
                    return Ok(());
                }
                continue;
            }
        };
        let Some(response) = response else {
            return Ok(());
        };
        let outcome = apply(store, name, source, &response);
        if outcome.is_ok() {
            version.clone_from(&response.version_info);
        }
        let error_detail = outcome.err().map(|message| {
            tracing::warn!(target: "secret", name, error = message, "secret refused");
            Status {
                code: Code::InvalidArgument.into(),
                message,
                ..Status::default()
            }
        });
        let answer = DiscoveryRequest {
            version_info: version.clone(),
            resource_names: vec![name.to_owned()],
            type_url: response.type_url,
            response_nonce: response.nonce,
            error_detail,
            ..DiscoveryRequest::default()
        };
        sender.send(answer).await?;
    }
}

fn apply(
    store: &ConfigStore,
    name: &str,
    source: &ConfigSource,
    response: &DiscoveryResponse,
) -> Result<(), String> {
    for any in &response.resources {
        let wire: WireSecret = proto::any::unpack(any).map_err(|error| error.to_string())?;
        // A server may send more than was asked for on this stream.
        if wire.name == name {
            store
                .set_secret(&wire, |of| of == source)
                .map_err(|error| format!("{name}: {error}"))?;
        }
    }
    Ok(())
}

/// A file with a discovery response in JSON or YAML; read again when it has changed.
async fn follow_file(
    store: &Arc<ConfigStore>,
    slot: &Weak<SecretSlot>,
    name: &str,
    source: &ConfigSource,
    path: &str,
) {
    let mut last: Option<SystemTime> = None;
    while slot.strong_count() > 0 {
        let modified = tokio::fs::metadata(path)
            .await
            .and_then(|metadata| metadata.modified())
            .ok();
        if modified.is_some() && modified != last {
            last = modified;
            let outcome = match tokio::fs::read_to_string(path).await {
                Ok(text) => proto::yaml::from_str::<DiscoveryResponse>(&text)
                    .map_err(|error| error.to_string())
                    .and_then(|response| apply(store, name, source, &response)),
                Err(error) => Err(error.to_string()),
            };
            if let Err(error) = outcome {
                tracing::warn!(target: "secret", name, path, error, "secret file refused");
            }
        }
        tokio::time::sleep(FILE_INTERVAL).await;
    }
}
