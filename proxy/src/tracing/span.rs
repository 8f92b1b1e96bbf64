//! A span: one request as one proxy sees it. It lives in the stream's record from the route's selection to the stream's end.

use std::borrow::Cow;
use std::rc::Rc;
use std::time::SystemTime;

use http::HeaderMap;
use tokio::time::Instant;

use crate::access_log::FormatContext;
use crate::http::headers::{RequestHeaders, ResponseHeaders, names};
use crate::http::stream::{DownstreamConnection, StreamState};
use crate::router::SelectedRoute;
use crate::stream_info::{ResponseFlag, ResponseFlags};
use crate::upstream::Host;
use crate::worker::Worker;

use super::context::{self, Found, SpanContext};
use super::decision::{self, Reason};
use super::{Driver, RouteTracing, TracingConfig};

/// A span that is open.
pub(crate) struct Span {
    pub(super) context: SpanContext,
    pub(super) is_sampled: bool,
    pub(super) is_client: bool,
    /// The id is the caller's: both sides tell of one span.
    pub(super) is_shared: bool,
    pub(super) name: String,
    pub(super) start: SystemTime,
    pub(super) begun: Instant,
    pub(super) tags: Vec<(Cow<'static, str>, String)>,
    pub(super) driver: Driver,
    /// Upstreams are told of it.
    propagates: bool,
    /// The route's word for what it does, as long as it may be told to the other side.
    decorated: Option<Box<str>>,
}

/// An attempt's span; ends with it.
pub(crate) struct UpstreamSpan {
    span: Option<Box<Span>>,
    worker: Rc<Worker>,
    status: Option<u16>,
    flags: ResponseFlags,
}

/// Begins a stream's span, if its connection manager traces.
pub(crate) fn start(state: &mut StreamState) {
    let connection = state.stream.connection.clone();
    let Some(config) = &connection.manager.tracing else {
        return;
    };
    let StreamState {
        stream, request, ..
    } = state;
    let route = stream.info.route.clone();
    let of_route = route
        .as_ref()
        .and_then(|route| route.route().tracing.as_deref());
    let rules = &connection.manager.request_id;
    let sampling = of_route.map_or(config.sampling, |tracing| tracing.sampling);
    let mut reason = decision::decide(request, sampling, rules.packs_reason, rules.draws_by_id);
    if stream.info.is_health_check {
        reason = Reason::HealthCheck;
    }
    reason.count(&config.stats);
    stream.info.trace_reason = reason;
    let Some(driver) = &config.driver else {
        return;
    };
    let Some(mut span) = Span::begin(driver, config, request, reason.is_traced(), &stream.info)
    else {
        return;
    };
    span.decorate(config, route.as_ref(), request);
    span.name_by_format(
        config,
        of_route,
        &FormatContext::of_request(&stream.info, request),
    );
    stream.info.span = Some(Box::new(span));
}

impl Span {
    fn begin(
        driver: &Driver,
        config: &TracingConfig,
        request: &RequestHeaders,
        is_traced: bool,
        info: &crate::stream_info::StreamInfo,
    ) -> Option<Self> {
        let (context, is_sampled, is_shared) = match driver {
            Driver::Zipkin(zipkin) => zipkin.begin(&request.map, config.is_egress, is_traced)?,
            Driver::OpenTelemetry(driver) => driver.begin(&request.map, is_traced)?,
        };
        let name = match driver {
            Driver::Zipkin(_) => request.host().to_owned(),
            Driver::OpenTelemetry(_) if config.is_egress => format!("egress {}", request.host()),
            Driver::OpenTelemetry(_) => "ingress".to_owned(),
        };
        Some(Span {
            context,
            is_sampled,
            is_client: config.is_egress
                || matches!(driver, Driver::Zipkin(_)) && {
                    // Without a shared context the caller's span has a child, which is a client's in Envoy's eyes.
                    !is_shared && has_parent(driver, &request.map)
                },
            is_shared,
            name,
            start: info.start_time,
            begun: info.start,
            tags: Vec::new(),
            driver: driver.clone(),
            propagates: config.propagates,
            decorated: None,
        })
    }

    /// The route's name for the operation: ours, or the one that the other side told us.
    fn decorate(
        &mut self,
        config: &TracingConfig,
        route: Option<&SelectedRoute>,
        request: &mut RequestHeaders,
    ) {
        let decorator = route.and_then(|route| route.route().decorator.as_ref());
        if let Some(decorator) = decorator.filter(|decorator| !decorator.operation.is_empty()) {
            decorator.operation.as_ref().clone_into(&mut self.name);
            self.decorated = decorator.propagates.then(|| decorator.operation.clone());
        }
        if config.is_egress {
            if let Some(operation) = &self.decorated
                && let Ok(value) = http::HeaderValue::from_str(operation)
            {
                request
                    .map
                    .insert(names::X_ENVOY_DECORATOR_OPERATION.clone(), value);
            }
        } else if let Some(told) = request.map.remove(&names::X_ENVOY_DECORATOR_OPERATION)
            && !told.is_empty()
        {
            self.name = String::from_utf8_lossy(told.as_bytes()).into_owned();
            self.decorated = None;
        }
    }

    /// `operation` names the span before everything else.
    fn name_by_format(
        &mut self,
        config: &TracingConfig,
        of_route: Option<&RouteTracing>,
        context: &FormatContext<'_>,
    ) {
        let format = of_route
            .and_then(|tracing| tracing.operation.as_ref())
            .or(config.operation.as_ref());
        if let Some(name) = format
            .map(|format| format.text(context, ""))
            .filter(|name| !name.is_empty())
        {
            self.name = name;
        }
    }

    /// Tells the other side of the response the operation, or is told.
    pub(crate) fn see_response(&mut self, is_egress: bool, response: &mut ResponseHeaders) {
        if !is_egress {
            if let Some(operation) = &self.decorated
                && let Ok(value) = http::HeaderValue::from_str(operation)
            {
                response
                    .map
                    .insert(names::X_ENVOY_DECORATOR_OPERATION.clone(), value);
            }
        } else if let Some(told) = response.map.remove(&names::X_ENVOY_DECORATOR_OPERATION)
            && !told.is_empty()
        {
            self.name = String::from_utf8_lossy(told.as_bytes()).into_owned();
        }
    }

    /// Puts the context into the headers of a request that goes on.
    pub(crate) fn inject(&self, map: &mut HeaderMap) {
        if !self.propagates {
            return;
        }
        match &self.driver {
            Driver::Zipkin(zipkin) => {
                context::put_b3(map, &self.context, self.is_sampled);
                if zipkin.writes_w3c {
                    context::put_w3c(map, &self.context, self.is_sampled);
                }
            }
            Driver::OpenTelemetry(_) => context::put_w3c(map, &self.context, self.is_sampled),
        }
    }

    /// Adds a tag, unless nobody will see it.
    pub(super) fn tag(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<String>) {
        if self.is_sampled {
            let (name, value) = (name.into(), value.into());
            match self.tags.iter_mut().find(|(known, _)| *known == name) {
                Some((_, old)) => *old = value,
                None => self.tags.push((name, value)),
            }
        }
    }

    /// The trace's id.
    pub(crate) fn trace_id(&self) -> String {
        match &self.driver {
            Driver::Zipkin(_) => context::trace_text(&self.context),
            Driver::OpenTelemetry(_) => format!("{:032x}", self.context.trace_id),
        }
    }

    /// Both ids as bytes.
    pub(crate) fn ids(&self) -> (Vec<u8>, Vec<u8>) {
        (
            self.context.trace_id.to_be_bytes().to_vec(),
            self.context.span_id.to_be_bytes().to_vec(),
        )
    }

    /// The span's id.
    pub(crate) fn span_id(&self) -> String {
        format!("{:016x}", self.context.span_id)
    }

    /// Hands the span to the exporter, if it is sampled.
    pub(super) fn report(self, worker: &Rc<Worker>) {
        if !self.is_sampled {
            return;
        }
        match self.driver.clone() {
            Driver::Zipkin(zipkin) => zipkin.report(self, worker),
            Driver::OpenTelemetry(driver) => driver.report(self, worker),
        }
    }
}

fn has_parent(driver: &Driver, map: &HeaderMap) -> bool {
    matches!(driver, Driver::Zipkin(_)) && matches!(context::b3(map), Found::Context(_))
}

/// A span for an attempt, below the stream's, where those are wanted.
pub(crate) fn start_upstream(
    connection: &DownstreamConnection,
    state: &StreamState,
    cluster: &str,
    host: &Host,
) -> Option<UpstreamSpan> {
    let config = connection.manager.tracing.as_ref()?;
    let parent = state.stream.info.span.as_ref()?;
    if !config.spawns_upstream_spans {
        return None;
    }
    let context = FormatContext::of_request(&state.stream.info, &state.request);
    let of_route = state
        .stream
        .route()
        .and_then(|route| route.route().tracing.as_deref());
    let format = of_route
        .and_then(|tracing| tracing.upstream_operation.as_ref())
        .or(config.upstream_operation.as_ref());
    let name = format
        .map(|format| format.text(&context, ""))
        .filter(|name| !name.is_empty());
    let mut span = Span {
        context: SpanContext {
            span_id: rand::random(),
            parent: Some(parent.context.span_id),
            ..parent.context.clone()
        },
        is_sampled: parent.is_sampled,
        is_client: true,
        is_shared: false,
        name: name.unwrap_or_else(|| format!("router {cluster} egress")),
        start: SystemTime::now(),
        begun: Instant::now(),
        tags: Vec::new(),
        driver: parent.driver.clone(),
        propagates: parent.propagates,
        decorated: None,
    };
    span.tag("component", "proxy");
    span.tag("upstream_cluster", cluster);
    span.tag("upstream_cluster.name", cluster);
    span.tag("upstream_address", host.address_text.to_string());
    span.tag("peer.address", host.address_text.to_string());
    if span.is_sampled {
        for tag in config.tags_of(of_route) {
            if let Some(value) = tag.value(&context) {
                span.tag(tag.name.to_string(), value);
            }
        }
    }
    Some(UpstreamSpan {
        span: Some(Box::new(span)),
        worker: connection.worker.clone(),
        status: None,
        flags: ResponseFlags::default(),
    })
}

impl TracingConfig {
    /// Custom tags: the route's, then the connection manager's that the route does not replace.
    pub(super) fn tags_of<'a>(
        &'a self,
        of_route: Option<&'a RouteTracing>,
    ) -> impl Iterator<Item = &'a super::CustomTag> {
        let route = of_route.map_or(&[][..], |tracing| tracing.tags.as_slice());
        let own = self
            .tags
            .iter()
            .filter(move |tag| !route.iter().any(|other| other.name == tag.name));
        route.iter().chain(own)
    }

    /// True for spans of requests that leave.
    pub(crate) fn is_egress(&self) -> bool {
        self.is_egress
    }
}

impl UpstreamSpan {
    /// Puts the context into the attempt's headers.
    pub(crate) fn inject(&self, map: &mut HeaderMap) {
        if let Some(span) = &self.span {
            span.inject(map);
        }
    }

    /// The response's head came.
    pub(crate) fn answered(&mut self, status: u16, protocol: &'static str) {
        self.status = Some(status);
        if let Some(span) = &mut self.span {
            span.tag("http.protocol", protocol);
        }
    }

    /// The attempt failed.
    pub(crate) fn fail(&mut self, flag: ResponseFlag) {
        self.flags.set(flag);
    }
}

impl Drop for UpstreamSpan {
    fn drop(&mut self) {
        let Some(mut span) = self.span.take() else {
            return;
        };
        span.tag_outcome(self.status, self.flags);
        span.report(&self.worker);
    }
}

impl Span {
    /// Status, flags, and whether that is an error.
    pub(super) fn tag_outcome(&mut self, status: Option<u16>, flags: ResponseFlags) {
        self.tag("http.status_code", status.unwrap_or(0).to_string());
        let mut text = String::new();
        flags.write(false, &mut text);
        if text.is_empty() {
            text.push('-');
        }
        self.tag("response_flags", text);
        if status.is_none_or(|status| status >= 500) {
            self.tag("error", "true");
        }
    }
}
