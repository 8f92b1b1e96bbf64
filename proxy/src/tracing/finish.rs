//! The end of a stream's span: what became of the request, as tags.

use http::HeaderMap;

use crate::access_log::FormatContext;
use crate::http::headers::{RequestHeaders, is_grpc, names, text_of};
use crate::http::stream::StreamState;

use super::span::Span;

/// Ends a stream's span and hands it to the exporter.
pub(crate) fn finish(state: &mut StreamState) {
    let Some(mut span) = state.stream.info.span.take() else {
        return;
    };
    if !span.is_sampled {
        return;
    }
    let connection = state.stream.connection.clone();
    let Some(config) = &connection.manager.tracing else {
        return;
    };
    let info = &state.stream.info;
    span.tag("node_id", connection.worker.server.node.id.clone());
    let zone = connection.worker.server.node.locality.as_ref();
    span.tag("zone", zone.map(|l| l.zone.clone()).unwrap_or_default());
    span.tag_request(&state.request, config.max_path);
    if let Some(protocol) = info.protocol {
        span.tag("http.protocol", protocol_text(protocol));
    }
    let peer = info.connection.direct_remote_address.ip();
    span.tag("peer.address", peer.to_string());
    span.tag("request_size", info.bytes_received.to_string());
    span.tag("response_size", info.bytes_sent.to_string());
    span.tag("component", "proxy");
    if let Some(cluster) = &info.upstream.cluster {
        span.tag("upstream_cluster", cluster.name().to_string());
        span.tag("upstream_cluster.name", cluster.name().to_string());
    }
    span.tag_outcome(info.response_code, info.flags);
    if is_grpc(&state.request.map) {
        let empty = HeaderMap::new();
        let head = state.response.as_ref().map_or(&empty, |head| &head.map);
        let trailers = state.trailers.as_ref().unwrap_or(&empty);
        let said = |name| text_of(trailers, name).or_else(|| text_of(head, name));
        if let Some(status) = said(&names::GRPC_STATUS) {
            span.tag("grpc.status_code", status);
            if status != "0" {
                span.tag("error", "true");
            }
        }
        if let Some(message) = said(&names::GRPC_MESSAGE) {
            span.tag("grpc.message", message);
        }
    }
    let context = FormatContext {
        response: state.response.as_ref(),
        trailers: state.trailers.as_ref(),
        ..FormatContext::of_request(info, &state.request)
    };
    let of_route = info.route.as_ref();
    let of_route = of_route.and_then(|route| route.route().tracing.as_deref());
    for tag in config.tags_of(of_route) {
        if let Some(value) = tag.value(&context) {
            span.tag(tag.name.to_string(), value);
        }
    }
    span.report(&connection.worker);
}

impl Span {
    fn tag_request(&mut self, request: &RequestHeaders, max_path: usize) {
        let text = |name| request.text(name);
        if let Some(id) = text(&names::X_REQUEST_ID) {
            self.tag("guid:x-request-id", id);
        }
        let path = text(&names::X_ENVOY_ORIGINAL_PATH).unwrap_or(request.path.as_str());
        let path = path.get(..max_path).unwrap_or(path);
        let url = format!("{}://{}{path}", request.scheme.as_str(), request.host());
        self.tag("http.url", url);
        self.tag("http.method", request.method.as_str());
        let cluster = text(&names::X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER);
        self.tag("downstream_cluster", cluster.unwrap_or("-"));
        let agent = text(&http::header::USER_AGENT);
        self.tag("user_agent", agent.unwrap_or("-"));
        if let Some(id) = text(&names::X_CLIENT_TRACE_ID) {
            self.tag("guid:x-client-trace-id", id);
        }
        if request.is_grpc() {
            self.tag("grpc.path", request.path.as_str());
            self.tag("grpc.authority", request.host());
            let kind = text(&http::header::CONTENT_TYPE);
            self.tag("grpc.content_type", kind.unwrap_or_default());
            if let Some(timeout) = text(&names::GRPC_TIMEOUT) {
                self.tag("grpc.timeout", timeout);
            }
        }
    }
}

/// As tags name HTTP's versions.
pub(crate) fn protocol_text(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_10 => "HTTP/1.0",
        http::Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}
