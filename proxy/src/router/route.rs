//! One route: its match, its action and what hangs on it.

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use proto::envoy::config::core::v3::Metadata;
use proto::envoy::config::route::v3 as wire;
use wire::route::Action;

use crate::access_log::{FormatContext, LineFormat};
use crate::http::filter::RouteConfigs;
use crate::http::local_reply::{data_source, status_code};
use crate::invalid::{At as _, Invalid};

use crate::tracing::{Decorator, RouteTracing};

use super::request_stats::StatsSlot;
use super::{ForwardAction, Mutations, Redirect, RouteMatch};

/// A compiled route. There are thousands, so that what few of them have is elsewhere.
#[derive(Debug)]
pub(crate) struct Route {
    /// Its name, for the access log.
    pub(crate) name: Box<str>,
    pub(super) route_match: RouteMatch,
    /// What to do.
    pub(crate) kind: RouteKind,
    /// Free metadata; Mixer and the access log read it.
    pub(crate) metadata: Option<Box<Metadata>>,
    /// Which of its requests are traced, and how.
    pub(crate) tracing: Option<Box<RouteTracing>>,
    /// Its name for what it does, in spans.
    pub(crate) decorator: Option<Decorator>,
    pub(super) mutations: Mutations,
    pub(super) filters: RouteConfigs,
    pub(super) buffer_limit: Option<usize>,
    pub(super) stats: Option<Box<StatsSlot>>,
}

/// What a route does.
#[derive(Debug)]
pub(crate) enum RouteKind {
    /// Sends the request upstream.
    Forward(Box<ForwardAction>),
    /// Sends the client elsewhere.
    Redirect(Box<Redirect>),
    /// Answers.
    Direct(Box<DirectResponse>),
}

/// A fixed answer.
#[derive(Debug)]
pub(crate) struct DirectResponse {
    /// The status.
    pub(crate) status: StatusCode,
    /// The body.
    pub(crate) body: Bytes,
    /// How the body is made, and its content type.
    pub(crate) format: Option<(LineFormat, HeaderValue)>,
}

impl Route {
    pub(super) fn try_new(
        route: &wire::Route,
        virtual_host_cors: Option<&wire::CorsPolicy>,
        body_limit: usize,
    ) -> Result<Self, Invalid> {
        let route_match = route
            .r#match
            .as_ref()
            .ok_or_else(|| Invalid::new("a match is needed"))?;
        let action = route
            .action
            .as_ref()
            .ok_or_else(|| Invalid::new("an action is needed"))?;
        let mut filters = RouteConfigs::try_new(&route.typed_per_filter_config)?;
        let kind = match action {
            Action::Route(action) => {
                #[allow(
                    deprecated,
                    reason = "control planes still send the route's own CORS policy"
                )]
                let cors = action.cors.as_ref().or(virtual_host_cors);
                filters = filters.with_cors(cors).at("route.cors")?;
                RouteKind::Forward(Box::new(ForwardAction::try_from(action).at("route")?))
            }
            Action::Redirect(redirect) => {
                RouteKind::Redirect(Box::new(Redirect::try_from(redirect).at("redirect")?))
            }
            Action::DirectResponse(direct) => {
                let direct = DirectResponse::try_new(direct, body_limit);
                RouteKind::Direct(Box::new(direct.at("direct_response")?))
            }
            Action::FilterAction(_) => return Err(Invalid::unsupported("filter_action")),
            Action::NonForwardingAction(_) => {
                return Err(Invalid::unsupported("non_forwarding_action"));
            }
        };
        let route_match = RouteMatch::try_from(route_match).at("match")?;
        if let RouteKind::Forward(action) = &kind {
            action.check_rewrite(&route_match).at("route")?;
        }
        Ok(Route {
            name: route.name.as_str().into(),
            route_match,
            kind,
            metadata: route.metadata.clone().map(Box::new),
            tracing: route
                .tracing
                .as_ref()
                .map(RouteTracing::try_from)
                .transpose()
                .at("tracing")?
                .map(Box::new),
            decorator: route.decorator.as_ref().map(Decorator::from),
            mutations: Mutations::try_new(
                &route.request_headers_to_add,
                &route.request_headers_to_remove,
                &route.response_headers_to_add,
                &route.response_headers_to_remove,
            )?,
            filters,
            stats: StatsSlot::of_route(&route.stat_prefix).map(Box::new),
            #[allow(deprecated, reason = "control planes still send the older field")]
            buffer_limit: route
                .request_body_buffer_limit
                .or(route.per_request_buffer_limit_bytes.map(u64::from))
                .map(|limit| usize::try_from(limit).unwrap_or(usize::MAX)),
        })
    }
}

impl DirectResponse {
    /// The body and its content type, if that is not plain text.
    pub(crate) fn body(&self, context: &FormatContext<'_>) -> (Bytes, Option<HeaderValue>) {
        let Some((format, content_type)) = &self.format else {
            return (self.body.clone(), None);
        };
        let text = String::from_utf8_lossy(&self.body);
        let context = FormatContext {
            local_reply_body: &text,
            ..*context
        };
        let mut out = String::new();
        format.write(&context, &mut out);
        (Bytes::from(out), Some(content_type.clone()))
    }

    fn try_new(direct: &wire::DirectResponseAction, body_limit: usize) -> Result<Self, Invalid> {
        let body = direct
            .body
            .as_ref()
            .map(data_source)
            .transpose()
            .at("body")?
            .unwrap_or_default();
        if body.len() > body_limit {
            return Err(Invalid::new(format!(
                "response body size is {} bytes; maximum is {body_limit}",
                body.len()
            )));
        }
        let format = direct
            .body_format
            .as_ref()
            .map(crate::http::local_reply::body_format)
            .transpose();
        Ok(DirectResponse {
            status: status_code(direct.status).at("status")?,
            body,
            format: format.at("body_format")?,
        })
    }
}
