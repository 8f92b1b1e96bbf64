//! The external authorization filter: asks a service, over gRPC or HTTP, whether a request may pass. What it answers changes
//! the request and the response, or is the reply.

mod check;
mod config;
mod grpc;
mod http_service;
mod verdict;

use std::rc::Rc;
use std::sync::Arc;

use http::HeaderValue;
use http::header::HeaderName;
use tokio::time::Instant;

use crate::http::headers::{RequestHeaders, ResponseHeaders};
use crate::http::local_reply::LocalReply;
use crate::http::stream::Stream;
use crate::stream_info::ResponseFlag;

use super::{
    Buffered, Buffering, FilterFactory, FilterKind, FilterStatus, HttpFilter, Resume, RouteConfig,
};

use config::{BodyRules, Config, PerRoute, Service};
use verdict::{ResponseChanges, Verdict};

/// The filter's name, and where it leaves metadata.
const NAME: &str = "envoy.filters.http.ext_authz";

static FAILURE_MODE_ALLOWED: HeaderName =
    HeaderName::from_static("x-envoy-auth-failure-mode-allowed");

/// The filter's row.
pub(crate) const KIND: FilterKind = FilterKind {
    message: "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
    name: NAME,
    build: config::build,
    routes: &[(
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute",
        config::route,
    )],
};

struct Factory(Arc<Config>);

struct ExtAuthz {
    config: Arc<Config>,
    /// What the service wants done to the response.
    response: Rc<std::cell::RefCell<ResponseChanges>>,
}

/// What a check is made with, once the route's say is in.
struct Check {
    config: Arc<Config>,
    service: Arc<Service>,
    extensions: std::collections::BTreeMap<String, String>,
    body_rules: Option<BodyRules>,
    response: Rc<std::cell::RefCell<ResponseChanges>>,
}

impl FilterFactory for Factory {
    fn create(&self) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(ExtAuthz {
            config: self.0.clone(),
            response: Rc::default(),
        }))
    }
}

impl ExtAuthz {
    /// What applies on the stream's route; `None` when nothing is asked there.
    fn check(&self, stream: &Stream) -> Option<Check> {
        let route = stream.route()?;
        let config = &self.config;
        let mut check = Check {
            config: config.clone(),
            service: config.service.clone(),
            extensions: std::collections::BTreeMap::new(),
            body_rules: config.body,
            response: self.response.clone(),
        };
        let levels: Vec<&PerRoute> = route
            .filter_configs(&config.name)
            .filter_map(|config| match config {
                RouteConfig::Value(value) => value.downcast_ref(),
                RouteConfig::Disabled | RouteConfig::Enabled => None,
            })
            .collect();
        // The most specific comes first, and has the last word.
        if levels.first().is_some_and(|level| level.is_disabled) {
            return None;
        }
        for level in levels.iter().rev() {
            let extensions = level.extensions.iter();
            check
                .extensions
                .extend(extensions.map(|(key, value)| (key.clone(), value.clone())));
        }
        if let Some(level) = levels.first() {
            if level.skips_body {
                check.body_rules = None;
            } else if level.body.is_some() {
                check.body_rules = level.body;
            }
            if let Some(service) = &level.service {
                check.service = service.clone();
            }
        }
        Some(check)
    }
}

impl Check {
    fn ask(
        self,
        body: Option<Buffered>,
        headers: &RequestHeaders,
        stream: &Stream,
    ) -> FilterStatus {
        let request = check::Request::new(&self, body, headers, stream);
        let worker = stream.worker().clone();
        let started = Instant::now();
        FilterStatus::Wait(Box::pin(async move {
            let verdict = match self.service.as_ref() {
                Service::Grpc(service) => grpc::ask(service, &worker, request).await,
                Service::Http(service) => service.ask(&worker, &request).await,
            };
            Resume::Then(Box::new(move |headers, stream| {
                self.settle(verdict, started, headers, stream)
            }))
        }))
    }

    fn settle(
        self,
        verdict: Verdict,
        started: Instant,
        headers: &mut RequestHeaders,
        stream: &mut Stream,
    ) -> FilterStatus {
        let config = &self.config;
        let of_cluster = config.stats_of_cluster(stream);
        match verdict {
            Verdict::Ok(changes) => {
                config.stats.ok.inc();
                if let Some(stats) = &of_cluster {
                    stats.ok.inc();
                }
                changes.leave_metadata(config.takes_metadata, started, stream);
                let has_changed = changes.change_request(headers);
                if has_changed && config.clears_route {
                    stream.clear_route();
                }
                *self.response.borrow_mut() = changes.response;
                FilterStatus::Continue
            }
            Verdict::Denied(denied) => {
                config.stats.denied.inc();
                if let Some(stats) = &of_cluster {
                    stats.denied.inc();
                }
                if let Some(metadata) = denied.metadata.filter(|_| config.takes_metadata) {
                    stream.info.metadata.merge(NAME, metadata);
                }
                let mut body = denied.body;
                if config.max_denied_body > 0 {
                    body.truncate(config.max_denied_body);
                }
                let mut reply = LocalReply::new(denied.status, body, "ext_authz_denied")
                    .flag(ResponseFlag::UnauthorizedExternalService);
                reply.headers = denied.headers;
                FilterStatus::reply(reply)
            }
            Verdict::Error => {
                config.stats.error.inc();
                if let Some(stats) = &of_cluster {
                    stats.error.inc();
                }
                if !config.allows_failures {
                    return FilterStatus::reply(config.error_reply());
                }
                config.stats.failure_mode_allowed.inc();
                if let Some(stats) = &of_cluster {
                    stats.failure_mode_allowed.inc();
                }
                if config.marks_failures {
                    headers.map.append(
                        FAILURE_MODE_ALLOWED.clone(),
                        HeaderValue::from_static("true"),
                    );
                }
                FilterStatus::Continue
            }
        }
    }
}

impl HttpFilter for ExtAuthz {
    fn decode_headers(
        &mut self,
        headers: &mut RequestHeaders,
        stream: &mut Stream,
    ) -> FilterStatus {
        let Some(check) = self.check(stream) else {
            return FilterStatus::Continue;
        };
        if !self.config.is_enabled(stream) {
            self.config.stats.disabled.inc();
            return if self.config.denies_when_disabled.now() {
                FilterStatus::reply(self.config.error_reply())
            } else {
                FilterStatus::Continue
            };
        }
        let Some(rules) = check
            .body_rules
            .filter(|_| stream.info.request_end.is_none() && headers.upgrade.is_none())
        else {
            return check.ask(None, headers, stream);
        };
        FilterStatus::Buffer(Box::new(Buffering {
            limit: rules.limit,
            allows_partial: rules.allows_partial,
            then: Box::new(move |body, headers, stream| check.ask(Some(body), headers, stream)),
        }))
    }

    fn encode_headers(&mut self, headers: &mut ResponseHeaders, _: &mut Stream) {
        self.response.borrow().apply(&mut headers.map);
    }
}
