//! gRPC statistics: counts calls by outcome and their messages, for the cluster or, where so configured, for each method.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use prost_types::Any;
use proto::envoy::extensions::filters::http::grpc_stats::v3 as wire;
use wire::filter_config::PerMethodStatSpecifier;

use crate::http::headers::{RequestHeaders, names, text_of};
use crate::http::stream::Stream;
use crate::invalid::Invalid;
use crate::stat_group;
use crate::stats::{Counter, Scope};

use super::{FilterContext, FilterFactory, FilterKind, FilterStatus, HttpFilter, StreamEnd};

/// The filter's row.
pub(crate) const KIND: FilterKind = FilterKind {
    message: "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
    name: "envoy.filters.http.grpc_stats",
    build,
    routes: &[],
};

stat_group! {
    /// `cluster.<name>.grpc.…` or `cluster.<name>.grpc.<service>.<method>.…`
    struct GrpcStats {
        success: Counter, failure: Counter, total: Counter, request_message_count: Counter,
        response_message_count: Counter,
    }
}

/// The counters of a cluster or of one of its methods.
struct Calls {
    stats: Arc<GrpcStats>,
    /// By status.
    codes: Mutex<HashMap<u8, Arc<Counter>>>,
    scope: Scope,
}

/// Which methods have counters of their own.
enum Methods {
    None,
    All,
    Listed(Vec<(Box<str>, Vec<Box<str>>)>),
}

/// A cluster, and the method if it has counters of its own.
type Key = (Arc<str>, Option<Box<str>>);

struct Config {
    methods: Methods,
    /// Dots in a service's name would read as the levels of the statistic's.
    replaces_dots: bool,
    /// Kept by cluster and method: statistics that nobody holds are forgotten.
    calls: Mutex<HashMap<Key, Arc<Calls>>>,
}

struct Factory(Arc<Config>);

struct GrpcStatsFilter {
    config: Arc<Config>,
    calls: Option<Arc<Calls>>,
    requests: Messages,
    responses: Messages,
}

/// Counts the messages in a stream of bytes.
#[derive(Default)]
struct Messages {
    /// The part of a message's head that has come.
    head: Vec<u8>,
    /// What is left of the message.
    left: usize,
}

fn build(any: &Any, _context: &FilterContext<'_>) -> Result<Arc<dyn FilterFactory>, Invalid> {
    let config: wire::FilterConfig = super::unpack(any)?;
    let methods = match config.per_method_stat_specifier {
        Some(PerMethodStatSpecifier::StatsForAllMethods(true)) => Methods::All,
        Some(PerMethodStatSpecifier::IndividualMethodStatsAllowlist(list)) => Methods::Listed(
            list.services
                .into_iter()
                .map(|service| {
                    let methods = service.method_names.into_iter().map(Into::into);
                    (service.name.into(), methods.collect())
                })
                .collect(),
        ),
        Some(PerMethodStatSpecifier::StatsForAllMethods(false)) | None => Methods::None,
    };
    Ok(Arc::new(Factory(Arc::new(Config {
        methods,
        replaces_dots: config.replace_dots_in_grpc_service_name,
        calls: Mutex::default(),
    }))))
}

impl FilterFactory for Factory {
    fn create(&self) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(GrpcStatsFilter {
            config: self.0.clone(),
            calls: None,
            requests: Messages::default(),
            responses: Messages::default(),
        }))
    }
}

impl Config {
    /// `service.method` of a path, if it has counters of its own.
    fn method(&self, path: &str) -> Option<Box<str>> {
        let (service, method) = path.strip_prefix('/')?.split_once('/')?;
        let is_counted = match &self.methods {
            Methods::None => false,
            Methods::All => true,
            Methods::Listed(list) => list.iter().any(|(name, methods)| {
                **name == *service && methods.iter().any(|name| **name == *method)
            }),
        };
        is_counted.then(|| {
            if self.replaces_dots {
                format!("{}.{method}", service.replace('.', "_")).into()
            } else {
                format!("{service}.{method}").into()
            }
        })
    }

    fn calls(&self, cluster: &Arc<str>, path: &str, stream: &Stream) -> Option<Arc<Calls>> {
        let key = (cluster.clone(), self.method(path));
        let mut calls = self.calls.lock();
        if let Some(known) = calls.get(&key) {
            return Some(known.clone());
        }
        let clusters = &stream.worker().clusters;
        let mut scope = clusters.get(cluster)?.scope.scope("grpc");
        if let Some(method) = &key.1 {
            scope = scope.scope(method);
        }
        let new = Arc::new(Calls {
            stats: scope.group(),
            codes: Mutex::default(),
            scope,
        });
        // Clusters that are gone would only take up room.
        calls.retain(|(name, _), _| clusters.get(name).is_some());
        calls.insert(key, new.clone());
        Some(new)
    }
}

impl Calls {
    /// A call has ended with this status.
    fn ended(&self, status: u8) {
        let counter = || self.scope.counter(&status.to_string());
        (self.codes.lock().entry(status).or_insert_with(counter)).inc();
        self.stats.total.inc();
        if status == 0 {
            self.stats.success.inc();
        } else {
            self.stats.failure.inc();
        }
    }
}

impl Messages {
    /// How many messages begin in `data`.
    fn count(&mut self, mut data: &[u8]) -> u64 {
        let mut count = 0;
        while !data.is_empty() {
            let skipped = self.left.min(data.len());
            self.left -= skipped;
            data = &data[skipped..];
            let missing = (5 - self.head.len()).min(data.len());
            self.head.extend_from_slice(&data[..missing]);
            data = &data[missing..];
            if let [_, length @ ..] = self.head.as_slice()
                && let Ok(length) = <[u8; 4]>::try_from(length)
            {
                self.left = u32::from_be_bytes(length) as usize;
                self.head.clear();
                count += 1;
            }
        }
        count
    }
}

impl HttpFilter for GrpcStatsFilter {
    fn decode_headers(
        &mut self,
        headers: &mut RequestHeaders,
        stream: &mut Stream,
    ) -> FilterStatus {
        if headers.is_grpc() {
            self.calls = stream
                .route()
                .and_then(|route| route.cluster())
                .and_then(|name| self.config.calls(name, headers.path.path(), stream));
        }
        FilterStatus::Continue
    }

    fn decode_data(&mut self, data: Bytes, _stream: &mut Stream) -> Bytes {
        if let Some(calls) = &self.calls {
            let count = self.requests.count(&data);
            calls.stats.request_message_count.add(count);
        }
        data
    }

    fn encode_data(&mut self, data: Bytes, _stream: &mut Stream) -> Bytes {
        if let Some(calls) = &self.calls {
            let count = self.responses.count(&data);
            calls.stats.response_message_count.add(count);
        }
        data
    }

    fn sees_data(&self) -> bool {
        self.calls.is_some()
    }

    fn on_log(&mut self, end: &StreamEnd<'_>) {
        let Some(calls) = &self.calls else {
            return;
        };
        let of_map = |map| text_of(map, &names::GRPC_STATUS);
        let of_head = || end.response.and_then(|head| of_map(&head.map));
        // What is no number would make names without end.
        let status = end.trailers.and_then(of_map).or_else(of_head);
        if let Some(status) = status.and_then(|status| status.parse().ok()) {
            calls.ended(status);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Messages;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let bytes = b"\0\0\0\0\x02ab\0\0\0\0\0\0\0\0\0\x01c";
        assert_eq!(Messages::default().count(bytes), 3);
        let mut messages = Messages::default();
        let count: u64 = bytes.chunks(1).map(|byte| messages.count(byte)).sum();
        assert_eq!(count, 3);
    }
}
