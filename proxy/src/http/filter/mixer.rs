//! The Mixer filter: collects what is known of a request, asks Mixer whether it may pass, and tells it afterwards what became
//! of it. Follows the filter of Istio's 1.4 proxy.
//!
//! What is the same for all requests of a route on a worker is put together once ([`profile`]); of each request only what is its
//! own is written down, into a record that another has used before it.

mod profile;
mod request;
mod response;

use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};
use prost_types::value::Kind;
use prost_types::{Any, Struct, Value};
use proto::istio::mixer::v1::HeaderOperation;
use proto::istio::mixer::v1::config::client as wire;
use proto::istio::mixer::v1::header_operation::Operation;
use proto_mesh::attribute::Attributes;
use proto_mesh::attribute::record::Record;

pub(crate) use request::{add_connection, own_attributes, set_ip};
pub(crate) use response::{add_destination, add_outcome, count, duration};

use crate::http::headers::{RequestHeaders, ResponseHeaders};
use crate::http::local_reply::LocalReply;
use crate::http::stream::Stream;
use crate::invalid::{At as _, Invalid};
use crate::mixer_client::config::{self, ServiceConfig, Transport};
use crate::mixer_client::{Check, Client, Outcome};
use crate::stream_info::ResponseFlag;

use super::{
    FilterContext, FilterFactory, FilterKind, FilterStatus, HttpFilter, Resume, RouteValue,
    StreamEnd,
};
use profile::Profile;

/// The filter's name, also on routes.
const NAME: &str = "mixer";
/// Where the filter leaves its verdict for others.
const METADATA: &str = "istio.mixer";
/// Attributes on their way from one proxy to the next.
static FORWARDED: HeaderName = HeaderName::from_static("x-istio-attributes");

/// The filter's row.
pub(crate) const KIND: FilterKind = FilterKind {
    message: "istio.mixer.v1.config.client.HttpClientConfig",
    name: NAME,
    build,
    routes: &[("istio.mixer.v1.config.client.ServiceConfig", route)],
};

/// The filter's configuration.
struct MixerConfig {
    name: Box<str>,
    transport: Arc<Transport>,
    /// For routes that say nothing.
    default_service: Option<Arc<ServiceConfig>>,
    attributes: Attributes,
    forward: Attributes,
    ignores_forwarded: bool,
    /// What the node's own metadata says of this workload; the same for the life of the process.
    own: OnceLock<Attributes>,
}

struct Factory(Arc<MixerConfig>);

/// One request's filter.
struct Mixer {
    config: Arc<MixerConfig>,
    /// None: nothing to do on this route.
    request: Option<CheckedRequest>,
}

struct CheckedRequest {
    client: Rc<Client>,
    is_reported: bool,
    record: Rc<Record>,
    outcome: Rc<OnceCell<Outcome>>,
}

fn build(any: &Any, context: &FilterContext<'_>) -> Result<Arc<dyn FilterFactory>, Invalid> {
    let config: wire::HttpClientConfig = super::unpack(any)?;
    let key = match config.default_destination_service.as_str() {
        "" => "default",
        service => service,
    };
    let default_service = config
        .service_configs
        .get(key)
        .map(|service| ServiceConfig::try_from(service).map(Arc::new))
        .transpose()
        .at(format_args!("service_configs[{key}]"))?;
    Ok(Arc::new(Factory(Arc::new(MixerConfig {
        name: context.name.into(),
        transport: config::transport(config.transport.as_ref())?,
        default_service,
        attributes: config::attributes(config.mixer_attributes.as_ref()),
        forward: config::attributes(config.forward_attributes.as_ref()),
        ignores_forwarded: config.ignore_forwarded_attributes,
        own: OnceLock::new(),
    }))))
}

fn route(any: &Any) -> Result<RouteValue, Invalid> {
    let config: wire::ServiceConfig = super::unpack(any)?;
    Ok(Arc::new(Arc::new(ServiceConfig::try_from(&config)?)))
}

impl FilterFactory for Factory {
    fn create(&self) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(Mixer {
            config: self.0.clone(),
            request: None,
        }))
    }
}

impl MixerConfig {
    fn service(&self, stream: &Stream) -> Option<Arc<ServiceConfig>> {
        let of_route = stream.route_config::<Arc<ServiceConfig>>(&self.name);
        let of_route = match of_route {
            None if *self.name != *NAME => stream.route_config(NAME),
            found => found,
        };
        of_route.cloned().or_else(|| self.default_service.clone())
    }

    fn own_attributes(&self, stream: &Stream) -> &Attributes {
        self.own.get_or_init(|| {
            let is_outbound =
                self.attributes.get_string("context.reporter.kind") == Some("outbound");
            request::own_attributes(&stream.worker().server.node, is_outbound)
        })
    }
}

impl HttpFilter for Mixer {
    fn decode_headers(
        &mut self,
        headers: &mut RequestHeaders,
        stream: &mut Stream,
    ) -> FilterStatus {
        // Attributes are never passed on as they came.
        let forwarded = headers.map.remove(&FORWARDED);
        let service = self.config.service(stream);
        let profile = Profile::of(&self.config, service.as_ref(), stream);
        if let Some(forward) = &profile.forward {
            headers.map.insert(FORWARDED.clone(), forward.clone());
        }
        let (Some(service), Some((client, base))) = (&service, &profile.client) else {
            return FilterStatus::Continue;
        };
        let forwarded = forwarded.filter(|_| !self.config.ignores_forwarded);
        let mut record = client.record(base);
        request::fill(
            Rc::make_mut(&mut record),
            headers,
            stream,
            forwarded.as_ref(),
        );
        let outcome = Rc::new(OnceCell::new());
        let status = if service.is_checked {
            let quotas = service.quotas.iter();
            let quotas = quotas.flat_map(|spec| spec.requirements(&record)).collect();
            let policy = service
                .fail_policy
                .as_ref()
                .unwrap_or(&self.config.transport.fail_policy);
            match client.check(&record, quotas, policy) {
                Check::Done(done) => settle(done, &outcome, headers, stream),
                Check::Wait(answer) => {
                    let outcome = outcome.clone();
                    FilterStatus::Wait(Box::pin(async move {
                        let done = answer.await;
                        Resume::Then(Box::new(move |headers, stream| {
                            settle(done, &outcome, headers, stream)
                        }))
                    }))
                }
            }
        } else {
            FilterStatus::Continue
        };
        self.request = Some(CheckedRequest {
            client: client.clone(),
            is_reported: service.is_reported,
            record,
            outcome,
        });
        status
    }

    fn encode_headers(&mut self, headers: &mut ResponseHeaders, _: &mut Stream) {
        let Some(request) = &self.request else {
            return;
        };
        if let Some(outcome) = request.outcome.get()
            && outcome.is_ok()
            && let Some(directive) = outcome.directive()
        {
            change_headers(&mut headers.map, &directive.response_header_operations);
        }
    }

    fn on_log(&mut self, end: &StreamEnd<'_>) {
        let Some(mut request) = self.request.take() else {
            return;
        };
        if request.is_reported {
            // A copy only where the client has gone while Mixer was asked.
            let record = Rc::make_mut(&mut request.record);
            response::fill(record, end, request.outcome.get());
            request.client.report(record);
        }
        request.client.recycle(request.record);
    }
}

/// Does what the check says.
fn settle(
    done: Outcome,
    place: &OnceCell<Outcome>,
    headers: &mut RequestHeaders,
    stream: &mut Stream,
) -> FilterStatus {
    let status = decide(&done, headers, stream);
    // There is one check for each request.
    let _ = place.set(done);
    status
}

fn decide(done: &Outcome, headers: &mut RequestHeaders, stream: &mut Stream) -> FilterStatus {
    let directive = done.directive();
    if let Some(directive) = directive.filter(|directive| directive.direct_response_code != 0) {
        let code = u16::try_from(directive.direct_response_code).unwrap_or(500);
        let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = Bytes::from(directive.direct_response_body.clone());
        let mut reply = LocalReply::new(status, body, "mixer_direct_response");
        for operation in &directive.response_header_operations {
            if let Some((name, value)) = header(operation) {
                reply = reply.header(&name, value);
            }
        }
        note(stream, done);
        return FilterStatus::reply(reply);
    }
    if !done.is_ok() {
        note(stream, done);
        let mut reply = LocalReply::new(done.http_status(), done.body(), "mixer_access_denied")
            .flag(ResponseFlag::UnauthorizedExternalService);
        reply.grpc_status = u32::try_from(done.status.code).ok();
        return FilterStatus::reply(reply);
    }
    if let Some(directive) =
        directive.filter(|directive| !directive.request_header_operations.is_empty())
    {
        change_request(headers, &directive.request_header_operations);
        // Routes may match on what has changed.
        stream.clear_route();
    }
    FilterStatus::Continue
}

/// Leaves the verdict for access logs and later filters.
fn note(stream: &mut Stream, done: &Outcome) {
    let code = Value {
        kind: Some(Kind::NumberValue(f64::from(done.status.code))),
    };
    let fields = [("status".to_owned(), code)].into();
    stream.info.metadata.merge(METADATA, Struct { fields });
}

fn change_request(headers: &mut RequestHeaders, operations: &[HeaderOperation]) {
    for operation in operations {
        let value = HeaderValue::from_str(&operation.value);
        match (operation.name.to_ascii_lowercase().as_str(), value) {
            // What cannot be changed into a header of this kind is left as it is.
            (":authority" | "host", Ok(value)) => headers.authority = value,
            (":path", Ok(value)) => {
                let _ = headers.set_path(value.as_bytes());
            }
            (name, _) if name.starts_with(':') => {}
            _ => change_header(&mut headers.map, operation),
        }
    }
}

fn change_headers(map: &mut HeaderMap, operations: &[HeaderOperation]) {
    for operation in operations {
        change_header(map, operation);
    }
}

fn change_header(map: &mut HeaderMap, operation: &HeaderOperation) {
    let Some((name, value)) = header(operation) else {
        return;
    };
    if operation.operation == i32::from(Operation::Remove) {
        map.remove(name);
    } else if operation.operation == i32::from(Operation::Append) {
        map.append(name, value);
    } else {
        map.insert(name, value);
    }
}

fn header(operation: &HeaderOperation) -> Option<(HeaderName, HeaderValue)> {
    let name = HeaderName::from_bytes(operation.name.to_ascii_lowercase().as_bytes()).ok()?;
    let value = HeaderValue::from_str(&operation.value).ok()?;
    Some((name, value))
}
