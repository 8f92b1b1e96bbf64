//! Access logs over gRPC: Envoy's access log service, one client stream a worker, opened anew when it ends.

mod entry;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use als::stream_access_logs_message as message;
use bytes::Bytes;
use prost::Message as _;
use proto::envoy::config::core::v3::Node;
use proto::envoy::data::accesslog::v3 as data;
use proto::envoy::extensions::access_loggers::grpc::v3 as wire;
use proto::envoy::service::accesslog::v3 as als;
use tokio::sync::mpsc;

use crate::http::client::{GrpcService, frame};
use crate::http::export::{Batch, BatchRules, Lease, current_worker};
use crate::invalid::{At as _, Invalid, try_all};
use crate::matcher::FieldName;
use crate::router::timeout::{duration, non_zero};
use crate::server::ServerContext;
use crate::tracing::CustomTag;
use crate::worker::Worker;

use super::FormatContext;

const STREAM: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";
/// A server that takes nothing for so long has lost what waits.
const PATIENCE: Duration = Duration::from_secs(5);

/// A checked gRPC access log.
#[derive(Debug)]
pub(super) struct GrpcLog {
    service: Arc<Service>,
    lease: Arc<Lease>,
    rules: BatchRules,
    entries: Entries,
}

/// What goes into an entry beside what is always there.
#[derive(Debug)]
pub(super) struct Entries {
    is_tcp: bool,
    request_headers: Vec<FieldName>,
    response_headers: Vec<FieldName>,
    response_trailers: Vec<FieldName>,
    tags: Vec<CustomTag>,
}

#[derive(Debug)]
struct Service {
    service: GrpcService,
    log_name: String,
    node: Node,
}

/// An entry of either kind.
pub(super) enum Entry {
    Http(Box<data::HttpAccessLogEntry>),
    Tcp(Box<data::TcpAccessLogEntry>),
}

/// The stream of one worker.
#[derive(Default)]
struct Stream(RefCell<Option<mpsc::Sender<Bytes>>>);

impl GrpcLog {
    pub(super) fn http(
        config: &wire::HttpGrpcAccessLogConfig,
        server: &Arc<ServerContext>,
    ) -> Result<Self, Invalid> {
        let names =
            |field: &str, names: &[String]| try_all(field, names, |name| FieldName::parse(name));
        let entries = Entries {
            is_tcp: false,
            request_headers: names(
                "additional_request_headers_to_log",
                &config.additional_request_headers_to_log,
            )?,
            response_headers: names(
                "additional_response_headers_to_log",
                &config.additional_response_headers_to_log,
            )?,
            response_trailers: names(
                "additional_response_trailers_to_log",
                &config.additional_response_trailers_to_log,
            )?,
            tags: Vec::new(),
        };
        Self::try_new(config.common_config.as_ref(), entries, server).at("common_config")
    }

    pub(super) fn tcp(
        config: &wire::TcpGrpcAccessLogConfig,
        server: &Arc<ServerContext>,
    ) -> Result<Self, Invalid> {
        let entries = Entries {
            is_tcp: true,
            request_headers: Vec::new(),
            response_headers: Vec::new(),
            response_trailers: Vec::new(),
            tags: Vec::new(),
        };
        Self::try_new(config.common_config.as_ref(), entries, server).at("common_config")
    }

    fn try_new(
        config: Option<&wire::CommonGrpcAccessLogConfig>,
        mut entries: Entries,
        server: &Arc<ServerContext>,
    ) -> Result<Self, Invalid> {
        let config = config.ok_or_else(|| Invalid::new("common_config is needed"))?;
        if config.log_name.is_empty() {
            return Err(Invalid::new("a log_name is needed").at("log_name"));
        }
        if !config.filter_state_objects_to_log.is_empty() {
            return Err(Invalid::unsupported("filter_state_objects_to_log"));
        }
        let service = config
            .grpc_service
            .as_ref()
            .ok_or_else(|| Invalid::new("a grpc_service is needed"))?;
        entries.tags = try_all("custom_tags", &config.custom_tags, CustomTag::try_from)?;
        Ok(GrpcLog {
            service: Arc::new(Service {
                service: GrpcService::try_from(service).at("grpc_service")?,
                log_name: config.log_name.clone(),
                node: server.node.clone(),
            }),
            lease: Arc::default(),
            rules: batch_rules(
                config.buffer_flush_interval.as_ref(),
                config.buffer_size_bytes,
            )?,
            entries,
        })
    }

    /// Adds the entry of a stream that is over.
    pub(super) fn log(&self, context: &FormatContext<'_>) {
        let Some(worker) = current_worker() else {
            return;
        };
        let entry = self.entries.entry(context);
        let bytes = match &entry {
            Entry::Http(entry) => entry.encoded_len(),
            Entry::Tcp(entry) => entry.encoded_len(),
        };
        let batch = Batch::of(&self.lease, &worker, self.rules, || {
            let service = self.service.clone();
            let stream = Rc::new(Stream::default());
            Box::new(move |worker, entries| {
                Box::pin(send(service.clone(), stream.clone(), worker, entries))
            })
        });
        batch.push(entry, bytes);
    }
}

/// Envoy's defaults: a second, 16 KiB; an empty buffer size sends at once.
pub(super) fn batch_rules(
    interval: Option<&prost_types::Duration>,
    bytes: Option<u32>,
) -> Result<BatchRules, Invalid> {
    let interval = duration(interval).at("buffer_flush_interval")?;
    Ok(BatchRules {
        interval: interval
            .and_then(non_zero)
            .unwrap_or(Duration::from_secs(1)),
        items: usize::MAX,
        bytes: bytes.unwrap_or(16_384) as usize,
        limit: 10_000,
    })
}

async fn send(service: Arc<Service>, stream: Rc<Stream>, worker: Rc<Worker>, entries: Vec<Entry>) {
    let mut http = Vec::new();
    let mut tcp = Vec::new();
    for entry in entries {
        match entry {
            Entry::Http(entry) => http.push(*entry),
            Entry::Tcp(entry) => tcp.push(*entry),
        }
    }
    let logs = if tcp.is_empty() {
        message::LogEntries::HttpLogs(message::HttpAccessLogEntries { log_entry: http })
    } else {
        message::LogEntries::TcpLogs(message::TcpAccessLogEntries { log_entry: tcp })
    };
    let known = stream.0.borrow().clone().filter(|known| !known.is_closed());
    let (sender, is_new) = match known {
        Some(known) => (known, false),
        None => {
            let (sender, end) = service.service.stream(&worker, STREAM);
            tokio::task::spawn_local(async move {
                if let Err(error) = end.await {
                    tracing::debug!(target: "access_log", %error, "the stream of access logs ended");
                }
            });
            *stream.0.borrow_mut() = Some(sender.clone());
            (sender, true)
        }
    };
    let message = als::StreamAccessLogsMessage {
        // Only the first message of a stream says who speaks.
        identifier: is_new.then(|| message::Identifier {
            node: Some(service.node.clone()),
            log_name: service.log_name.clone(),
        }),
        log_entries: Some(logs),
    };
    let sent = tokio::time::timeout(PATIENCE, sender.send(frame(&message))).await;
    if !matches!(sent, Ok(Ok(()))) {
        stream.0.borrow_mut().take();
        tracing::warn!(target: "access_log", log = service.log_name, "access log entries were lost");
    }
}
