//! JWT authentication: finds tokens, verifies them against each provider's keys, and leaves their claims in dynamic metadata
//! for RBAC and the routes. Which tokens a request needs is a tree of requirements chosen by the first rule that matches.

mod extract;
mod provider;
mod remote;
mod requirement;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use futures::future::join_all;
use http::{Method, StatusCode, header};
use prost_types::Any;
use proto::envoy::extensions::filters::http::jwt_authn::v3 as wire;
use proto_mesh::jwt::Failure;

use crate::http::headers::{RequestHeaders, names};
use crate::http::local_reply::LocalReply;
use crate::http::stream::Stream;
use crate::invalid::{At as _, Invalid, try_all};
use crate::router::RouteMatch;
use crate::stat_group;

use super::{
    FilterContext, FilterFactory, FilterKind, FilterStatus, HttpFilter, Resume, RouteValue,
};
use provider::Provider;
use requirement::{Evaluation, Requirement};

/// The filter's name, which is also where it leaves metadata.
const NAME: &str = "envoy.filters.http.jwt_authn";

/// So much of a path is shown to whoever is refused, as in Envoy.
const REALM_PATH: usize = 256;

/// The filter's row.
pub(crate) const KIND: FilterKind = FilterKind {
    message: "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
    name: NAME,
    build,
    routes: &[(
        "envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig",
        route,
    )],
};

stat_group! {
    /// `http.<prefix>.jwt_authn.…`
    struct JwtStats {
        allowed: Counter, cors_preflight_bypassed: Counter, denied: Counter, jwks_fetch_failed: Counter,
        jwks_fetch_success: Counter,
    }
}

struct Config {
    providers: Vec<Provider>,
    rules: Vec<(RouteMatch, Option<Requirement>)>,
    named: BTreeMap<String, Requirement>,
    bypasses_preflight: bool,
    strips_failure: bool,
    stats: Arc<JwtStats>,
}

/// A route's say: no tokens needed, or a requirement of the map.
enum PerRoute {
    Disabled,
    Named(String),
}

struct Factory {
    name: Box<str>,
    config: Arc<Config>,
}

struct JwtAuthn {
    name: Box<str>,
    config: Arc<Config>,
}

fn build(any: &Any, context: &FilterContext<'_>) -> Result<Arc<dyn FilterFactory>, Invalid> {
    let config: wire::JwtAuthentication = super::unpack(any)?;
    if config.filter_state_rules.is_some() {
        return Err(Invalid::unsupported("filter_state_rules"));
    }
    let names: Vec<&String> = config.providers.keys().collect();
    let requirement = |wire: &wire::JwtRequirement| {
        Requirement::try_new(wire, &names).map(Requirement::simplified)
    };
    let rules = try_all("rules", &config.rules, |rule| {
        let route = rule
            .r#match
            .as_ref()
            .ok_or_else(|| Invalid::new("a match is needed"))?;
        let requirement = match &rule.requirement_type {
            None => None,
            Some(wire::requirement_rule::RequirementType::Requires(wire)) => {
                Some(requirement(wire).at("requires")?)
            }
            Some(wire::requirement_rule::RequirementType::RequirementName(name)) => {
                let wire = config.requirement_map.get(name);
                let wire =
                    wire.ok_or_else(|| Invalid::new(format!("no requirement is called '{name}'")))?;
                Some(requirement(wire)?)
            }
        };
        Ok((RouteMatch::try_from(route).at("match")?, requirement))
    })?;
    let named = config
        .requirement_map
        .iter()
        .map(|(name, wire)| {
            Ok((
                name.clone(),
                requirement(wire).at(format_args!("requirement_map[{name}]"))?,
            ))
        })
        .collect::<Result<_, Invalid>>()?;
    let providers = config
        .providers
        .iter()
        .map(|(name, provider)| Provider::try_new(provider).at(format_args!("providers[{name}]")))
        .collect::<Result<_, _>>()?;
    let stats = context.scope.scope("jwt_authn").group();
    Ok(Arc::new(Factory {
        name: context.name.into(),
        config: Arc::new(Config {
            providers,
            rules,
            named,
            bypasses_preflight: config.bypass_cors_preflight,
            strips_failure: config.strip_failure_response,
            stats,
        }),
    }))
}

fn route(any: &Any) -> Result<RouteValue, Invalid> {
    let config: wire::PerRouteConfig = super::unpack(any)?;
    match config.requirement_specifier {
        Some(wire::per_route_config::RequirementSpecifier::Disabled(true)) => {
            Ok(Arc::new(PerRoute::Disabled))
        }
        Some(wire::per_route_config::RequirementSpecifier::RequirementName(name)) => {
            Ok(Arc::new(PerRoute::Named(name)))
        }
        _ => Err(Invalid::new("disabled or requirement_name is needed")),
    }
}

impl FilterFactory for Factory {
    fn create(&self) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(JwtAuthn {
            name: self.name.clone(),
            config: self.config.clone(),
        }))
    }
}

impl Config {
    /// The requirement of a request; the error is a route that names none.
    fn requirement(
        &self,
        filter: &str,
        headers: &RequestHeaders,
        stream: &Stream,
    ) -> Result<Option<&Requirement>, ()> {
        match stream
            .route_config::<PerRoute>(filter)
            .or_else(|| stream.route_config(NAME))
        {
            Some(PerRoute::Disabled) => return Ok(None),
            Some(PerRoute::Named(name)) => return self.named.get(name).map(Some).ok_or(()),
            None => {}
        }
        let path = headers.path.path();
        let rule = self
            .rules
            .iter()
            .find(|(route, _)| route.matches(path, headers, &stream.info));
        Ok(rule.and_then(|(_, requirement)| requirement.as_ref()))
    }

    /// Verifies, applies what good tokens say, and answers if they do not suffice.
    fn verify(
        &self,
        filter: &str,
        headers: &mut RequestHeaders,
        stream: &mut Stream,
    ) -> FilterStatus {
        let requirement = match self.requirement(filter, headers, stream) {
            Ok(Some(requirement)) => requirement,
            Ok(None) => {
                self.stats.allowed.inc();
                return FilterStatus::Continue;
            }
            Err(()) => {
                self.stats.denied.inc();
                let details = "jwt_authn_access_denied{Wrong_requirement_name}";
                return FilterStatus::reply(LocalReply::new(
                    StatusCode::FORBIDDEN,
                    "Failed JWT authentication",
                    details,
                ));
            }
        };
        for provider in &self.providers {
            // Only this filter may say what a token says.
            provider.remove_headers(headers);
        }
        let mut evaluation = Evaluation::new(&self.providers, headers);
        let result = requirement.evaluate(&mut evaluation);
        let verified = evaluation.into_verified();
        let mut is_route_stale = false;
        for (provider, token) in &verified {
            provider.apply(token, headers, &mut stream.info);
            is_route_stale |= provider.clears_route;
        }
        if is_route_stale || !verified.is_empty() && self.has_metadata_routes(stream) {
            stream.clear_route();
        }
        match result {
            Ok(()) => {
                self.stats.allowed.inc();
                FilterStatus::Continue
            }
            Err(failure) => {
                self.stats.denied.inc();
                FilterStatus::reply(self.denial(failure, headers))
            }
        }
    }

    /// Fetches a provider's keys while the old ones serve.
    fn refresh(self: &Arc<Self>, index: usize, stream: &Stream) {
        let (config, worker) = (self.clone(), stream.worker().clone());
        tokio::task::spawn_local(async move {
            let provider = &config.providers[index];
            match provider.fetch_keys(&worker).await {
                Some(Ok(())) => config.stats.jwks_fetch_success.inc(),
                Some(Err(error)) => {
                    config.stats.jwks_fetch_failed.inc();
                    tracing::warn!(target: "jwt", %error, "cannot refresh keys");
                }
                None => {}
            }
            provider.refreshed();
        });
    }

    /// Routes may match on claims; there is no other way to know but to select again.
    fn has_metadata_routes(&self, stream: &Stream) -> bool {
        stream
            .route()
            .is_none_or(|route| route.table().matches_metadata())
    }

    fn denial(&self, failure: Failure, headers: &RequestHeaders) -> LocalReply {
        let status = if failure == Failure::AudienceNotAllowed {
            StatusCode::FORBIDDEN
        } else {
            StatusCode::UNAUTHORIZED
        };
        let text = failure.text();
        let details = format!("jwt_authn_access_denied{{{}}}", text.replace(' ', "_"));
        let body = if self.strips_failure { "" } else { text };
        let reply = LocalReply::new(status, body, details);
        let path = headers.text(&names::X_ENVOY_ORIGINAL_PATH);
        let path = path.unwrap_or(headers.path.as_str());
        let mut realm = format!(
            "Bearer realm=\"{}://{}{}\"",
            headers.scheme.as_str(),
            headers.host(),
            path.get(..REALM_PATH).unwrap_or(path),
        );
        if failure != Failure::Missing {
            realm.push_str(", error=\"invalid_token\"");
        }
        match http::HeaderValue::try_from(realm) {
            Ok(value) if !self.strips_failure => reply.header(&header::WWW_AUTHENTICATE, value),
            _ => reply,
        }
    }
}

impl HttpFilter for JwtAuthn {
    fn decode_headers(
        &mut self,
        headers: &mut RequestHeaders,
        stream: &mut Stream,
    ) -> FilterStatus {
        let config = self.config.clone();
        let is_preflight = headers.method == Method::OPTIONS
            && headers.map.contains_key(header::ORIGIN)
            && headers
                .map
                .contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        if config.bypasses_preflight && is_preflight {
            config.stats.cors_preflight_bypassed.inc();
            return FilterStatus::Continue;
        }
        let needed = match config.requirement(&self.name, headers, stream) {
            Ok(Some(requirement)) => requirement.providers(),
            Ok(None) | Err(()) => Vec::new(),
        };
        for index in &needed {
            if config.providers[*index].wants_refresh() {
                config.refresh(*index, stream);
            }
        }
        let stale = needed
            .iter()
            .any(|index| config.providers[*index].needs_keys());
        if !stale {
            return config.verify(&self.name, headers, stream);
        }
        let worker = stream.worker().clone();
        let name = std::mem::take(&mut self.name);
        let fetching = config.clone();
        FilterStatus::Wait(Box::pin(async move {
            let fetches = needed.iter().map(|index| {
                let (provider, worker) = (&fetching.providers[*index], Rc::clone(&worker));
                async move { provider.fetch_keys(&worker).await }
            });
            for result in join_all(fetches).await.into_iter().flatten() {
                match result {
                    Ok(()) => fetching.stats.jwks_fetch_success.inc(),
                    Err(error) => {
                        fetching.stats.jwks_fetch_failed.inc();
                        tracing::warn!(target: "jwt", %error, "cannot fetch keys");
                    }
                }
            }
            Resume::Then(Box::new(move |headers, stream| {
                config.verify(&name, headers, stream)
            }))
        }))
    }
}
